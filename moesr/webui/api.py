"""/moesr/upscale and /moesr/models beside the host's own API, with its --api-auth."""
# pyright: reportMissingImports=false

from __future__ import annotations

import base64
import binascii
import hmac
import secrets
from collections.abc import Mapping
from typing import Any

from ..errors import MoESRError, SettingError
from ..images.files import read_text
from ..service.desk import Desk
from ..service.intake import accept
from ..service.settings import checked, from_text
from . import webui_api
from .engine import engine, models
from .tab import desk

_WAIT = 1.0


def attach(_: Any, app: Any) -> None:
    """The callback of on_app_started. Without --api the host has no API, and neither have we."""
    options = webui_api.shared.cmd_opts
    if not (getattr(options, "api", False) or getattr(options, "nowebui", False)):
        return
    from fastapi import Depends, HTTPException, Request

    def allowed(request: Request) -> None:
        if not permitted(getattr(options, "api_auth", None), request.headers.get("authorization", "")):
            asked = {"WWW-Authenticate": "Basic"}
            raise HTTPException(status_code=401, detail="Incorrect username or password", headers=asked)

    # FastAPI reads these as they are, not as text.
    allowed.__annotations__ = {"request": Request}

    def moesr_upscale(request: dict) -> dict:
        try:
            return upscale(desk(), request)
        except MoESRError as error:
            raise HTTPException(status_code=422, detail=str(error)) from error

    moesr_upscale.__annotations__ = {"request": dict[str, Any]}
    moesr_upscale.__doc__ = upscale.__doc__
    guarded = [Depends(allowed)]
    app.add_api_route("/moesr/upscale", moesr_upscale, methods=["POST"], dependencies=guarded)
    app.add_api_route("/moesr/models", listed, methods=["GET"], dependencies=guarded)


def upscale(owner: Desk, request: Mapping[str, Any]) -> dict[str, Any]:
    """A picture, larger.

    Send {"image": a file in base64, perhaps as a data: address} and, if you like, model, scale, steps, fidelity,
    color_fix, seed, tile, wrap, sampler, eta. Comes back: {"image": a PNG in base64, width, height, seconds, settings,
    model_hash}. 422 with a line of text for what cannot be. The host's /sdapi/v1/progress and /interrupt work on it.
    """
    data = _decoded(request.get("image"))
    owner.limits.check_bytes("image", len(data))
    values = {key: value for key, value in request.items() if key != "image" and value is not None}
    settings = checked({"model": engine().default(), **values})
    folder = owner.adapter.folder / "received"
    path = folder / f"api_{secrets.token_hex(8)}"
    path.write_bytes(data)
    try:
        job = owner.submit([accept(path, [folder], "image")], settings, preview=False)
        while not job.finished:
            job.wait(_WAIT)
        if not job.results:
            raise SettingError(job.error or "; ".join(job.failures))
        result = job.results[0]
        told = from_text(read_text(result.path))
        return {
            "image": base64.b64encode(result.path.read_bytes()).decode(),
            "width": result.size[0],
            "height": result.size[1],
            "seconds": round(job.seconds, 2),
            "settings": vars(told[0] if told else settings),
            "model_hash": told[1] if told else "",
        }
    finally:
        path.unlink(missing_ok=True)


def listed() -> list[dict[str, Any]]:
    """The models that there are."""
    steps = {name: engine().models.config(name).steps for name in models()}
    return [{"name": name, "scale": scale, "steps": steps[name]} for name, scale in models().items()]


def permitted(users: str | None, header: str) -> bool:
    """Whether an Authorization header names one of `users`, "name:password,..." as the host has it; True if none."""
    if not users:
        return True
    kind, _, text = header.partition(" ")
    if kind.lower() != "basic":
        return False
    try:
        given = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return False
    return any(hmac.compare_digest(given, user.encode()) for user in users.split(","))


def _decoded(image: Any) -> bytes:
    if not isinstance(image, str) or not image:
        raise SettingError('image: give a picture in base64, as {"image": "..."}')
    text = image.partition(",")[2] if image.startswith("data:") else image
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise SettingError("image: that is no base64; give the bytes of a picture file in base64") from error

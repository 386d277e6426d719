"""/moesr/upscale and /moesr/models beside the host's own API, with its --api-auth."""
# pyright: reportMissingImports=false

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import json
import secrets
from collections.abc import Mapping
from typing import Any

from ..errors import MoESRError, SettingError
from ..hosting.model_runner import Stopped
from ..page.controls import describe_control
from ..page.handlers import describe_result
from ..page.job import Job
from ..page.job_queue import JobQueue, QueueFullError
from ..page.protection import read_map
from ..page.uploads import Upload, accept
from ..settings import ANY_SEED, LOADING, RUN_SETTINGS, SETTINGS, read_settings
from . import webui_api
from .opened_models import engine, list_models
from .tab import job_queue

#: Seconds between two looks at a job.
_WAIT = 0.5


class TooLargeError(MoESRError):
    """More was sent than the limits allow."""

    __module__ = "moesr"


class BrokenError(MoESRError):
    """A job failed for a reason that is in the log only."""

    __module__ = "moesr"


#: HTTP status of errors; 422 for all others.
_STATUS = {Stopped: 409, QueueFullError: 503, TooLargeError: 413, BrokenError: 500}


def attach(_: Any, app: Any) -> None:
    """The callback of on_app_started. Without --api the host has no API, and neither have we."""
    options = webui_api.shared.cmd_opts
    if not (getattr(options, "api", False) or getattr(options, "nowebui", False)):
        return
    from fastapi import Depends, HTTPException, Request

    def check_password(request: Request) -> None:
        if not is_permitted(getattr(options, "api_auth", None), request.headers.get("authorization", "")):
            basic = {"WWW-Authenticate": "Basic"}
            raise HTTPException(status_code=401, detail="Incorrect username or password", headers=basic)

    async def moesr_upscale(request: Request) -> dict[str, Any]:
        try:
            return await answer(job_queue(), request)
        except MoESRError as error:
            raise HTTPException(status_code=find_status(error), detail=str(error)) from error

    # FastAPI reads these as they are, not as text.
    check_password.__annotations__ = {"request": Request}
    moesr_upscale.__annotations__ = {"request": Request, "return": dict[str, Any]}
    moesr_upscale.__doc__ = answer.__doc__
    guarded = [Depends(check_password)]
    body = {"requestBody": {"required": True, "content": {"application/json": {"schema": describe_request()}}}}
    app.add_api_route("/moesr/upscale", moesr_upscale, methods=["POST"], dependencies=guarded, openapi_extra=body)
    app.add_api_route("/moesr/models", describe_models, methods=["GET"], dependencies=guarded)


async def answer(queue: JobQueue, request: Any) -> dict[str, Any]:
    """A picture, larger.

    Comes back: {"image": a file in base64, width, height, seconds, settings, model_hash}. Otherwise `detail` is one
    line: 422 for a picture or a setting that cannot be, 413 for too large a request, 409 for a job that was
    interrupted, 503 for a full queue. The host's /sdapi/v1/progress and /interrupt work on it. A client that leaves
    ends its job.
    """
    values = await _read_body(queue, request)
    loop = asyncio.get_running_loop()
    job, path = await loop.run_in_executor(None, submit, queue, values)
    leaves = asyncio.ensure_future(_wait_for_leaving(request))
    try:
        while not job.is_finished:
            await loop.run_in_executor(None, job.wait, _WAIT)
            if leaves.done() and not job.is_finished:
                job.cancel("the client has left")
        return await loop.run_in_executor(None, make_answer, job)
    finally:
        leaves.cancel()
        job.cancel("the client has left")
        path.unlink(missing_ok=True)


def submit(queue: JobQueue, values: Mapping[str, Any]) -> tuple[Job, Any]:
    """The job of a request, and the file that its picture was put into. Raises MoESRError."""
    given = dict(values)
    image, protect = given.pop("image", None), given.pop("protect", None)
    model = given.pop("model", None) or engine().choose_default()
    settings = read_settings(given)
    if not isinstance(model, str):
        raise SettingError(f"model {repr(model)[:60]}: give its name")
    plane = b""
    if protect is not None:
        upload = _receive(queue, "protect", protect)
        try:
            plane = read_map(upload, queue.limits)
        finally:
            upload.path.unlink()
    upload = _receive(queue, "image", image)
    try:
        return queue.submit(Job([upload], model, settings, preview=False, protect=plane)), upload.path
    except MoESRError:
        upload.path.unlink()
        raise


def find_status(error: MoESRError) -> int:
    """The HTTP status of an error."""
    return _STATUS.get(type(error), 422)


def make_answer(job: Job) -> dict[str, Any]:
    """What comes back of a job that has ended. Raises MoESRError."""
    if job.results:
        return {"image": base64.b64encode(job.results[0].path.read_bytes()).decode(), **describe_result(job)}
    error = job.error or "; ".join(job.failures)
    if job.state == "cancelled":
        raise Stopped(error)
    raise BrokenError(error) if "something went wrong" in error else SettingError(error)


def describe_request() -> dict[str, Any]:
    """The JSON schema of a request: the table of settings."""
    image = {"type": "string", "format": "byte", "description": "A picture file in base64, or a data: address."}
    protect = {**image, "default": None, "description": f"Such a picture too. {SETTINGS['protect'].sentence}"}
    model = {"type": "string", "description": "A name in the library.", "default": LOADING["model"].default}
    settings = {name: SETTINGS[name].describe() for name in RUN_SETTINGS}
    settings["seed"] |= {"minimum": ANY_SEED, "description": describe_control("seed")[1]["info"]}
    return {
        "title": "MoESR", "type": "object", "required": ["image"], "additionalProperties": False,
        "properties": {"image": image, "model": model, "protect": protect, **settings},
    }  # fmt: skip


def describe_models() -> list[dict[str, Any]]:
    """The models that there are."""
    configs = {name: engine().facts.read_config(name) for name in list_models()}
    return [{"name": name, "scale": config.scale, "steps": config.steps} for name, config in configs.items()]


def is_permitted(users: str | None, header: str) -> bool:
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


async def _read_body(queue: JobQueue, request: Any) -> Mapping[str, Any]:
    most, data = 2 * queue.limits.file_bytes * 4 // 3 + 2**16, bytearray()  # of two pictures
    async for chunk in request.stream():
        data += chunk
        if len(data) > most:
            raise TooLargeError(f"more than the {most / 1e6:.0f} MB that are taken at a time; send a smaller file")
    try:
        values = json.loads(bytes(data))
    except (ValueError, RecursionError) as error:
        raise SettingError(f'the request is no JSON ({error}); send {{"image": "..."}}') from error
    if not isinstance(values, dict):
        raise SettingError('the request is no JSON object; send {"image": "..."}')
    return values


async def _wait_for_leaving(request: Any) -> None:
    """Until the client closes the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _receive(queue: JobQueue, name: str, image: Any) -> Upload:
    """A picture of a request, put into a file. Raises MoESRError."""
    if not isinstance(image, str) or not image:
        raise SettingError(f'{name}: give a picture in base64, as {{"{name}": "..."}}')
    text = image.partition(",")[2] if image.startswith("data:") else image
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise SettingError(f"{name}: that is no base64; give the bytes of a picture file in base64") from error
    if len(data) > queue.limits.file_bytes:
        most = queue.limits.file_bytes / 1e6
        raise TooLargeError(f"{name}: {len(data) / 1e6:.1f} MB, at most {most:.0f} MB are taken")
    folder = queue.host.folder / "received"
    path = folder / f"api_{secrets.token_hex(8)}"
    path.write_bytes(data)
    return accept(path, [folder], name)

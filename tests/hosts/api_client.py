"""Calls the page's API with gradio_client and tells what came back. Run by the page's own Python; see page.py.

Standard input: {"url", "jobs": [{"image": path, parameter: value, ...}], "together", "folder", "auth"}; the last line
of standard output: a list of {"info": what was reported last, "error"}.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import gradio_client  # type: ignore[import-not-found]  # of make test-hosts

NAMES = ("model", "scale", "steps", "fidelity", "color_fix", "seed", "tile", "wrap", "sampler", "eta", "restore",
         "spacing", "protect")  # fmt: skip
DEFAULTS = {"scale": 4, "fidelity": "auto", "color_fix": "adain", "seed": 0, "tile": "auto", "wrap": False,
            "sampler": "auto", "eta": 1, "restore": "auto", "spacing": "auto", "protect": None}  # fmt: skip


def submit(client: Any, job: dict[str, Any]) -> Any:
    """The job's call; clients before 1.0 know neither names nor defaults."""
    values = dict(job)
    image = values.pop("image")
    if hasattr(gradio_client, "handle_file"):
        if isinstance(image, str):
            image = gradio_client.handle_file(image)
        return client.submit(image=image, **values, api_name="/upscale")
    values = {**DEFAULTS, **values}
    return client.submit(image, *(values[name] for name in NAMES), api_name="/upscale")


def work(client: Any, job: dict[str, Any]) -> dict[str, Any]:
    """One job from beginning to end."""
    done: dict[str, Any] = {"info": None, "error": ""}
    try:
        called, result = submit(client, job), None
        for reported in called:
            result, info = reported
            done["info"] = json.loads(Path(info).read_text()) if isinstance(info, str) else info
        if result is None:
            called.result()  # raises what the loop has kept to itself
    except Exception as error:  # its words are what the caller wants to see
        done["error"] = str(error)
    return done


def main() -> None:
    """Read the order, do it, tell."""
    order = json.load(sys.stdin)
    jobs, options = order["jobs"], {}
    if order.get("auth"):
        options["auth"] = tuple(order["auth"])
    folder = Path(order["folder"]) / f"client-{time.time_ns()}"
    folder.mkdir()
    where = "download_files" if hasattr(gradio_client, "handle_file") else "output_dir"
    options[where] = str(folder)
    count = len(jobs) if order["together"] else 1
    clients = [gradio_client.Client(order["url"], verbose=False, **options) for _ in range(count)]
    results: list[Any] = [None] * len(jobs)

    def run(i: int) -> None:
        results[i] = work(clients[i], jobs[i])

    if order["together"]:
        threads = [threading.Thread(target=run, args=(i,)) for i in range(len(jobs))]
        for thread in threads:
            thread.start()
            time.sleep(0.5)
        for thread in threads:
            thread.join()
    else:
        results = [work(clients[0], job) for job in jobs]
    sys.stdout.write("\n" + json.dumps(results) + "\n")


if __name__ == "__main__":
    main()

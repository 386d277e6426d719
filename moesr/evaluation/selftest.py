"""The self-test of `python -m moesr check`: are results right on this device, and does it keep to its memory?

Every row compares numbers: networks on the device with the plain networks in float32 on the CPU, the embedded model
with the result that is shipped, samplers with their results on the CPU. A row that fails or crashes leaves the others.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import MoESRError
from ..model import DTYPES, SRModel, load
from ..pipeline import sample_latents, upscale
from ..progress import Event
from ..runtime import Runtime
from ..settings import SAMPLERS
from . import recorded_result
from .nano_models import build_nano
from .parity import largest_difference, parity_cases, psnr, share_within_a_level, synthetic_picture
from .selftest_device import exact_numerics, release
from .speed.measure import Stopwatch, allocated_bytes, peak, wait_for
from .speed.network_parts import expert_step

ROWS = ("parity", "tiny", "samplers", "residency", "memory", "cancel", "throughput")
#: Largest difference to the plain networks in float32, as a part of their largest value.
BOUNDS = {"fp32": 1e-4, "bf16": 0.06, "fp16": 0.015}
#: Share of the samples that must be within one 8-bit level of the expected picture.
NEAR = 0.999
#: Largest difference of sampled latents, as a part of their largest value. Rounding grows from step to step.
LATENT_BOUND = 2e-3
#: Least PSNR in dB between pictures made in smaller tiles and in one.
TILED_PSNR = 30.0
#: Seconds within which a run must end after it was cancelled.
CANCEL_SECONDS = 0.5
#: Bytes by which memory may differ after a run: on the CPU the C library keeps some.
LEAK = {"cpu": 12 * 2**20}


@dataclass(frozen=True)
class Result:
    """One row of the report."""

    #: One of ROWS.
    name: str
    #: False if a bound was not kept or the row crashed.
    passed: bool
    #: Wall-clock seconds.
    seconds: float
    #: One line: what was found, or what failed.
    summary: str
    #: Measured numbers and reasons for what was skipped, by name.
    values: dict[str, Any] = field(default_factory=dict)


class Failure(Exception):
    """A bound was not kept; the text is the row's summary."""


class Stopped(Exception):
    """A run of this test was cancelled on purpose."""


class SelfTest:
    """Runs the rows on a device. quick: smaller pictures, nothing compiled, at most a minute.

    model: a name in the library or a file; only `tiny` has a recorded result, others are compared with the CPU.
    """

    def __init__(self, device: torch.device, *, quick: bool = False, model: str = "tiny") -> None:
        self.device, self.quick, self.source = device, quick, model
        self.is_cpu = device.type == "cpu"

    def run(self, rows: tuple[str, ...] = ROWS) -> Iterator[Result]:
        """The rows in turn, each as soon as it is done."""
        for name in rows:
            start, values = time.perf_counter(), {}
            try:
                with exact_numerics():
                    summary = getattr(self, f"_check_{name}")(values)
                passed = True
            except (Failure, MoESRError) as error:
                passed, summary = False, str(error)
            except Exception as error:  # whatever a driver raises belongs to this row only
                first = next(iter(str(error).splitlines()), "")
                passed, summary = False, f"crashed: {type(error).__name__}: {first}"
            yield Result(name, passed, round(time.perf_counter() - start, 2), summary, values)
            release(self.device)

    # ---- the rows

    def _check_parity(self, values: dict[str, Any]) -> str:
        """Networks with random weights against the plain ones, in each number format that the device has."""
        names = ["fp32", "bf16"] if self.is_cpu else ["fp32", "bf16", "fp16"]
        with torch.inference_mode():
            for case, expected, run in parity_cases():
                for name in names:
                    values[f"{case} {name}"] = error = largest_difference(run(self.device, DTYPES[name]), expected)
                    if not error <= BOUNDS[name]:  # NaN fails too
                        raise Failure(f"{case} in {name} differs by {error:.2g}; at most {BOUNDS[name]:g} is right")
        worst = {n: max(v for k, v in values.items() if k.endswith(n)) for n in names}
        return ", ".join(f"{n} {v:.1e}" for n, v in worst.items()) + " of the largest value"

    def _check_tiny(self, values: dict[str, Any]) -> str:
        """The model in float32 against its recorded result (tiny), and on a device against the CPU."""
        model = self._load("fp32")
        pairs: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        if model.config.name == recorded_result.NAME:
            result = upscale(model, recorded_result.read_input(), restore=recorded_result.RESTORE)
            pairs["recorded"] = result, recorded_result.read_expected()
        if not self.is_cpu and not (pairs and self.quick):
            picture = synthetic_picture(32 if self.quick else 128)
            on_cpu = load(self.source, dtype="fp32", device="cpu")
            pairs["CPU's"] = upscale(model, picture), upscale(on_cpu, picture)
        for name, (result, expected) in pairs.items():
            values["near" if name == "recorded" else "near_cpu"] = near = share_within_a_level(result, expected)
            if near < NEAR:
                raise Failure(f"{near:.2%} of the samples are within a level of the {name} result, not {NEAR:.1%}")
        if "recorded" in pairs and not recorded_result.has_recorded_weights(model.paths[0]):
            raise Failure(f"{model.paths[0]}: its weights are not those of the released model; get the file again")
        if not pairs:
            upscale(model, self._picture)  # raises NumericsError for NaN
            return "finite; only tiny has a recorded result"
        return ", ".join(f"{v:.2%} within a level of the {n} result" for n, v in zip(pairs, values.values()))

    def _check_samplers(self, values: dict[str, Any]) -> str:
        """Every sampler over both processes against the CPU."""
        picture, cpu = synthetic_picture(16), torch.device("cpu")
        for kind in ("ddpm", "residual_shift"):
            here, there = build_nano(kind, self.device), build_nano(kind, cpu)
            for name in SAMPLERS:
                found, again = (sample_latents(m, picture, sampler=name, steps=4, seed=1) for m in (here, there))
                values[f"{kind} {name}"] = error = largest_difference(found, again)
                if not error <= LATENT_BOUND:
                    raise Failure(f"{name} ({kind}) differs from the CPU by {error:.2g} of its largest value")
        return f"{len(SAMPLERS)} samplers, 2 processes: at most {max(values.values()):.1e} from the CPU"

    def _check_residency(self, values: dict[str, Any]) -> str:
        results = []
        for residency in ("all", "stream"):
            model = load(self.source, device=self.device, residency=residency)
            start = time.perf_counter()
            results.append(upscale(model, self._picture))
            values[f"{residency}_seconds"] = round(time.perf_counter() - start, 3)
            model.close()
        different = int((results[0] != results[1]).sum())
        if different:
            raise Failure(f"stream differs from all in {different} samples of {results[0].size}")
        return "all and stream give the same bytes"

    def _check_memory(self, values: dict[str, Any]) -> str:
        """Out of memory shrinks the tile and ends right; afterwards memory is where it was."""
        model = self._load()
        picture = synthetic_picture(48 if self.is_cpu else 128 if self.quick else 192)

        def run(tile: int | str, events: list[Event]) -> np.ndarray:
            return upscale(model, picture, steps=1, tile=tile, callback=events.append)

        run(0, [])  # libraries make their workspaces at first use
        release(self.device)
        start = allocated_bytes(self.device)
        with peak(self.device) as used:
            expected = run(0, [])
        events: list[Event] = []
        with self._limit_memory(model, used.bytes, picture.shape[0] * model.scale):
            result = run(0, events)
        tiles = events[-1].tiles
        values.update(tiles=tiles, psnr=round(psnr(result, expected), 1), peak_mib=used.mib)
        if tiles < 2:
            raise Failure("memory was limited, yet nothing ran out of it: the limit had no effect")
        if values["psnr"] < TILED_PSNR:
            raise Failure(f"after out of memory the picture has a PSNR of {values['psnr']:.1f} dB to the whole one")
        grown = []
        for _ in range(3 if self.is_cpu else 1):  # the C library's own caches fill once
            release(self.device)
            end = allocated_bytes(self.device)
            if start is None or end is None:
                return f"ended right in {tiles} tiles; this system does not tell what a run leaves behind"
            grown.append(end - start)
            if grown[-1] <= LEAK.get(self.device.type, 2**20):
                break
            start = end
            run(64, [])
        values["left_mib"] = round(grown[-1] / 2**20, 1)
        if min(grown) > LEAK.get(self.device.type, 2**20):
            raise Failure(f"a run leaves {values['left_mib']} MiB behind")
        return f"out of memory: ended right in {tiles} tiles, {values['psnr']} dB; {values['left_mib']} MiB left behind"

    def _check_cancel(self, values: dict[str, Any]) -> str:
        """A run ends soon after it was cancelled, and the model works on."""
        runtime = _Stoppable()
        model = load(self.source, device=self.device, runtime=runtime)
        picture = synthetic_picture(64)
        upscale(model, picture, steps=1, tile=128)
        seconds = []
        for delay in (0.05, 0.2, 0.4):
            timer = threading.Timer(delay, runtime.stop)
            timer.start()
            with suppress(Stopped):
                upscale(model, picture, steps=200, tile=128)
                raise Failure("the run went on to its end")
            wait_for(self.device)
            seconds.append(time.perf_counter() - runtime.stopped_at)
            timer.join()
            runtime.stopped_at = math.inf
        values["seconds"] = round(median(seconds), 3)
        if values["seconds"] > CANCEL_SECONDS:
            raise Failure(f"a cancelled run took {values['seconds']} s to end; {CANCEL_SECONDS} s are right")
        upscale(model, picture, steps=1, tile=128)
        return f"ends {values['seconds']} s after it was cancelled, and runs again"

    def _check_throughput(self, values: dict[str, Any]) -> str:
        """Seconds and peak memory; compiled against not, where there is a compiler."""
        sides = (256,) if self.quick and self.is_cpu else (512,) if self.quick or self.is_cpu else (512, 1024, 4096)
        model, lines = self._load(), []
        for side in sides:
            seconds, mib = self._time(lambda s=side: upscale(model, synthetic_picture(s // model.scale)))
            values[f"{self.source} {side}"] = {"seconds": round(seconds, 4), "peak_mib": mib}
            lines.append(f"{side} x {side} in {seconds:.3f} s" + ("" if mib is None else f", {mib} MiB"))
        if not (self.quick and self.is_cpu):
            with torch.inference_mode():
                seconds, _ = self._time(expert_step(128, model.dtype, self.device).run)
            values["full-size step 128"] = {"seconds": round(seconds, 4)}
            lines.append(f"full-size step {seconds * 1000:.1f} ms")
        lines.append(self._compare_compiled(values))
        return "; ".join(lines)

    # ---- what rows share

    @cached_property
    def _picture(self) -> np.ndarray:
        return synthetic_picture(24 if self.quick else 64)

    def _load(self, dtype: str = "auto") -> SRModel:
        return load(self.source, dtype=dtype, device=self.device)

    def _time(self, run: Callable[[], Any]) -> tuple[float, int | None]:
        """Median seconds of three runs after two that warm up (fewer on a CPU), and the peak in MiB."""
        warm = not (self.quick and self.is_cpu)
        with peak(self.device) as used:
            seconds = Stopwatch(self.device).alternating([run], 1 if self.is_cpu else 3, warm)[0]
        return median(seconds), None if used.mib is None else round(used.mib)

    def _compare_compiled(self, values: dict[str, Any]) -> str:
        """The model compiled by torch.compile: near the same picture, and how fast. Skipped without a compiler."""
        if self.quick:
            values["compile"] = "skipped: --quick"
            return "compile skipped (quick)"
        picture = synthetic_picture(64)
        eager = self._load()
        compiled = load(self.source, device=self.device, compile=True)
        try:
            result = upscale(compiled, picture)
        except Exception as error:  # no C++ compiler, no Triton, an unsupported device: all of them are reasons
            values["compile"] = f"skipped: {type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
            return f"compile {values['compile']}"
        near = psnr(result, upscale(eager, picture))
        if near < TILED_PSNR:
            raise Failure(f"the compiled model's picture has a PSNR of {near:.1f} dB to the other")
        off, on = (self._time(lambda m=m: upscale(m, picture))[0] for m in (eager, compiled))
        values["compile"] = {"off_seconds": round(off, 4), "on_seconds": round(on, 4), "psnr": round(near, 1)}
        return f"compile {off / on:.2f} times as fast"

    @contextmanager
    def _limit_memory(self, model: SRModel, needed: int | None, side: int) -> Iterator[None]:
        """A third of the memory that a run needs: by torch's allocator on CUDA; elsewhere layers refuse large tiles."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            total = torch.cuda.get_device_properties(self.device).total_memory
            room = torch.cuda.memory_allocated(self.device) + (needed or 0) // 3
            torch.cuda.set_per_process_memory_fraction(room / total, self.device)
            try:
                yield
            finally:
                torch.cuda.set_per_process_memory_fraction(1.0, self.device)
            return
        largest = (side // 2) ** 2

        def refuse(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            if output.ndim == 4 and output.shape[-2] * output.shape[-1] > largest:
                raise torch.cuda.OutOfMemoryError("out of memory: limited by the self-test")

        hooks = [m.register_forward_hook(refuse) for m in model.autoencoder.modules() if isinstance(m, nn.Conv2d)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


class _Stoppable(Runtime):
    """A runtime whose runs end when `stop` was called."""

    def __init__(self) -> None:
        self.stopped_at = math.inf

    def stop(self) -> None:
        self.stopped_at = time.perf_counter()

    def check(self) -> None:
        if self.stopped_at <= time.perf_counter():
            raise Stopped

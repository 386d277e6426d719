"""One process or many: what a stage of training needs of its device, and HF accelerate behind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import SettingError

NEEDED = "training needs HF accelerate: pip install 'moesr[train]', or pip install accelerate tensorboard"

#: How `accelerate launch` may spread a run: every process has all the weights.
_KINDS = ("NO", "MULTI_GPU", "MULTI_CPU", "MULTI_XPU", "MULTI_NPU", "MULTI_MLU", "MULTI_MUSA", "MULTI_SDAA")

Steps = tuple[torch.optim.Optimizer, Sequence[nn.Parameter] | None]


class Engine:
    """Steps of training in one process on one device."""

    processes, process, parts, main = 1, 0, 1, True

    def __init__(self, device: torch.device, scaler: Any = None) -> None:
        self.device = device
        self.scaler = scaler  # of gradients in fp16; None for other precisions

    def part(self) -> AbstractContextManager[object]:
        """Inside the block one part of a process's share of a batch is worked on; `step` acts in the last part."""
        return nullcontext()

    def forward(self, modules: nn.Module, function: Callable[..., Any], *inputs: Any) -> Any:
        """function(*inputs). Gradients of its outputs reach the parameters of `modules` in all processes."""
        return function(*inputs)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a scalar."""
        loss.backward()

    def step(self, *steps: Steps) -> bool:
        """Make one step of each optimiser. Gradients of its parameters are first clipped to a norm of 1 (None: not).

        Returns False, and does nothing, where the batch has more parts. Leave out optimisers without gradients.
        """
        scaler = self.scaler
        for optimiser, parameters in steps:
            if scaler is not None:
                scaler.unscale_(optimiser)
            if parameters is not None:
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step() if scaler is None else scaler.step(optimiser)
            optimiser.zero_grad(set_to_none=True)
        if scaler is not None:
            scaler.update()
        return True

    def average(self, value: Tensor) -> Tensor:
        """The mean of a tensor over all processes, differentiable; the same on all of them."""
        return value

    def gather(self, items: Tensor) -> Tensor:
        """The items of this part of the batch of all processes, in the order of the batch."""
        return items

    def average_numbers(self, values: dict[str, float]) -> dict[str, float]:
        """Means of numbers over all processes."""
        return values

    def wait(self) -> None:
        """Wait until all processes are here."""

    def state_dict(self) -> dict[str, Any]:
        """The scaler's state; empty without one."""
        return {} if self.scaler is None else self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        if state and self.scaler is not None:
            self.scaler.load_state_dict(state)


class LaunchedEngine(Engine):
    """Steps on however many processes `accelerate launch` has started; on one by itself.

    A step's gradients are the means over the parts of every process's share of a batch, so all processes make the same
    step. accumulate: parts of a process's share; the launcher's --gradient_accumulation_steps wins. Raises
    SettingError where accelerate is missing, or is to run what this cannot (FSDP, DeepSpeed).
    """

    def __init__(self, accumulate: int = 1, precision: str = "fp32") -> None:
        try:
            from accelerate import Accelerator
        except ImportError as error:
            raise SettingError(NEEDED) from error
        self._spread: dict[int, nn.Module] = {}
        try:
            self.accelerator = Accelerator(
                gradient_accumulation_steps=accumulate,
                mixed_precision="fp16" if precision == "fp16" else None,
            )
        except ValueError as error:
            raise SettingError(f"precision {precision}: {' '.join(str(error).split())}") from error
        kind = self.accelerator.distributed_type.name
        if kind not in _KINDS:
            raise SettingError(f"accelerate is configured for {kind}: use plain data parallelism, --multi_gpu")
        super().__init__(self.accelerator.device, self.accelerator.scaler)
        self.processes, self.process = self.accelerator.num_processes, self.accelerator.process_index
        self.parts, self.main = self.accelerator.gradient_accumulation_steps, self.accelerator.is_main_process

    def part(self) -> AbstractContextManager[object]:
        return self.accelerator.accumulate(*self._spread.values())

    def forward(self, modules: nn.Module, function: Callable[..., Any], *inputs: Any) -> Any:
        if self.processes == 1:
            return function(*inputs)
        if id(modules) not in self._spread:
            if self.device.type == "cuda":  # its kernels know no other device
                nn.SyncBatchNorm.convert_sync_batchnorm(modules)
            self._spread[id(modules)] = self.accelerator.prepare(_Calls(modules))
        return self._spread[id(modules)](function, *inputs)

    def backward(self, loss: Tensor) -> None:
        self.accelerator.backward(loss)

    def step(self, *steps: Steps) -> bool:
        return self.accelerator.sync_gradients and super().step(*steps)

    def average(self, value: Tensor) -> Tensor:
        if self.processes == 1:
            return value
        from torch.distributed.nn.functional import all_reduce

        return all_reduce(value.contiguous()) / self.processes

    def gather(self, items: Tensor) -> Tensor:
        if self.processes == 1:
            return items
        of_all: Any = self.accelerator.gather(items.contiguous())  # [processes * B, ...], one process after the other
        return of_all.unflatten(0, (self.processes, -1)).transpose(0, 1).flatten(0, 1)

    def average_numbers(self, values: dict[str, float]) -> dict[str, float]:
        if self.processes == 1:
            return values
        numbers = torch.tensor(list(values.values()), dtype=torch.float64, device=self.device)
        dist.all_reduce(numbers)
        return dict(zip(values, (numbers / self.processes).tolist()))

    def wait(self) -> None:
        self.accelerator.wait_for_everyone()


class _Calls(nn.Module):
    """Calls functions that use its modules: DDP needs to see only when they begin and what they give."""

    def __init__(self, modules: nn.Module) -> None:
        super().__init__()
        self.inner = modules

    def forward(self, function: Callable[..., Any], *inputs: Any) -> Any:
        return function(*inputs)

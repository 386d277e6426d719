"""One process or many: HF accelerate behind the few things that a stage of training needs of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import SettingError

NEEDED = "training needs HF accelerate: pip install 'moesr[train]', or pip install accelerate tensorboard"

#: How `accelerate launch` may spread a run: every process has all the weights.
_KINDS = ("NO", "MULTI_GPU", "MULTI_CPU", "MULTI_XPU", "MULTI_NPU", "MULTI_MLU", "MULTI_MUSA", "MULTI_SDAA")


class Engine:
    """Steps of training on however many processes `accelerate launch` has started; on one by itself.

    A step's gradients are the means over the `accumulate` parts of every process's share of a batch, so all processes
    make the same step. accumulate: parts of a process's share; the launcher's --gradient_accumulation_steps wins.
    Raises SettingError where accelerate is missing, or is to run what this cannot (FSDP, DeepSpeed).
    """

    def __init__(self, accumulate: int = 1, precision: str = "fp32") -> None:
        self._accumulate, self._precision = accumulate, precision
        self._spread: dict[int, nn.Module] = {}

    @cached_property
    def accelerator(self) -> Any:
        """The accelerate.Accelerator."""
        try:
            from accelerate import Accelerator, DistributedDataParallelKwargs
        except ImportError as error:
            raise SettingError(NEEDED) from error
        self._options = DistributedDataParallelKwargs()
        try:
            accelerator = Accelerator(
                gradient_accumulation_steps=self._accumulate,
                mixed_precision="fp16" if self._precision == "fp16" else None,
                kwargs_handlers=[self._options],
            )
        except ValueError as error:
            raise SettingError(f"precision {self._precision}: {' '.join(str(error).split())}") from error
        kind = accelerator.distributed_type.name
        if kind not in _KINDS:
            raise SettingError(f"accelerate is configured for {kind}: use plain data parallelism, --multi_gpu")
        return accelerator

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return self.accelerator.device

    @property
    def processes(self) -> int:
        """How many processes there are."""
        return self.accelerator.num_processes

    @property
    def process(self) -> int:
        """Which of them this is."""
        return self.accelerator.process_index

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes."""
        return self.accelerator.is_main_process

    @property
    def parts(self) -> int:
        """Into how many parts a process cuts its share of a batch."""
        return self.accelerator.gradient_accumulation_steps

    @contextmanager
    def part(self) -> Iterator[None]:
        """Work on one part of a process's share of a batch; in the last of a step, `step` takes it."""
        with self.accelerator.accumulate(*self._spread.values()):
            yield

    def forward(self, modules: nn.Module, function: Callable[..., Any], *inputs: Any, partly: bool = False) -> Any:
        """function(*inputs), whose outputs' gradients reach the parameters of `modules` in all processes.

        partly: some of these parameters may get no gradient.
        """
        if self.processes == 1:
            return function(*inputs)
        if id(modules) not in self._spread:
            share_norms(modules)
            self._options.find_unused_parameters = partly
            self._spread[id(modules)] = self.accelerator.prepare(_Calls(modules))
        return self._spread[id(modules)](function, *inputs)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a scalar."""
        self.accelerator.backward(loss)

    def step(self, *optimisers: tuple[torch.optim.Optimizer, Sequence[nn.Parameter] | None]) -> bool:
        """One step of each optimiser, after the gradients of its parameters are clipped to a norm of 1 (None: not).

        False where the batch has more parts to come. Optimisers without gradients must be left out.
        """
        if not self.accelerator.sync_gradients:
            return False
        scaler = self.accelerator.scaler
        for optimiser, parameters in optimisers:
            if scaler is not None:
                scaler.unscale_(optimiser)
            if parameters is not None:
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            if scaler is None:
                optimiser.step()
            else:
                scaler.step(optimiser)
            optimiser.zero_grad(set_to_none=True)
        if scaler is not None:
            scaler.update()
        return True

    def average(self, value: Tensor) -> Tensor:
        """The mean of a tensor over all processes, differentiable; the same on all of them."""
        return value if self.processes == 1 else _Sum.apply(value) / self.processes

    def gathered(self, items: Tensor) -> Tensor:
        """The items of this part of the batch of all processes, in the order of the batch."""
        if self.processes == 1:
            return items
        of_all = self.accelerator.gather(items.contiguous())  # [processes * B, ...], one process after the other
        return of_all.unflatten(0, (self.processes, -1)).transpose(0, 1).flatten(0, 1)

    def means(self, values: dict[str, float]) -> dict[str, float]:
        """Means of numbers over all processes."""
        if self.processes == 1:
            return values
        numbers = torch.tensor(list(values.values()), dtype=torch.float64, device=self.device)
        dist.all_reduce(numbers)
        return dict(zip(values, (numbers / self.processes).tolist()))

    def wait(self) -> None:
        """Until all processes are here."""
        self.accelerator.wait_for_everyone()

    def state_dict(self) -> dict[str, Any]:
        """The scaler of fp16; empty for other precisions."""
        scaler = self.accelerator.scaler
        return {} if scaler is None else scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state)


class SingleProcess(Engine):
    """An engine of one process on a given device, for which accelerate is not needed."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device

    device = property(lambda self: self._device)
    processes = property(lambda self: 1)
    process = property(lambda self: 0)
    main = property(lambda self: True)
    parts = property(lambda self: 1)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self, *optimisers: tuple[torch.optim.Optimizer, Sequence[nn.Parameter] | None]) -> bool:
        for optimiser, parameters in optimisers:
            if parameters is not None:
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        return True

    def wait(self) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {}


class _Calls(nn.Module):
    """Calls functions that use its modules: DDP needs to see only when they begin and what they give."""

    def __init__(self, modules: nn.Module) -> None:
        super().__init__()
        self.inner = modules

    def forward(self, function: Callable[..., Any], *inputs: Any) -> Any:
        return function(*inputs)


class SharedBatchNorm(nn.BatchNorm2d):
    """Batch norm over the batch of all processes together, on any device. Its running statistics are equal on all."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        x = input.float()
        count = _Sum.apply(x.new_tensor([x.numel() / x.shape[1]]))
        mean = _Sum.apply(x.sum((0, 2, 3))) / count
        centred = x - mean[:, None, None]
        variance = _Sum.apply(centred.square().sum((0, 2, 3))) / count
        self._keep(mean.detach(), (variance * count / (count - 1)).detach())
        scale = (variance + self.eps).rsqrt() * self.weight
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(input.dtype)

    @torch.no_grad()
    def _keep(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)
        self.num_batches_tracked += 1


def share_norms(module: nn.Module) -> None:
    """Batch norms of `module` become SharedBatchNorm, with the same parameters and buffers."""
    for norm in module.modules():
        if type(norm) is nn.BatchNorm2d:
            norm.__class__ = SharedBatchNorm


class _Sum(torch.autograd.Function):
    """Sum over all processes; so is its gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

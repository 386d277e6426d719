"""What training does to weights, and the frequency loss."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from moesr.networks.space_moe import SpaceMoE, average_experts, exchange_weights
from moesr.training.ema import EMA
from moesr.training.losses import focal_frequency_loss

from .case import Case

GRADIENT = 1e-4


@torch.no_grad()
def exchange(case: Case) -> None:
    """EWA on one layer, its grouped and its averaged form. gamma is 1 - beta of the reference's ramp."""
    weights = case.weights()
    dim, experts = case.config["dim"], case.config["num_expert"]
    x, permutation = case.inputs["x"], case.inputs["perm"]

    def layer(state: dict[str, Tensor], count: int) -> SpaceMoE:
        module = SpaceMoE(dim, count)
        module.load_state_dict(state)
        return module.eval()

    case.compare("grouped.y", layer(weights, experts)(x, permutation))
    mean = average_experts(weights)
    case.compare("averaged.y", layer(mean, 1)(x))
    for key in case.named("weight_averaging_fixed."):
        got = layer(mean, 1)(x) if key == "y" else mean[key]
        case.compare(f"weight_averaging_fixed.{key}", got)
    case.not_ours("weight_averaging_buggy.*", "a flaw of the reference: it sums where it should average")
    for step, beta in case.meta["beta"].items():
        case.expect(f"beta at step {step}", beta, min(0.3e-4 * int(step), 0.3), rtol=1e-12)
        module = layer(weights, experts)
        exchange_weights(module, gamma=1 - beta)
        after = module.state_dict()
        for key in case.named(f"step{step}."):
            case.compare(f"step{step}.{key}", after[key])
        for key in ("moe_norm.weight", "moe_norm.bias"):
            case.expect(f"{key} after step {step} is untouched", torch.equal(after[key], weights[key]), True)


def ema(case: Case) -> None:
    """The moving average along recorded parameters, and its decay at any update."""
    case.expect("warm-up", case.config["use_num_updates"], True)
    # Names of a ParameterDict have no dots.
    start = {k.removeprefix("init.").replace(".", "/"): v for k, v in case.inputs.items() if k.startswith("init.")}
    module = nn.ParameterDict({name: nn.Parameter(value.clone()) for name, value in start.items()})
    average = EMA(module, case.config["decay"])
    for step in sorted(map(int, case.tags(r"model_after_step(\d+)\..+"))):
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                parameter.copy_(case.inputs[f"model_after_step{step}.{name.replace('/', '.')}"])
        average.update(module)
        case.expect(f"updates after step {step}", average.updates, case.meta["log"][step]["num_updates"])
        case.expect(f"decay of step {step}", average.rate(), case.meta["log"][step]["decay"], rtol=1e-6)
        for name, value in average.weights(module).items():
            case.compare(f"ema_after_step{step}.{name.replace('/', '.')}", value)
    for updates, decay in case.meta["decay_at"]:
        average.updates = updates
        case.expect(f"decay of update {updates}", average.rate(), decay, rtol=1e-6)


def frequency_loss(case: Case) -> None:
    """The loss in every recorded variant; `equal` compares an image with itself."""
    for variant in sorted({key.rpartition(".")[0] for key in case.outputs}):
        prediction = case.inputs["pred"].clone().requires_grad_()
        target = prediction.detach() if variant == "equal" else case.inputs["target"]
        loss = focal_frequency_loss(prediction, target, **_options(variant))
        case.compare(f"{variant}.loss", loss.reshape(1))
        if variant in case.meta.get("losses", {}):
            case.expect(f"{variant} in the json", loss.item(), case.meta["losses"][variant], rtol=2e-5)
        if f"{variant}.grad_pred" in case.outputs:
            (gradient,) = torch.autograd.grad(loss, prediction)
            case.compare(f"{variant}.grad_pred", gradient, rtol=GRADIENT)


def _options(variant: str) -> dict[str, Any]:
    """`alpha2_log` and the like as arguments."""
    flags = {"log": "log_weights", "batch": "batch_weights", "ave": "average_spectrum"}
    options: dict[str, Any] = {}
    for word in variant.split("_"):
        number = re.fullmatch(r"(alpha|patch)([\d.]+)", word)
        if number:
            name, value = number.groups()
            options |= {"alpha": float(value)} if name == "alpha" else {"patches": int(value)}
        elif word in flags:
            options[flags[word]] = True
        else:
            assert word in ("default", "equal"), f"variant {variant!r} of the loss is unknown"
    return options

"""Which parameters a phase learns, and how fast."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from tritoncrf.files import FileError
from tritoncrf.models.checkpoints import expect_finite, field, number
from tritoncrf.models.config import Optimizer, Phase
from tritoncrf.models.segmenter import Segmenter, WithCRF

# What each kind of phase learns of the parameters of the CRF and of the network.
LEARNS = {"unary": (False, True), "crf": (True, False), "all": (True, True), "statistics": (False, False)}


MOMENTUM = 0.1  # of batch norm's running averages


def matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def select(model: Segmenter, phase: Phase) -> list[str]:
    """Switch the gradients of `model` on for what `phase` learns, off for the rest; the names of what it learns."""
    crf, network = LEARNS[phase.train]
    learnt = []
    for name, parameter in model.named_parameters():
        wanted = crf if name.startswith("crf.") else network
        fixed = matches(name, phase.freeze) or parameter_is_fixed(model, name)
        parameter.requires_grad_(wanted and not fixed)
        if parameter.requires_grad:
            learnt.append(name)
    return learnt


def expect_learnable(model: Segmenter, phase: Phase) -> None:
    """An error if `phase` learns nothing of `model`, or names parameters that are not there."""
    names = [name for name, _ in model.named_parameters()]
    patterns: dict[str, Iterable[str]] = {"freeze": phase.freeze}
    if phase.optimizer is not None:
        patterns["optimizer.multipliers"] = phase.optimizer.multipliers
        patterns["optimizer.also_decay"] = phase.optimizer.also_decay
    for key, given in patterns.items():
        for pattern in given:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ValueError(
                    f"phases.{phase.name}.{key}: expected patterns of parameters' names, such as {names[0]!r}, got "
                    f"{pattern!r}, which matches none"
                )
    if phase.train != "statistics" and not select(model, phase):
        raise ValueError(f"phases.{phase.name}: expected something to learn, got no parameter that is learnt")


def parameter_is_fixed(model: Segmenter, name: str) -> bool:
    """Whether the network that holds a parameter never learns it: the bilinear kernels of its last upsampling."""
    owner = model.network if isinstance(model, WithCRF) and name.startswith("network.") else model
    return matches(name.removeprefix("network."), owner.frozen)


def batch_norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def set_modes(model: Segmenter, phase: Phase) -> None:
    """Training mode for what learns: a frozen network evaluates, without dropout and with its averages.

    Statistics are plain averages over all batches that are seen, where training lets the older ones fade: those of
    torch's `update_bn`, which begins anew each time, where a run that was killed goes on, and draws dropout.
    """
    model.train(phase.train in ("unary", "all"))
    if phase.train == "crf" and model.crf is not None:
        model.crf.train()
    for norm in batch_norms(model):
        norm.momentum = None if phase.train == "statistics" else MOMENTUM
        norm.training |= phase.train == "statistics"


def optimizer(model: nn.Module, options: Optimizer) -> torch.optim.Optimizer:
    """Over the parameters that learn, in groups of one learning rate and decay; each group knows its rate as "base"."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate = options.lr
            for pattern, factor in options.multipliers.items():
                rate *= factor if fnmatchcase(name, pattern) else 1.0
            kernel = parameter.ndim == 4 or (parameter.ndim == 2 and name.endswith(".weight"))
            decays = kernel or matches(name, options.also_decay)
            groups.setdefault((rate, options.weight_decay * decays), []).append(parameter)
    listed = [{"params": p, "lr": rate, "base": rate, "weight_decay": decay} for (rate, decay), p in groups.items()]
    if options.name != "sgd":
        return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[options.name](listed)
    return torch.optim.SGD(listed, lr=options.lr, momentum=options.momentum)


def restore(optimizer: torch.optim.Optimizer, saved: dict[str, Any], where: str) -> None:
    """Go on from what an equal optimizer left in a checkpoint; of its options only the rates are taken.

    Raises:
        FileError: of another optimizer, or not sound; the message begins with `where`.
    """
    groups, state = field(saved, "param_groups", list, where), field(saved, "state", dict, where)
    own = optimizer.state_dict()["param_groups"]
    if [group.get("params") if isinstance(group, Mapping) else None for group in groups] != [g["params"] for g in own]:
        raise FileError(f"{where}param_groups: expected the parameters that this phase learns, got others")
    for mine, group in zip(own, groups):
        mine["lr"] = number(group.get("lr"), f"{where}param_groups.lr")
    if not state:
        raise FileError(f"{where}state: expected that of the parameters, got none")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    names = {"exp_avg", "exp_avg_sq", "step"} if isinstance(optimizer, torch.optim.Adam) else {"momentum_buffer"}
    for n, entries in state.items():
        if type(n) is not int or not 0 <= n < len(parameters) or not isinstance(entries, dict) or set(entries) != names:
            raise FileError(
                f"{where}state: expected {', '.join(sorted(names))} of each parameter, got others for {n!r}"
            )
        for name, value in entries.items():
            if value is None and name == "momentum_buffer":
                continue
            expect_finite(value, f"{where}state.{n}.{name}")
            if value.shape != (shape := parameters[n].shape if name != "step" else torch.Size()):
                raise FileError(f"{where}state.{n}.{name}: expected shape {list(shape)}, got {list(value.shape)}")
    optimizer.load_state_dict({"state": state, "param_groups": own})


def set_rates(optimizer: torch.optim.Optimizer, power: float, done: float) -> None:
    """lr = base (1 - done)^power, `done` being the share of the phase's steps that are taken.

    The rates of torch's `PolynomialLR`, which multiplies its way from one step to the next: its rounding adds up, and a
    run that goes on would have to save where it was. Here the number of the step is all.
    """
    for group in optimizer.param_groups:
        group["lr"] = group["base"] * (1 - done) ** power

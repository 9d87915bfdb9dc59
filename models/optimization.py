"""The parameters that a phase trains, and their learning rates."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from tritoncrf.files import FileError
from tritoncrf.models.checkpoints import expect_finite, field, number
from tritoncrf.models.config import Optimizer, Phase
from tritoncrf.models.segmenter import Segmenter, WithCRF

# Whether each kind of phase trains the parameters of the CRF and of the network.
LEARNS = {"unary": (False, True), "crf": (True, False), "all": (True, True), "statistics": (False, False)}


MOMENTUM = 0.1  # of batch norm's running averages


def matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def select(model: Segmenter, phase: Phase) -> list[str]:
    """Enable the gradients of the parameters that `phase` trains, disable all others, and return the names of the
    former."""
    crf, network = LEARNS[phase.train]
    learned = []
    for name, parameter in model.named_parameters():
        wanted = crf if name.startswith("crf.") else network
        fixed = matches(name, phase.freeze) or parameter_is_fixed(model, name)
        parameter.requires_grad_(wanted and not fixed)
        if parameter.requires_grad:
            learned.append(name)
    return learned


def expect_learnable(model: Segmenter, phase: Phase) -> None:
    """Raise an error if `phase` trains no parameter of `model`, or names parameters that do not exist."""
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
        raise ValueError(f"phases.{phase.name}: expected something to learn, got no parameter that is learned")


def parameter_is_fixed(model: Segmenter, name: str) -> bool:
    """Whether a network never trains a parameter, such as the bilinear kernel of its last upsampling."""
    owner = model.network if isinstance(model, WithCRF) and name.startswith("network.") else model
    return matches(name.removeprefix("network."), owner.frozen)


def batch_norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def set_modes(model: Segmenter, phase: Phase) -> None:
    """Training mode for what is trained; a frozen network stays in evaluation mode, without dropout and with its
    running averages.

    Statistics are plain averages over all batches, while training weights recent ones more. Torch's `update_bn`
    computes the same, but starts anew each time, so that a killed run could not resume, and applies dropout.
    """
    model.train(phase.train in ("unary", "all"))
    if phase.train == "crf" and model.crf is not None:
        model.crf.train()
    for norm in batch_norms(model):
        norm.momentum = None if phase.train == "statistics" else MOMENTUM
        norm.training |= phase.train == "statistics"


def optimizer(model: nn.Module, options: Optimizer) -> torch.optim.Optimizer:
    """The optimizer of the trained parameters, grouped by learning rate and decay; each group keeps its initial rate as
    "base"."""
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
    """Restore the state of the same optimizer from a checkpoint; of its options, only the rates are used.

    Raises:
        FileError: the state is invalid or belongs to another optimizer; the message begins with `where`.
    """
    groups, state = field(saved, "param_groups", list, where), field(saved, "state", dict, where)
    own = optimizer.state_dict()["param_groups"]
    if [group.get("params") if isinstance(group, Mapping) else None for group in groups] != [g["params"] for g in own]:
        raise FileError(f"{where}param_groups: expected the parameters that this phase trains, got others")
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
    """lr = base (1 - done)^power, where `done` is the share of the phase's steps that are completed.

    These are the rates of torch's `PolynomialLR`, which multiplies from step to step: its rounding errors add up, and a
    run would have to save its state. Here the number of the step is enough.
    """
    for group in optimizer.param_groups:
        group["lr"] = group["base"] * (1 - done) ** power

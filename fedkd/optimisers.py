"""Optimiser steps on many models at once: rows of one matrix, each with its own moments and count.

SGD, Adam and AdamW are written for rows, so that clients with unequal numbers of steps share a
pass; their formulas are those of `torch.optim`, to which they are held by tests. Any other
optimiser of `torch.optim` runs by itself, on a stack of one.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.optim import lr_scheduler

from fedkd.config import SGD, Adam, ConfigError, Named, TorchOptimizer
from fedkd.faults import shown
from fedkd.types import State

Rate = float | Tensor  # one learning rate for all rows, or one a row [n, 1]
# one step: (rows a..b, gradient [b - a, P], learning rate) -> None
Update = Callable[[slice, Tensor, Rate], None]


def stackable(spec: SGD | Adam | TorchOptimizer) -> bool:
    """Whether models with this optimiser may share a pass."""
    return not isinstance(spec, TorchOptimizer)


def start(spec: SGD | Adam, flat: Tensor, kept: State | None) -> tuple[State, Update]:
    """The state of K rows (fresh, or a copy of `kept`), and the step that changes both."""
    names = ["m", "v"] if isinstance(spec, Adam) else ["m"] if spec.momentum else []
    state = {n: torch.zeros_like(flat) for n in names}
    state["steps"] = torch.zeros(len(flat), 1, dtype=torch.float64)
    if kept:
        state = {n: kept[n].to(flat.device).clone() for n in state}
    state["steps"] = state["steps"].cpu()

    def update(rows: slice, gradient: Tensor, lr: Rate) -> None:
        if spec.clip_norm is not None:
            norm = gradient.norm(dim=1, keepdim=True)
            gradient = gradient * (spec.clip_norm / (norm + 1e-6)).clamp_max(1)
        state["steps"][rows] += 1
        own = {n: t[rows] for n, t in state.items()}
        if isinstance(spec, Adam):
            _adam(spec, flat[rows], gradient, own, lr)
        else:
            _sgd(spec, flat[rows], gradient, own, lr)

    return state, update


def _sgd(spec: SGD, flat: Tensor, gradient: Tensor, state: State, lr: Rate) -> None:
    if spec.weight_decay:
        gradient = gradient.add(flat, alpha=spec.weight_decay)
    if spec.momentum:
        m = state["m"].mul_(spec.momentum).add_(gradient)
        gradient = gradient.add(m, alpha=spec.momentum) if spec.nesterov else m
    if isinstance(lr, Tensor):
        flat.sub_(lr * gradient)
    else:
        flat.add_(gradient, alpha=-lr)


def _adam(spec: Adam, flat: Tensor, gradient: Tensor, state: State, lr: Rate) -> None:
    beta1, beta2 = spec.betas
    if spec.weight_decay and spec.name == "adamw":
        flat.mul_(1 - lr * spec.weight_decay)
    elif spec.weight_decay:
        gradient = gradient.add(flat, alpha=spec.weight_decay)
    m = state["m"].lerp_(gradient, 1 - beta1)
    v = state["v"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    steps = state["steps"]
    if not isinstance(lr, Tensor) and bool(
        (steps == steps[0]).all()
    ):  # the ordinary case: numbers, not tensors
        t = float(steps[0])
        root = v.sqrt().div_((1 - beta2**t) ** 0.5).add_(spec.eps)
        flat.addcdiv_(m, root, value=-lr / (1 - beta1**t))
        return
    correction1 = (1 - beta1**steps).to(flat)
    correction2 = (1 - beta2**steps).sqrt().to(flat)
    root = v.sqrt().div_(correction2).add_(spec.eps)
    flat.sub_(lr * (m / correction1) / root)


def torch_optimizer(
    spec: TorchOptimizer, where: str
) -> Callable[[Sequence[Tensor]], torch.optim.Optimizer]:
    """The factory of an optimiser of `torch.optim`, which has made a step with these parameters.

    Raises `ConfigError` if there is none of that name, or if it cannot.
    """
    name = spec.name.partition(":")[2]
    found = getattr(torch.optim, name, None)
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        raise ConfigError(
            f"{where}.name: torch.optim has no optimiser {shown(name)}; it has"
            f" {', '.join(_classes(torch.optim, torch.optim.Optimizer))}"
        )
    kind: Any = found  # Any: each optimiser has its own signature
    make = functools.partial(kind, lr=spec.lr, **spec.params)
    weight = torch.zeros(1)
    weight.grad = torch.ones(1)
    try:
        make([weight]).step()
    except Exception as error:  # each has its own way to refuse
        raise _refused(where, f"torch.optim.{name}", error) from None
    if not bool(torch.isfinite(weight)):
        raise ConfigError(
            f"{where}: torch.optim.{name} should make a finite step with its parameters, found"
            f" {float(weight)}; change them"
        )
    return make


def schedule(spec: Named | None, epochs: int, where: str) -> list[float]:
    """The factor on the learning rate in each of so many epochs, by `torch.optim.lr_scheduler`.

    Raises `ConfigError` for an unknown scheduler, for parameters that it refuses, at once or in one
    of these epochs, and for a factor that is none.
    """
    if spec is None:
        return [1.0] * epochs
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    kind = getattr(lr_scheduler, spec.name, None)
    if not (isinstance(kind, type) and issubclass(kind, lr_scheduler.LRScheduler)):
        raise ConfigError(
            f"{where}.name: torch.optim.lr_scheduler has no scheduler {shown(spec.name)}; it has"
            f" {', '.join(_classes(lr_scheduler, lr_scheduler.LRScheduler))}"
        )
    factors: list[float] = []
    try:
        scheduler = kind(optimizer, **spec.params)
        for _ in range(epochs):
            factors.append(float(optimizer.param_groups[0]["lr"]))
            optimizer.step()
            scheduler.step()
    except Exception as error:  # each has its own way to refuse
        raise _refused(where, f"{spec.name} in epoch {max(1, len(factors))}", error) from None
    odd = [factor for factor in factors if not 0 <= factor < math.inf]
    if odd:
        raise ConfigError(
            f"{where}: {spec.name} should give finite factors of at least 0, found {odd[0]} in"
            f" epoch {factors.index(odd[0]) + 1}; change its parameters"
        )
    return factors


def _classes(home: ModuleType, kind: type) -> list[str]:
    """What a module of torch offers by name."""
    found = {n: v for n, v in vars(home).items() if isinstance(v, type) and issubclass(v, kind)}
    return sorted(n for n, v in found.items() if v is not kind and n[0] != "_")


def _refused(where: str, name: str, error: Exception) -> ConfigError:
    said = " ".join(str(error).split())
    return ConfigError(
        f"{where}: {name} should take its parameters, found {type(error).__name__}:"
        f" {said[:300]}; change them"
    )

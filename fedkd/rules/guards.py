"""Rules around rules: what one round showed of a client counts in the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pydantic import InstanceOf
from torch import Generator

from fedkd import parameters
from fedkd.rules import robust, weightings
from fedkd.transforms import combine, consensus_of, row_blocks
from fedkd.types import Linear, NonNegative, Predictions, Shape, State, Step, Transform

Rule = Linear | Transform

_GUARDED = (
    robust.geometric_median,
    robust.krum,
    robust.median,
    robust.multi_krum,
    robust.spectral_filter,
    robust.trimmed_mean,
    weightings.geometric_mean,
    weightings.mean,
)
_INSIDE: Mapping[str, Callable[..., Rule]] = {f.__name__: f for f in _GUARDED}


def expguard(
    rule: InstanceOf[Linear] | InstanceOf[Transform] | str | dict[str, Any] = "median",
    eta: NonNegative = 1.0,
) -> Transform:
    """q = sum_k w_k p_k / sum_k w_k,  w_k <- w_k exp(-eta s_k),  s_k = mean_x ||p_k - A(p)||_2.

    A is `rule`: a rule, the name of one, or a mapping with its name and parameters. s_k is the mean
    over the rows that k answered and A has a target for. Weights begin equal and last over rounds;
    who is away keeps its weight. C. Roux, M. Zimmer, S. Pokutta, ICLR 2025. The paper's eta is not
    known to us; 1 makes one of ten liars that always differs by sqrt(2) count 1/4 after a round.
    Its own trust is not read, as with the rules that it guards.
    """
    inner = _ruled(rule)
    if inner.needs:
        raise ValueError(
            f"expguard.rule: should need answers alone, found one that needs"
            f" {', '.join(sorted(inner.needs))}; guard another rule"
        )

    def init(shape: Shape) -> State:
        own = {"log_weights": torch.zeros(shape.parties, dtype=torch.float64)}
        return own | {f"rule/{k}": v for k, v in _begun(inner, shape).items()}

    def apply(state: State, given: Predictions, rng: Generator) -> Step:
        inside = {k.removeprefix("rule/"): v for k, v in state.items() if k.startswith("rule/")}
        done = combine(inner, inside, given, rng)
        judged, here = done.result, given.parties
        answered = given.mask & (torch.where(given.mask, given.trust, 0) > 0)
        j, r, s = given.scores.shape
        compared = answered & judged.mask
        gap = torch.zeros(j, dtype=torch.float64)
        blocks = row_blocks(j, r, s)
        for b in blocks:
            away = torch.where(compared[:, b, None], given.scores[:, b], 0).double()
            away = away - torch.where(compared[:, b, None], judged.scores[:, b], 0)
            gap += away.norm(dim=-1).sum(1)
        gap /= compared.sum(1).clamp_min(1)

        logs = state["log_weights"].clone()
        logs[here] -= eta * gap
        logs -= logs.max()  # only ratios count, and e^x is 0 below -745
        scores = torch.zeros(r, s, dtype=torch.float64)
        for b in blocks:
            # relative to the row's best, so that those who are there have a weight between them
            own = logs[here].unsqueeze(-1).expand(j, -1).masked_fill(~answered[:, b], -torch.inf)
            top = own.amax(0)
            weight = (own - top.masked_fill(top == -torch.inf, 0)).exp()
            values = torch.where(answered[:, b, None], given.scores[:, b], 0).double()
            total = weight.sum(0).unsqueeze(-1)
            scores[b] = (weight.unsqueeze(-1) * values).sum(0) / torch.where(total > 0, total, 1)
        share = logs.softmax(0)
        return Step(
            {"log_weights": logs} | {f"rule/{k}": v for k, v in done.state.items()},
            consensus_of(given, scores, answered.any(0)),
            {**done.facts, "effective_clients": float(1 / share.square().sum())},
        )

    kept = inner.traits & {"counts_clients", "personal"}
    return Transform(init, apply, traits=frozenset({"robust", "batchwise", *kept}))


def _begun(rule: Rule, shape: Shape) -> State:
    return {} if isinstance(rule, Linear) else rule.init(shape)


def _ruled(rule: Rule | str | dict[str, Any]) -> Rule:
    """The rule that a config or a caller means."""
    if isinstance(rule, Linear | Transform):
        return rule
    given: dict[str, Any] = {"name": rule} if isinstance(rule, str) else dict(rule)
    name = str(given.pop("name", None))
    if name not in _INSIDE:
        raise ValueError(
            f"expguard.rule: should be one of {', '.join(sorted(_INSIDE))}, found {name!r}; choose"
            " one of them, or give a rule of your own from Python"
        )
    checked = parameters.check(_INSIDE[name], given, taken=0, label=name, where="expguard.rule")
    return _INSIDE[name](**checked)

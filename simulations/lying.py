"""Some clients lie: what they say about the public rows is not what honest models would say."""

from dataclasses import replace
from functools import cache
from typing import Literal

import torch

from fedkd import attacks
from fedkd.rng import SERVER, SETUP, stream
from fedkd.types import (
    Fraction,
    Natural,
    NonNegative,
    Positive,
    Share,
    World,
    as_they_are,
    identity,
)

How = Literal[
    "labels", "flip", "random", "random_label", "same", "fdla", "pcfdla",
    "second_best", "lma", "cpa", "hips_lma", "hips_cpa", "lie", "paf", "ofom",
]  # fmt: skip


def lying(
    fraction: Share = 0.2,
    how: How = "flip",
    share_of_rows: Fraction = 1.0,
    label: Natural | None = None,
    pair: tuple[Natural, Natural] | None = None,
    peak: Fraction | None = None,
    z: NonNegative | None = None,
    distance: Positive | None = None,
    seed: Natural = 0,
) -> World:
    """fraction * K of the clients, rounded, at least one, always the same, drawn from `seed`.

    A fraction of 0 is nobody, and then the run is that of `everyone`. Formulas and sources are in
    `fedkd.attacks`; `share_of_rows` of the rows are lied about, other ones each round.

    labels: honest training on labels C - 1 - y, or on `pair` [from, to] alone. On the liar's own
    logits, before the method's upload: flip (negated), random (Gaussian), random_label, same (the
    class `label`, 0), fdla, pcfdla (a false `peak` of 0.7). Knowing the honest answers of the round
    and lying in what the method uploads: second_best, lma, cpa, hips_lma, hips_cpa, lie (`z` 1.5),
    paf, ofom (`distance` 10).
    """
    given = {"label": label, "pair": pair, "peak": peak, "z": z, "distance": distance}
    taken = {"same": "label", "labels": "pair", "pcfdla": "peak", "lie": "z",
             "paf": "distance", "ofom": "distance"}.get(how)  # fmt: skip
    if how == "labels" and share_of_rows < 1:
        given["share_of_rows"] = share_of_rows  # the whole model is wrong, about all rows
    for name, value in given.items():
        if value is not None and name != taken:
            raise ValueError(
                f"lying.{name}: should be left out where how is {how}, found {value}; remove it"
            )
    far = 10.0 if distance is None else distance
    lone: dict[str, attacks.Lie] = {
        "flip": attacks.negated,
        "random": attacks.gaussian,
        "random_label": attacks.random_label,
        "same": attacks.fixed_label(label or 0),
        "fdla": attacks.fdla,
        "pcfdla": attacks.pcfdla(0.7 if peak is None else peak),
    }
    omniscient: dict[str, attacks.Attack] = {
        "second_best": attacks.second_best,
        "lma": attacks.lma,
        "cpa": attacks.cpa,
        "hips_lma": attacks.hips_lma,
        "hips_cpa": attacks.hips_cpa,
        "lie": attacks.lie(1.5 if z is None else z),
        "paf": attacks.paf(far),
        "ofom": attacks.ofom(far),
    }

    @cache
    def liars(clients: int) -> frozenset[int]:
        count = max(1, round(fraction * clients)) if fraction else 0
        order = torch.randperm(clients, generator=stream(seed, SETUP, SERVER, "liars"))
        return frozenset(order[:count].tolist())

    world = World(participants=lambda round_, clients, rng: range(clients), liars=liars)
    if not fraction:
        return world
    if how in omniscient:
        return replace(world, conspire=attacks.conspiracy(omniscient[how], share_of_rows))
    if how == "labels":
        wrong = attacks.flip_labels(pair)
        return replace(world, labels=lambda c, k: wrong if c in liars(k) else as_they_are)
    told = attacks.lone(lone[how], share_of_rows)
    return replace(world, upload=lambda c, k: told if c in liars(k) else identity)

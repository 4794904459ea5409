"""What the literature leads one to expect of the order of methods, and whether it is so here."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedkd import drawing
from fedkd.reporting.statistics import LEAST_PAIRS, Spread, Verdict, signed_rank, spread
from fedkd.runs import Run
from simulations.studies import harness
from simulations.studies.harness import Findings, Given, Runs, Settings, Tree

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Figured = Callable[[Run], float]
Term = tuple[str, Figured]  # a setting, and what is read off its runs


def student(run: Run) -> float:
    """The student on the test samples, after the last round."""
    return harness.final(run)


def ensemble(run: Run) -> float:
    """The teachers' combined answers on the test samples, after the last round."""
    return harness.final(run, "ensemble/test")


def clients(run: Run) -> float:
    """The clients' own models on the test samples, their mean after the last round."""
    return harness.final(run, "teachers/test/mean")


def pooled(run: Run) -> float:
    """One model of the student's kind on all private samples."""
    return float(_yardsticks(run)["pooled"]["test"])


def local(run: Run) -> float:
    """Clients that train alone: the mean of their test accuracies."""
    last = _yardsticks(run)["local"]["test"][-1]
    return float(sum(last)) / len(last)


def first_half(run: Run) -> float:
    """The student on the test samples, the mean over the first half of the rounds."""
    half = run.records[: max(1, len(run.records) // 2)]
    return sum(float(record["student"]["test"]) for record in half) / len(half)


def first_round(run: Run) -> float:
    """The student on the test samples after one round."""
    return float(run.records[0]["student"]["test"])


def _yardsticks(run: Run) -> dict[str, Any]:  # Any: JSON
    found: dict[str, Any] = json.loads((run.folder / "yardsticks.json").read_text("utf-8"))
    return found


@dataclass(frozen=True, slots=True)
class Claim:
    """Σ more − Σ less > `by`; or, with `within`, |Σ more − Σ less| ≤ `within`. Parts of one."""

    of: str
    says: str
    more: tuple[Term, ...]
    less: tuple[Term, ...]
    by: float = 0.0
    within: float | None = None


@dataclass(frozen=True, slots=True)
class Judged:
    """A claim with its differences, a seed each, and what they say about it."""

    claim: Claim
    differences: tuple[float, ...]
    around: Spread
    p: float
    verdict: Verdict


def verdict(around: Spread, by: float = 0.0, within: float | None = None) -> Verdict:
    """Whether the 95 % interval of a mean difference lies on the claim's side, or on the other.

    Undecided where it has a part on either side, and with fewer than six seeds.
    """
    if around.count < LEAST_PAIRS or around.low is None or around.high is None:
        return "undecided"
    if within is not None:
        if around.low >= -within and around.high <= within:
            return "holds"
        return "reversed" if around.low > within or around.high < -within else "undecided"
    if around.low > by:
        return "holds"
    return "reversed" if around.high < by else "undecided"


def judged(claim: Claim, runs: Runs) -> Judged:
    """Differences seed by seed; the p is of the signed-rank test of their distance to `by`."""
    seeds = range(len(runs[claim.more[0][0]]))

    def total(terms: Sequence[Term], seed: int) -> float:
        return sum(figure(runs[setting][seed]) for setting, figure in terms)

    found = tuple(total(claim.more, seed) - total(claim.less, seed) for seed in seeds)
    around = spread(found)
    p = signed_rank([d - claim.by for d in found])
    return Judged(claim, found, around, p, verdict(around, claim.by, claim.within))


DIRICHLET = {"data.partition": harness.dirichlet()}
_MEASURED = {"labels": False, "metrics": False, "disagreement": False, "teachers": True}
CLIENTS = {"evaluation": {**_MEASURED, "pooled": False, "local": False}}
YARDSTICKS = {"evaluation": {**_MEASURED, "pooled": True, "local": True}}
ONE_CLASS = {"data.partition": {"name": "pathological", "classes_per_client": 1}}
TWO_CLASSES = {"data.partition": {"name": "pathological", "classes_per_client": 2}}
SA = {"name": "dsfl", "aggregation": "sa", "rows": None}
ERA = {"name": "dsfl", "aggregation": "era", "temperature": 0.1, "rows": None}
ENTROPY = {"combine": {"name": "entropy", "temperature": 0.2}}
ONE_BIT = {"codecs": {"up": ["simplex"], "down": []}}
MLP = {"name": "mlp", "hidden": [32]}
# Fashion-MNIST has enough samples for both sizes; a run on 5,000 of them takes ten times as long
MANY, FEW = {"data.public": 5000, "rounds": 2}, {"data.public": 500, "rounds": 2}


def _lied_to(how: str, rule: object) -> Mapping[str, Any]:
    return {
        "clients": [{"count": 15, "model": [MLP]}],
        "world": {"name": "lying", "how": how, "fraction": 0.4},
        "combine": rule,
    }


def _teachers(rule: str) -> Mapping[str, Any]:
    """Three teachers who learn alone, one of them on 30 % wrong labels; one distillation."""
    long = {"epochs": 20, "batch": 50, "optimizer": {"name": "adam", "lr": 0.002}}
    return {
        "rounds": 1,
        "clients": [{"count": 3, "model": [MLP]}],
        "data.public": {"size": 500, "labelled": True},
        "strategy": {"name": "one_shot"},
        "world": {"name": "noisy_labels", "share": 0.3, "fraction": 0.34},
        "combine": rule,
        "learning": dict.fromkeys(("private", "client", "server"), long),
    }


SETTINGS: Settings = {
    "sa, dirichlet": {**DIRICHLET, **YARDSTICKS},
    "sa, one class": ONE_CLASS,
    "selective, one class": {**ONE_CLASS, "strategy": {"name": "selective_fd"}},
    "sa, two classes": TWO_CLASSES,
    "era, two classes": {**TWO_CLASSES, "strategy": ERA},
    "sa, iid": {"strategy": SA},
    "era, iid": {"strategy": ERA},
    "lma, mean": _lied_to("lma", "mean"),
    "lma, median": _lied_to("lma", "median"),
    "lma, geometric median": _lied_to("lma", "geometric_median"),
    "lma, expguard": _lied_to("lma", {"name": "expguard", "rule": "median"}),
    "hips, mean": _lied_to("hips_lma", "mean"),
    "hips, median": _lied_to("hips_lma", "median"),
    "median, dirichlet": {**DIRICHLET, "combine": "median"},
    "filter, dirichlet": {**DIRICHLET, "combine": "spectral_filter"},
    "teachers, mean": _teachers("mean"),
    "teachers, ebkd": _teachers("ebkd"),
    "teachers, ca_mkd": _teachers("ca_mkd"),
    # no public set and no student: what is compared are the clients' own models
    "per label, dirichlet": {**DIRICHLET, **CLIENTS, "strategy": {"name": "fd"}},
    "weights, dirichlet": {**DIRICHLET, "strategy": {"name": "fedavg"}},
    "entropy, dirichlet": {**DIRICHLET, **ENTROPY},
    "entropy, iid": ENTROPY,
    "fedaux, dirichlet": {**DIRICHLET, "strategy": {"name": "fedaux"}},
    "feddf, dirichlet": {**DIRICHLET, "strategy": {"name": "feddf"}},
    "fedaux, iid": {"strategy": {"name": "fedaux"}},
    "feddf, iid": {"strategy": {"name": "feddf"}},
    "soft, many": MANY,
    "one bit, many": {**MANY, **ONE_BIT},
    "soft, few": FEW,
    "one bit, few": {**FEW, **ONE_BIT},
}


def _over(of: str, says: str, first: str, second: str, by: float = 0.0, *,
          within: float | None = None, figure: Figured = student) -> Claim:  # fmt: skip
    return Claim(of, says, ((first, figure),), ((second, figure),), by, within)


_D = "sa, dirichlet"
CLAIMS = (
    Claim("O1", "pooled > ensemble", ((_D, pooled),), ((_D, ensemble),)),
    Claim("O1", "ensemble > student", ((_D, ensemble),), ((_D, student),)),
    Claim("O1", "student > clients alone", ((_D, student),), ((_D, local),)),
    Claim("O1", "student at most 2 points behind the ensemble", ((_D, student),),
          ((_D, ensemble),), by=-0.02),
    Claim("O2", "public answers > per-label FD, clients", ((_D, clients),),
          (("per label, dirichlet", clients),)),
    Claim("O2", "FedAvg > per-label FD", (("weights, dirichlet", student),),
          (("per label, dirichlet", clients),)),
    _over("O3", "one class: Selective-FD > SA by 10 points, round 1", "selective, one class",
          "sa, one class", 0.1, figure=first_round),
    _over("O3", "one class: Selective-FD > SA by 10 points, last round", "selective, one class",
          "sa, one class", 0.1),
    _over("O3", "one class: Selective-FD > SA, last round", "selective, one class",
          "sa, one class"),
    _over("O4", "two classes: ERA > SA, round 1", "era, two classes", "sa, two classes",
          figure=first_round),
    _over("O4", "two classes: ERA > SA, first half", "era, two classes", "sa, two classes",
          figure=first_half),
    _over("O4", "two classes: ERA > SA, last round", "era, two classes", "sa, two classes"),
    _over("O4", "IID: ERA within 1 point of SA", "era, iid", "sa, iid", within=0.01),
    _over("O8", "P = 5000: 1 bit at most 1.5 points behind", "one bit, many", "soft, many", -0.015),
    Claim("O8", "1 bit costs more at P = 500 than at 5000",
          (("soft, few", student), ("one bit, many", student)),
          (("one bit, few", student), ("soft, many", student))),
    _over("O9a", "Dirichlet: entropy weights > uniform", "entropy, dirichlet", _D),
    _over("O9b", "Dirichlet: FedAUX > uniform (FedDF)", "fedaux, dirichlet", "feddf, dirichlet"),
    _over("O9a", "IID: entropy weights within 1 point", "entropy, iid", "sa, iid", within=0.01),
    _over("O9b", "IID: FedAUX within 1 point", "fedaux, iid", "feddf, iid", within=0.01),
    _over("O11", "LMA: median > mean", "lma, median", "lma, mean"),
    _over("O11", "LMA: geometric median > mean", "lma, geometric median", "lma, mean"),
    _over("O11", "LMA: ExpGuard > median", "lma, expguard", "lma, median"),
    _over("O11", "LMA: ExpGuard > geometric median", "lma, expguard", "lma, geometric median"),
    Claim("O11", "HIPS narrows the median's lead over the mean",
          (("lma, median", student), ("hips, mean", student)),
          (("lma, mean", student), ("hips, median", student))),
    _over("O12", "Dirichlet, no liars: mean > median", _D, "median, dirichlet"),
    _over("O12", "Dirichlet, no liars: mean > Cronus' filter", _D, "filter, dirichlet"),
    _over("O15", "CA-MKD > EBKD", "teachers, ca_mkd", "teachers, ebkd"),
    _over("O15", "EBKD > plain mean", "teachers, ebkd", "teachers, mean"),
    _over("O15", "CA-MKD > plain mean", "teachers, ca_mkd", "teachers, mean"),
)  # fmt: skip
PARTS = tuple(dict.fromkeys(claim.of for claim in CLAIMS))
_QUICK = ("O1", "O4")
_COLOURS = {"holds": drawing.GREEN, "reversed": drawing.VERMILION, "undecided": drawing.MUTED}


def _do(given: Given) -> tuple[Tree, Settings, Runs, Findings]:
    wanted = given.only or (_QUICK if given.quick else PARTS)
    claims = [c for c in CLAIMS if c.of in wanted]
    needed = {setting for claim in claims for setting, _ in (*claim.more, *claim.less)}
    settings = {k: v for k, v in SETTINGS.items() if k in needed}
    base = harness.small(given, 10, rounds=10, strategy=SA)
    runs = harness.carried_out(given, base, settings)
    results = [judged(claim, runs) for claim in claims]
    rows = [told(each) for each in results]
    by_round = _by_round(runs)
    text = verdicts(results) + _levels(runs) + (_rounds(by_round) if by_round else "")
    return base, settings, runs, Findings(rows, text, _picture(results, by_round))


def _points(value: float) -> str:
    return f"{100 * value:+.1f}"


def _interval(around: Spread) -> str:
    return f"{_points(around.low or 0)} to {_points(around.high or 0)}"


def told(each: Judged) -> dict[str, object]:
    """A judgement for machines."""
    return {
        "of": each.claim.of,
        "says": each.claim.says,
        "differences": each.differences,
        "low": each.around.low,
        "high": each.around.high,
        "p": each.p,
        "verdict": each.verdict,
    }


def verdicts(results: Sequence[Judged]) -> str:
    """Judgements as a table in Markdown."""
    rows = [
        [
            f"{each.claim.of}: {each.claim.says}",
            _points(each.around.mean),
            _interval(each.around),
            f"{each.p:.3f}",
            f"**{each.verdict}**",
        ]
        for each in results
    ]
    return "\n" + harness.table(["expected", "difference", "95 % interval", "p", "verdict"], rows)


def _levels(runs: Runs) -> str:
    figures = {name: clients if name.startswith("per label") else student for name in runs}
    rows = [
        [name, harness.percent(spread([figures[name](run) for run in those]))]
        for name, those in runs.items()
    ]
    return "\n" + harness.table(["setting", "student (per label: clients) %"], rows)


def _by_round(runs: Runs) -> dict[str, list[Spread]]:
    """ERA less SA, round by round."""
    found = {}
    for title in ("two classes", "iid"):
        if f"era, {title}" not in runs:
            continue
        pairs = list(zip(runs[f"era, {title}"], runs[f"sa, {title}"], strict=True))
        found[title] = [
            spread([a.records[r]["student"]["test"] - b.records[r]["student"]["test"]
                    for a, b in pairs])
            for r in range(len(pairs[0][0].records))
        ]  # fmt: skip
    return found


def _rounds(by_round: Mapping[str, Sequence[Spread]]) -> str:
    rows = [
        [str(r + 1), *(f"{_points(each.mean)} ({_interval(each)})" for each in those)]
        for r, those in enumerate(zip(*by_round.values(), strict=True))
    ]
    return "\n" + harness.table(["ERA − SA in round", *by_round], rows)


def _picture(results: Sequence[Judged], by_round: Mapping[str, Sequence[Spread]]) -> bytes:
    def draw(figure: Figure) -> None:
        left, *rest = figure.subplots(1, 1 + bool(by_round), squeeze=False)[0]
        _draw_differences(left, results)
        for axes in rest:
            _draw_rounds(axes, by_round)

    return drawing.render(draw, (10.0, 5.4))


def _draw_differences(axes: Axes, results: Sequence[Judged]) -> None:
    for place, each in enumerate(results):
        around, claim, colour = each.around, each.claim, _COLOURS[each.verdict]
        ends = [100 * (around.low or 0), 100 * (around.high or 0)]
        axes.plot(ends, [place] * 2, color=colour, linewidth=1.4)
        axes.plot([100 * around.mean], [place], "o", color=colour, markersize=4)
        for edge in (claim.by,) if claim.within is None else (-claim.within, claim.within):
            axes.plot([100 * edge], [place], "|", color=drawing.INK, markersize=7)
    axes.axvline(0, color=drawing.FAINT, zorder=0)
    names = [f"{each.claim.of}: {each.claim.says}" for each in results]
    axes.set_yticks(range(len(results)), names, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("points, 95 % interval; tick: held to")


def _draw_rounds(axes: Axes, by_round: Mapping[str, Sequence[Spread]]) -> None:
    colours = (drawing.BLUE, drawing.ORANGE)
    for (title, those), colour in zip(by_round.items(), colours, strict=True):
        rounds = range(1, len(those) + 1)
        low, high = ([100 * (end or 0) for end in ends]
                     for ends in zip(*((s.low, s.high) for s in those), strict=True))  # fmt: skip
        axes.plot(rounds, [100 * s.mean for s in those], color=colour, label=title)
        axes.fill_between(rounds, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.axhline(0, color=drawing.MUTED, linewidth=0.6)
    axes.set_title("O4: ERA − SA, points", fontsize=9, loc="left")
    axes.set_xlabel("round")
    axes.legend(frameon=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    return harness.main("expected_order", __doc__ or "", LEAST_PAIRS, _do, arguments, PARTS)


if __name__ == "__main__":
    sys.exit(main())

"""Accuracy against epsilon: private training, private answers and votes on one data set."""

from __future__ import annotations

import itertools
import json
import math
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from fedkd import drawing, sessions
from fedkd.figures import figures
from fedkd.privacy import calibration, sgd
from fedkd.reporting.statistics import LEAST_PAIRS, spread
from fedkd.runs import Run
from simulations.studies import harness
from simulations.studies.expected_order import Claim, clients, ensemble, judged, student, verdicts
from simulations.studies.expected_order import told as judgement
from simulations.studies.harness import Findings, Given, Runs, Settings, Tree
from simulations.studies.robust_rules import consensus

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MNIST = {"test": 2000, "validation": 100, "public": 1000, "private": 20_000}
_POOL = 24_000  # training samples that a seed draws its private and public ones from
_RATE = 0.2  # at which Private-kNN samples records
AT = 2.0  # the epsilon at which arrangements are held against each other


@dataclass(frozen=True, slots=True)
class Size:
    """What differs between the study and a try on digits.

    `delta` is what every run's ledger takes by itself: a tenth of 1/n, and 1e-5 at most.
    """

    delta: float
    rows: int  # of answers: all public ones
    fewer: int  # public rows in its place
    votes: int  # rows about which PATE asks
    other_votes: tuple[int, ...]
    many: int  # clients of the larger PATE
    epochs: int  # of private training by DP-SGD
    alone: int  # epochs of one of many clients


FULL = Size(5e-6, 1000, 100, 200, (100, 400, 1000), 250, 20, 30)
QUICK = Size(1e-5, 120, 40, 60, (), 60, 2, 2)


@dataclass(frozen=True, slots=True)
class Arrangement:
    """A way to be private: whom it protects, the changes that aim at an epsilon, and the others.

    `plain` is the setting with the same work and no guarantee.
    """

    name: str
    unit: str
    epsilons: tuple[float, ...]
    noise: Callable[[float], Tree]
    plain: str
    common: Tree = field(default_factory=dict)
    drawn: bool = True

    def setting(self, epsilon: float) -> str:
        return f"{self.name}, {epsilon:g}"


def gaussian(delta: float, rows: int) -> Callable[[float], Tree]:
    """Noise on every answer such that all `rows` of a client together have the epsilon.

    Two sets of so many points of the simplex are at most sqrt(2 rows) apart.
    """

    def noise(epsilon: float) -> Tree:
        sigma = calibration.gaussian_sigma(epsilon, delta, math.sqrt(2 * rows))
        return {"privacy.answers": {"name": "gaussian", "sigma": sigma}}

    return noise


def pure(name: str, delta: float, rows: int) -> Callable[[float], Tree]:
    """The same of a mechanism that takes the epsilon of one answer."""
    return lambda epsilon: {
        "privacy.answers": {"name": name, "epsilon": of_one(epsilon, delta, rows)}
    }


def of_one(epsilon: float, delta: float, rows: int) -> float:
    """The epsilon of one of `rows` pure releases that have an (epsilon, delta) together.

    One of e has concentration e^2 / 2, concentrations add up, and rho of it is
    (rho + 2 sqrt(rho ln(1 / delta)), delta) (M. Bun, T. Steinke, TCC 2016, propositions 1.3, 1.4).
    For few rows the plain sum allows more.
    """
    log = math.log(1 / delta)
    rho = (math.sqrt(epsilon + log) - math.sqrt(log)) ** 2
    return max(epsilon / rows, math.sqrt(2 * rho / rows))


def votes(delta: float, rows: int) -> Callable[[float], Tree]:
    """GNMax whose noise is that of `gaussian`: two votes of a client are sqrt(2) apart, too."""
    return lambda epsilon: {
        "strategy": _pate(rows, calibration.gaussian_sigma(epsilon, delta, math.sqrt(2 * rows)))
    }


def neighbours(delta: float, rows: int) -> Callable[[float], Tree]:
    """Private-kNN by the search that DP-SGD has: a row is a step, and votes are sqrt(2) apart."""
    return lambda epsilon: {
        "strategy": _knn(rows, math.sqrt(2) * sgd.calibrated(epsilon, delta, _RATE, rows))
    }


def _knn(rows: int, sigma: float) -> Tree:
    return {"name": "private_knn", "rows": rows, "neighbours": 10, "sample_rate": _RATE,
            "sigma": sigma}  # fmt: skip


def _pate(rows: int, sigma: float) -> Tree:
    return {"name": "pate", "rule": "gnmax", "rows": rows, "sigma": sigma}


def _learning(epochs: int, batch: int, optimizer: str, lr: float) -> Tree:
    return {"epochs": epochs, "batch": batch, "optimizer": {"name": optimizer, "lr": lr}}


MLP = {"name": "mlp", "hidden": [32]}


_UNTRAINED = {"evaluation.teachers": False}  # there are none to measure


def _many(size: Size) -> Tree:
    """Clients with few samples each, who learn longer and in smaller batches."""
    return {
        "clients": [{"count": size.many, "model": [MLP]}],
        "learning.private": _learning(size.alone, 20, "adam", 0.002),
    }


def arrangements(size: Size) -> tuple[Arrangement, ...]:
    """What is compared, unit by unit. A further method is one more of these."""
    steep = {"learning.private": _learning(size.epochs, 250, "sgd", 1.0)}
    adam = {"learning.private": _learning(size.epochs, 250, "adam", 0.01)}
    slow = {"learning.private": _learning(size.epochs, 250, "adam", 0.002)}
    wide = (2.0, 32.0, 128.0, 512.0, 2048.0, 8192.0)
    tight = (0.5, 1.0, 2.0, 4.0, 8.0)

    def training(epsilon: float) -> Tree:
        return {"privacy.training": {"epsilon": epsilon, "delta": size.delta}}

    few_rows = {"data.public": size.fewer}
    return (
        Arrangement("DP-SGD", "record", tight, training, "no privacy", steep),
        Arrangement("DP-SGD, Adam 0.01", "record", (2.0,), training, "no privacy", adam),
        Arrangement("DP-SGD, Adam 0.002", "record", (2.0,), training, "no privacy", slow),
        Arrangement("Private-kNN", "record", tight, neighbours(size.delta, size.votes),
                    "Private-kNN, no noise", _UNTRAINED),
        *(
            Arrangement(f"{name}, {size.rows} rows", "prediction", wide, noise, "no privacy")
            for name, noise in (
                ("gaussian", gaussian(size.delta, size.rows)),
                ("laplace", pure("laplace", size.delta, size.rows)),
                ("randomised response", pure("randomised_response", size.delta, size.rows)),
            )
        ),
        Arrangement(f"gaussian, {size.fewer} rows", "prediction", wide,
                    gaussian(size.delta, size.fewer), f"no privacy, {size.fewer} rows", few_rows),
        Arrangement(f"PATE {size.many}", "client", tight, votes(size.delta, size.votes),
                    f"PATE {size.many}, no noise", _many(size)),
        Arrangement("PATE 10", "client", (2.0, 8.0, 32.0, 128.0, 512.0),
                    votes(size.delta, size.votes), "PATE 10, no noise"),
        *(
            Arrangement(f"PATE {size.many}, {rows} rows", "client", (AT,), votes(size.delta, rows),
                        f"PATE {size.many}, no noise", _many(size), drawn=False)
            for rows in size.other_votes
        ),
    )  # fmt: skip


def plain(size: Size) -> dict[str, Tree]:
    """The settings without a guarantee, which arrangements are held against."""
    few_votes = {"strategy": _pate(size.votes, 0.0)}
    return {
        "no privacy": {},
        f"no privacy, {size.fewer} rows": {"data.public": size.fewer},
        # gradients are clipped as for DP-SGD, by the same steps, and nothing is added to them
        "clipped": {
            "learning.private": _learning(size.epochs, 250, "sgd", 1.0),
            "privacy.training": {"noise_multiplier": 0.0},
        },
        f"PATE {size.many}, no noise": {**_many(size), **few_votes},
        "PATE 10, no noise": few_votes,
        "Private-kNN, no noise": {**_UNTRAINED, "strategy": _knn(size.votes, 0.0)},
    }


def claims(size: Size) -> tuple[Claim, ...]:
    """What is expected; margins are older than the runs of the study."""
    many, ten = f"PATE {size.many}, {AT:g}", f"PATE 10, {AT:g}"
    private, local = f"DP-SGD, {AT:g}", f"gaussian, {size.rows} rows, {AT:g}"

    def over(of: str, says: str, more: str, less: str, figure: Callable[[Run], float],
             by: float = 0.0) -> Claim:  # fmt: skip
        return Claim(of, f"{says}, epsilon {AT:g}", ((more, figure),), ((less, figure),), by)

    return (
        over("O13", f"labels of PATE {size.many} > PATE 10 by 10 points", many, ten, consensus,
             0.1),
        over("O13", f"labels of PATE {size.many} > PATE 10", many, ten, consensus),
        over("order", "students: DP-SGD > PATE 10", private, ten, student),
        over("order", f"students: PATE 10 > gaussian, {size.rows} rows", ten, local, student),
        over("order", f"students: DP-SGD > gaussian, {size.rows} rows", private, local, student),
        over("optimiser", "teachers by DP-SGD: descent > Adam 0.002", private,
             f"DP-SGD, Adam 0.002, {AT:g}", clients),
        over("optimiser", "teachers by DP-SGD: descent > Adam 0.01", private,
             f"DP-SGD, Adam 0.01, {AT:g}", clients),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Point:
    """An arrangement at one noise: what its runs have reckoned themselves, and what came of it."""

    way: Arrangement
    aimed: float
    epsilon: float  # the greatest of all seeds
    relation: str
    noise: str
    runs: Sequence[Run]


def _points(
    ways: Sequence[Arrangement], settings: Settings, runs: Runs, delta: float
) -> list[Point]:
    found = []
    for way, aimed in itertools.product(ways, sorted({e for w in ways for e in w.epsilons})):
        setting = way.setting(aimed)
        if setting not in runs or aimed not in way.epsilons:
            continue
        those = [harness.guarantee(run, way.unit) for run in runs[setting]]
        told = [each for each in those if each is not None]
        assert len(told) == len(those), f"{setting} should have a guarantee by {way.unit}"
        assert {each.delta for each in told} == {delta}, "one delta for all"
        epsilon = max(each.epsilon for each in told)
        noise = _noise(settings[setting], runs[setting][0])
        found.append(Point(way, aimed, epsilon, told[0].relation, noise, runs[setting]))
    return found


def _noise(setting: Mapping[str, Any], run: Run) -> str:
    if "privacy.training" in setting:
        private = json.loads((run.folder / "partition.json").read_text("utf-8"))["histogram"][0]
        return f"sigma {sgd.noise_multiplier(sessions.config_of(run.folder), sum(private)):.3g}"
    told = setting.get("privacy.answers") or setting["strategy"]
    if "sigma" in told:
        return f"sigma {told['sigma']:.3g}"
    return f"{told['epsilon']:.3g} each"


def _do(given: Given) -> tuple[Tree, Settings, Runs, Findings]:
    size = QUICK if given.quick else FULL
    ways, settings = arrangements(size), plain(size)
    for way in ways:
        for epsilon in (AT,) if given.quick else way.epsilons:
            settings[way.setting(epsilon)] = {**way.common, **way.noise(epsilon)}
    data = harness.digits()
    if not given.quick:
        source = harness.stored(given, "mnist", _POOL, _MNIST["test"])
        data = {**data, "source": source, **_MNIST}
    base = harness.small(given, 10, 1, strategy={"name": "one_shot"}, data=data)
    base["rounds"] = 1  # each further one would cost as much again
    if not given.quick:
        base["learning"] |= {
            "private": _learning(10, 50, "adam", 0.002),
            "server": _learning(30, 50, "adam", 0.002),
        }
    base["evaluation"]["teachers"] = True
    held = claims(size)
    needed = {setting for claim in held for setting, _ in (*claim.more, *claim.less)}
    judging = replace(given, seeds=given.seeds if given.quick else max(given.seeds, LEAST_PAIRS))
    first = {name: setting for name, setting in settings.items() if name in needed}
    rest = {name: setting for name, setting in settings.items() if name not in needed}
    runs = {**harness.carried_out(judging, base, first), **harness.carried_out(given, base, rest)}
    points = _points(ways, settings, runs, size.delta)
    results = [judged(claim, runs) for claim in held]
    rows = [
        {
            "arrangement": point.way.name,
            "unit": point.way.unit,
            "aimed": point.aimed,
            "epsilon": point.epsilon,
            "delta": size.delta,
            "noise": point.noise,
            **_measured(point.runs),
        }
        for point in points
    ]
    rows += [{"arrangement": name, **_measured(runs[name])} for name in plain(size)]
    text = verdicts(results) + _trained(points, runs) + _others(points, runs)
    judgements = [judgement(each) for each in results]
    return base, settings, runs, Findings([*rows, *judgements], text, _picture(points, runs, size))


_MEASURES: dict[str, Callable[[Run], float]] = {
    "teachers": clients,
    "ensemble": ensemble,
    "labels": consensus,
    "student": student,
}
_OF_TEACHERS = ("teachers", "ensemble")


def _measured(runs: Sequence[Run]) -> dict[str, list[float]]:
    measured = "teachers/test/mean" in figures(runs[0].records[-1])
    return {
        name: [figure(run) for run in runs]
        for name, figure in _MEASURES.items()
        if measured or name not in _OF_TEACHERS
    }


def _percents(runs: Sequence[Run], *measures: str) -> list[str]:
    found = _measured(runs)
    shown = [harness.percent(spread(found[m])) if m in found else "" for m in measures]
    return [str(len(runs)), *shown]


def _trained(points: Sequence[Point], runs: Runs) -> str:
    """Private training with all that comes of it."""
    shown = ("teachers", "ensemble", "labels", "student")
    rows = [
        ["no privacy", "", "", *_percents(runs["no privacy"], *shown)],
        ["clipped", "sigma 0", "", *_percents(runs["clipped"], *shown)],
        ["Private-kNN", "sigma 0", "", *_percents(runs["Private-kNN, no noise"], *shown)],
    ]
    rows += [
        [p.way.name, p.noise, f"{p.epsilon:.3f}", *_percents(p.runs, *shown)]
        for p in points
        if p.way.unit == "record"
    ]
    return "\n" + harness.table(
        ["by record", "noise", "epsilon", "seeds", *(f"{s} %" for s in shown)], rows
    )


def _others(points: Sequence[Point], runs: Runs) -> str:
    """Answers and votes, whose teachers are not private."""
    text = ""
    for unit in ("prediction", "client"):
        own = [p for p in points if p.way.unit == unit]
        rows = []
        for setting in dict.fromkeys(p.way.plain for p in own):
            rows.append([setting, "", "", *_percents(runs[setting], "labels", "student")])
        for p in own:
            rows.append([p.way.name, p.noise, f"{p.epsilon:.4g}",
                         *_percents(p.runs, "labels", "student")])  # fmt: skip
        text += "\n" + harness.table(
            [f"by {unit}", "noise", "epsilon", "seeds", "labels %", "student %"], rows
        )
    return text


_COLOURS = (drawing.BLUE, drawing.VERMILION, drawing.GREEN, drawing.PURPLE)


def _picture(points: Sequence[Point], runs: Runs, size: Size) -> bytes:
    """A column a unit, each with its own axis of epsilon: between units none is comparable."""
    units = list(dict.fromkeys(p.way.unit for p in points))

    def draw(figure: Figure) -> None:
        grid = figure.subplots(2, len(units), sharey=True, squeeze=False)
        for column, unit in enumerate(units):
            own = [p for p in points if p.way.unit == unit and p.way.drawn]
            for axes, measure in zip(grid[:, column], ("student", "labels"), strict=True):
                _draw(axes, own, runs, _MEASURES[measure])
            top, bottom = grid[:, column]
            top.set_title(f"unit: {unit}\n{_wrapped(own[0].relation)}", fontsize=8, loc="left")
            bottom.set_xlabel(f"epsilon of the whole run, delta {size.delta:g}")
            bottom.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(0, -0.24))
        grid[0][0].set_ylabel("student, test samples, %")
        grid[1][0].set_ylabel("labels it learns from, %")
        grid[0][0].set_ylim(0, 100)

    return drawing.render(draw, (9.6, 6.6))


def _wrapped(text: str) -> str:
    return "\n".join(textwrap.wrap(text, 34))


def _draw(axes: Axes, points: Sequence[Point], runs: Runs, figure: Callable[[Run], float]) -> None:
    """Means over seeds with their deviations; dashed what the same comes to without noise."""
    ways = dict.fromkeys(p.way.name for p in points)
    lines: dict[str, str] = {}
    for name, colour in zip(ways, itertools.cycle(_COLOURS)):
        own = [p for p in points if p.way.name == name]
        spreads = [spread([figure(run) for run in p.runs]) for p in own]
        axes.errorbar([p.epsilon for p in own], [100 * s.mean for s in spreads],
                      [100 * (s.deviation or 0) for s in spreads], color=colour, marker="o",
                      markersize=3.5, linewidth=1.1, elinewidth=0.6, label=name)  # fmt: skip
        lines.setdefault(own[0].way.plain, colour)
    for setting, colour in lines.items():
        level = 100 * spread([figure(run) for run in runs[setting]]).mean
        axes.axhline(level, color=colour, linewidth=0.8, linestyle="--", zorder=0,
                     label=setting)  # fmt: skip
    axes.set_xscale("log")
    aimed = sorted({p.aimed for p in points})
    axes.set_xticks(aimed, [f"{e:g}" for e in aimed])
    axes.minorticks_off()
    axes.margins(x=0.12)
    axes.grid(axis="y", color=drawing.FAINT, linewidth=0.5)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    return harness.main("privacy_frontier", __doc__ or "", 3, _do, arguments)


if __name__ == "__main__":
    sys.exit(main())

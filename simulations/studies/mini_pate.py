"""PATE on MNIST in the original's proportions: what votes of 250 teachers teach, and let out."""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fedkd import data, drawing, sources, wire
from fedkd.faults import ConfigError
from fedkd.privacy import smooth, votes
from fedkd.privacy.ledger import Ledger
from fedkd.reporting.statistics import Spread, spread
from fedkd.results.finished import finished
from fedkd.results.replaying import answers_of
from fedkd.runs import Run
from fedkd.types import Release
from simulations.studies import harness
from simulations.studies.expected_order import verdict
from simulations.studies.harness import Findings, Given, Runs, Settings, Tree

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DELTA = 1e-5
PARTS = ("accounting", "votes")
_NAMES = tuple("0123456789")
_CURVE = 32  # points


@dataclass(frozen=True, slots=True)
class Anchor:
    """Releases and what they come to by the papers' conversion, worked out apart from this code."""

    says: str
    known: float
    mechanisms: tuple[tuple[str, float, int], ...]  # name, noise, how often
    delta: float = DELTA


ANCHORS = (
    Anchor("1 answer, σ 40", 0.171, (("gnmax", 40, 1),)),
    Anchor("286 answers, σ 40", 3.048, (("gnmax", 40, 286),)),
    Anchor("286 answers, σ 40, to 640 questions, σ₁ 150", 3.174,
           (("gnmax", 40, 286), ("vote_threshold", 150, 640))),
    Anchor("3,098 answers, σ 40, to 8,500 questions, σ₁ 200, δ 10⁻⁶", 12.667,
           (("gnmax", 40, 3098), ("vote_threshold", 200, 8500)), 1e-6),
    Anchor("100 answers of LNMax, b 20", 5.299, (("lnmax", 20, 100),)),
    Anchor("1,000 answers of LNMax, b 20", 20.175, (("lnmax", 20, 1000),)),
)  # fmt: skip
# ln of the bound on the probability of another class than the plurality's
_LOG_Q = -8.0914, (220.0, 20.0, 10.0), 40.0

_CURVES = {"gnmax": votes.gnmax, "vote_threshold": votes.threshold, "lnmax": votes.lnmax}


def published(mechanisms: Sequence[tuple[str, float, int]], delta: float = DELTA) -> float:
    """Epsilon for any votes, converted as in the papers."""
    total = sum(times * _CURVES[name](noise) for name, noise, times in mechanisms)
    return votes.epsilon(np.asarray(total), delta)


def by_ledger(mechanisms: Sequence[tuple[str, float, int]], delta: float = DELTA) -> float:
    """Epsilon for any votes, as a run has it in its ledger."""
    book = Ledger()
    for name, noise, times in mechanisms:
        parameter = "scale" if name == "lnmax" else "sigma"
        book.charge(0, Release(name, "client", {parameter: float(noise)}, "row"), times)
    (group,) = book.groups()
    return book.epsilon(0, group, delta)


@dataclass(frozen=True, slots=True)
class Size:
    """How large it is; noise and threshold are in proportion to the teachers."""

    teachers: int
    each: int  # private samples of a teacher
    public: int
    tested: int
    asked: int
    model: Mapping[str, Any]
    epochs: int


MNIST = Size(250, 240, 9000, 1000, 640, {"name": "shao_cnn"}, 30)
DIGITS = Size(20, 60, 400, 197, 200, {"name": "mlp", "hidden": [32]}, 30)


@dataclass(frozen=True, slots=True)
class Voted:
    """What teachers said of the rows [R] that were asked, and what was let out of it."""

    counts: npt.NDArray[np.float64]  # [R, C]
    answered: npt.NDArray[np.bool_]  # [R]
    labels: npt.NDArray[np.int64]  # [R], of answered rows
    truth: npt.NDArray[np.int64]  # [R]


def confident(size: Size) -> Tree:
    """Threshold 200, noise 150 and 40 for 250 teachers."""
    part = size.teachers / 250
    return {
        "name": "pate",
        "rule": "confident",
        "sigma": 40 * part,
        "threshold": 200 * part,
        "threshold_sigma": 150 * part,
        "rows": size.asked,
        "account_votes": True,
    }


def others(size: Size) -> dict[str, Tree]:
    """Further rules on the same teachers: no threshold, the rule of 2017, and no noise at all."""
    part = size.teachers / 250
    gnmax = {"rule": "gnmax", "sigma": 40 * part, "rows": size.asked, "account_votes": True}
    lnmax = {"rule": "lnmax", "sigma": 20 * part, "rows": min(100, size.asked)}
    plurality = {"rule": "gnmax", "sigma": 0.0, "rows": size.asked}
    rules = {"gnmax": gnmax, "lnmax": lnmax, "plurality": plurality}
    return {name: {"strategy": {"name": "pate", **rule}} for name, rule in rules.items()}


def experiment(given: Given, size: Size) -> Tree:
    """Teachers hold all training images; the first test images are public, the last are tested."""
    private, public = _archives(given, size)
    named = {"name": "npz", "class_names": list(_NAMES)}
    adam = {"name": "adam", "lr": 0.001}
    off = ("pooled", "local", "labels", "metrics", "disagreement")
    return {
        "name": given.study,
        "rounds": 1,
        "data": {
            "source": {**named, "file": str(private)},
            "test": "auto",
            "validation": 0,
            "public": {
                "source": {**named, "file": str(public), "x_test": None, "y_test": None},
                "size": size.public,
            },
            "private": size.teachers * size.each,
            "partition": {"name": "iid"},
        },
        "clients": [{"count": size.teachers, "model": [dict(size.model)]}],
        "student": dict(size.model),
        "strategy": confident(size),
        "learning": {
            "private": {"epochs": size.epochs, "batch": 32, "optimizer": adam},
            "server": {"epochs": 60, "batch": 32, "optimizer": adam},
        },
        # of no effect but on the delta at which the ledger is told
        "privacy": {"budget": {"epsilon": 1000.0, "delta": DELTA}},
        "evaluation": {**dict.fromkeys(off, False), "teachers": True},
        "compute": {"device": "cpu", "task_threads": 1, "server_threads": 1},
        "execution": {"store_answers": True},
    }


def _images(given: Given, size: Size) -> dict[str, npt.NDArray[Any]]:  # Any: pictures or labels
    """Training images, and test images in their order."""
    if given.quick:
        whole, cut = sources.digits(), size.teachers * size.each
        x, y, end = whole.x_train, whole.y_train, cut + size.public + size.tested
        return {"x_train": x[:cut], "y_train": y[:cut], "x_test": x[cut:end], "y_test": y[cut:end]}
    whole = sources.idx(str(harness.idx_files("mnist")))
    assert whole.x_test is not None and whole.y_test is not None, "it is a file of its own"
    return {"x_train": whole.x_train, "y_train": whole.y_train,
            "x_test": whole.x_test, "y_test": whole.y_test}  # fmt: skip


def _archives(given: Given, size: Size) -> tuple[Path, Path]:
    """What is private or tested, and what is public, each as one file."""
    private, public = (given.out.resolve() / f"{name}.npz" for name in ("private", "public"))
    if not (private.exists() and public.exists()):
        held = _images(given, size)
        x, y = held["x_test"], held["y_test"]
        given.out.mkdir(parents=True, exist_ok=True)
        np.savez(public, x_train=x[: size.public], y_train=y[: size.public])
        np.savez(private, x_train=held["x_train"], y_train=held["y_train"],
                 x_test=x[-size.tested :], y_test=y[-size.tested :])  # fmt: skip
    return private, public


def check_split(
    run: Run, size: Size, held: Mapping[str, npt.NDArray[Any]]
) -> None:  # Any: as above
    """Hold what a run has used to the images as they were distributed.

    Raises `ConfigError` unless teachers share all training images evenly, and public and test
    samples are the first and the last test images.
    """
    found = data.load(run.folder / "data")
    pool, test = np.asarray(found.x), held["x_test"]
    kept = {
        "each teacher a like share": set(np.diff(found.offsets).tolist()) == {size.each},
        "all training images": np.array_equal(np.sort(found.rows), np.arange(len(held["y_train"])))
        and np.array_equal(pool[: len(held["x_train"])], held["x_train"]),
        "their labels": np.array_equal(found.y[found.rows], held["y_train"][found.rows]),
        "the first test images": np.array_equal(pool[found.public], test[: size.public])
        and np.array_equal(found.truth, held["y_test"][: size.public]),
        "the last test images": np.array_equal(pool[found.test], test[-size.tested :])
        and np.array_equal(found.y[found.test], held["y_test"][-size.tested :]),
        "no other sample": not len(found.validation)
        and len(test) == len(found.public) + len(found.test),
    }
    if broken := [what for what, holds in kept.items() if not holds]:
        raise ConfigError(
            f"study: {run.folder.name} should have {', '.join(kept)}, found otherwise:"
            f" {', '.join(broken)}; remove the output folder and begin again"
        )


def voted(run: Run) -> Voted:
    """The votes of a run, from the answers that it keeps."""
    (stored,) = answers_of(run.folder, finished(run.folder))
    counts = sum(
        np.where(given.mask[0, :, None], given.scores[0].double(), 0) for given in stored.answers()
    )
    assert stored.consensus is not None, "a run that has ended has one"
    said = wire.decode(stored.consensus)
    truth = data.load(run.folder / "data").truth[stored.rows[:, 1].numpy()]
    return Voted(np.asarray(counts), said.mask[0].numpy(), said.scores[0].argmax(-1).numpy(), truth)


def carried_out(given: Given, base: Tree, size: Size) -> dict[str, list[Run]]:
    """Teachers are trained once a seed; the other rules ask those that were stored."""
    seeds = list(range(given.seeds))
    runs = {"confident": harness.swept(given, base, {"seed": seeds}, [{}], "sweep")}
    rules, sets = others(size), list[Tree]()
    for change in rules.values():
        for seed, run in zip(seeds, runs["confident"], strict=True):
            ready = {**base["clients"][0], "weights": str(run.folder.resolve() / "teachers")}
            again = {"seed": seed, "clients": [ready], "learning.private.epochs": 0}
            # nobody can have a budget where nothing is protected
            private: Tree = {} if change["strategy"]["sigma"] else {"privacy": {}}
            sets.append({**change, **again, **private, "evaluation.teachers": False})
    done = iter(harness.swept(given, base, {}, sets, "rules"))
    return runs | {name: [next(done) for _ in seeds] for name in rules}


@dataclass(frozen=True, slots=True)
class Row:
    """A rule with a seed; accuracies in 0..1.

    `labels` is of what was let out, `plurality` of the votes without noise on the same rows and
    `of_all` on all that were asked. `epsilon` holds for any votes, converted as published, `ledger`
    as the run has it; `dependent` is of these votes, converted as published, and private itself.
    """

    rule: str
    seed: int
    asked: int
    answered: int
    labels: float
    plurality: float
    of_all: float
    student: float
    teachers: float | None
    epsilon: float | None
    ledger: float | None
    dependent: float | None
    dependent_by_ledger: float | None
    seconds: float


def measured(rule: str, seed: int, run: Run, strategy: Mapping[str, Any], found: Voted) -> Row:
    """What one run comes to."""
    told = json.loads((run.folder / "privacy.json").read_text(encoding="utf-8"))
    spent = (run.folder / "timings.jsonl").read_text(encoding="utf-8").splitlines()
    right, favourite = found.labels == found.truth, found.counts.argmax(1) == found.truth
    chosen, asked = found.answered, len(found.truth)
    mechanisms = _released(strategy, asked, int(chosen.sum()))
    own = dependent(found, strategy)
    teachers = run.records[-1].get("teachers")
    return Row(
        rule, seed, asked, int(chosen.sum()),
        labels=float(right[chosen].mean()),
        plurality=float(favourite[chosen].mean()),
        of_all=float(favourite.mean()),
        student=harness.final(run),
        teachers=float(np.mean(teachers["test"])) if teachers else None,
        epsilon=published(mechanisms) if mechanisms else None,
        ledger=told["guarantees"][0]["epsilon"] if mechanisms else None,
        dependent=None if own is None else votes.epsilon(own[-1], DELTA),
        dependent_by_ledger=None if own is None else told["data_dependent"]["client"]["epsilon"],
        seconds=sum(sum(json.loads(line)["seconds"].values()) for line in spent),
    )  # fmt: skip


def _released(
    strategy: Mapping[str, Any], asked: int, answered: int
) -> list[tuple[str, float, int]]:
    """What a rule lets out when it has answered so many; without noise nothing that is bounded."""
    if not strategy["sigma"]:
        return []
    if strategy["rule"] == "confident":
        tested = ("vote_threshold", strategy["threshold_sigma"], asked)
        return [("gnmax", strategy["sigma"], answered), tested]
    return [(strategy["rule"], strategy["sigma"], answered)]


def dependent(found: Voted, strategy: Mapping[str, Any]) -> npt.NDArray[np.float64] | None:
    """RDP of these votes by order after each row that was asked, [R, A]. Private itself."""
    if not strategy.get("account_votes"):
        return None
    sigma = strategy["sigma"]
    each = np.zeros((len(found.truth), len(votes.ORDERS)))
    for i in np.flatnonzero(found.answered):
        each[i] = votes.gnmax_dependent(votes.log_q(found.counts[i], sigma), sigma)
    if strategy["rule"] == "confident":
        each += votes.threshold(strategy["threshold_sigma"])
    total: npt.NDArray[np.float64] = each.cumsum(0)
    return total


# of a release of the figure that depends on the votes: orders, and what `smooth.told` takes
_ORDERS = np.array([5.0, 6, 7, 8, 10, 12])
_BETAS, _NOISES, _OF_SCALE = (0.01, 0.02, 0.03, 0.05, 0.07), (3.0, 4, 5, 7, 10), (2.0, 3, 5)
FAILURE = DELTA / 2


@dataclass(frozen=True, slots=True)
class Told:
    """Epsilon that may be told of these votes, with the best of some parameters.

    `half` is below the truth half of the time and has a standard deviation of `spread`; `sure` is a
    bound that fails with probability `FAILURE`, as it comes out where both draws are 0. The best
    was chosen on these very votes, which nobody may do: whoever chooses beforehand fares worse.
    """

    seed: int
    half: float
    spread: float
    sure: float


def told(seed: int, found: Voted, strategy: Mapping[str, Any]) -> Told:
    """What a release by smooth sensitivity comes to."""
    chosen, asked = found.counts[found.answered], len(found.truth)
    half, sure = list[tuple[float, float]](), list[float]()
    for cost in smooth.Cost.at(_ORDERS, strategy["sigma"], chosen.shape[1]):
        order, figure = cost.order, cost.of(chosen)
        tests = asked * order / (2 * strategy["threshold_sigma"] ** 2)
        for beta in _BETAS:
            sensitivity = cost.sensitivity(chosen, beta)
            for noise in _NOISES:
                alone = smooth.telling(order, beta, noise, math.inf)
                epsilon = figure + tests + alone - math.log(DELTA) / (order - 1)
                half.append((epsilon, noise * sensitivity))
            for noise, of_scale in itertools.product(_NOISES, _OF_SCALE):
                bound = smooth.told(figure, sensitivity, beta, noise, of_scale, FAILURE, (0.0, 0.0))
                both = smooth.telling(order, beta, noise, of_scale)
                sure.append(bound + tests + both - math.log(DELTA - FAILURE) / (order - 1))
    return Told(seed, *min(half, key=sum), min(sure))


@dataclass(frozen=True, slots=True)
class Judged:
    """A claim: by how much each seed is on its side, and what that comes to."""

    says: str
    differences: tuple[float, ...]
    within: float | None = None
    expectation: bool = False  # of ours, and of no paper

    @property
    def around(self) -> Spread:
        return spread(self.differences)

    @property
    def verdict(self) -> str:
        return verdict(self.around, within=self.within)


def judged(rows: Sequence[Row]) -> list[Judged]:
    """What was asked of this study before it was run."""
    mine = {r.rule: [row for row in rows if row.rule == r.rule] for r in rows}
    first = mine["confident"]
    bound = published(ANCHORS[2].mechanisms)
    return [
        Judged("ε of these votes < 3.17, the ε for any votes of 286 answers to 640",
               tuple(bound - (r.dependent or 0.0) for r in first)),
        Judged("labels let out are right on more than 97 %", tuple(r.labels - 0.97 for r in first)),
        Judged("expectation: supervised student at 93 to 96 %",
               tuple(r.student - 0.945 for r in first), 0.015, True),
        Judged("expectation: labels better with the threshold than without",
               tuple(a.labels - b.labels for a, b in zip(first, mine["gnmax"], strict=True)),
               expectation=True),
    ]  # fmt: skip


def accounting() -> list[dict[str, object]]:
    """Every anchor beside what comes out here, and by the ledger."""
    known, counts, sigma = _LOG_Q
    here = [(a.says, a.known, published(a.mechanisms, a.delta), by_ledger(a.mechanisms, a.delta))
            for a in ANCHORS]  # fmt: skip
    last = ("ln q of votes (220, 20, 10), σ 40", known, votes.log_q(np.array(counts), sigma), None)
    names = ("what", "known", "here", "ledger")
    return [
        {"part": "accounting", **dict(zip(names, row, strict=True))} for row in (*here, last)
    ]  # fmt: skip


def _accounts(rows: Sequence[Mapping[str, Any]]) -> str:  # Any: text or numbers
    shown = [
        [row["what"], f"{row['known']:.3f}", f"{row['here']:.4f}",
         f"{row['here'] - row['known']:+.4f}",
         "–" if row["ledger"] is None else f"{row['ledger']:.4f}"]
        for row in rows
    ]  # fmt: skip
    return "\n" + harness.table(["ε", "known", "here", "difference", "ledger"], shown)


# [P]: N. Papernot et al., ICLR 2017, section 4 and figure 4. [U]: of the paper of 2018 nothing was
# read; table 4 of B. Ghazi et al., NeurIPS 2021, quotes its ε and accuracies, and nobody 286
_PAPER, _QUOTED = "read [P]", "quoted elsewhere, unverified [U]"
THEIRS = (
    ("teachers, mean %", "83.86", _PAPER),
    ("trained on all labels %", "99.18", _PAPER),
    ("LNMax: labels right %", "93.18, of all test images", _PAPER),
    ("LNMax: answered", "100", _PAPER),
    ("LNMax: ε of the votes", "2.04", _PAPER),
    ("LNMax: student %", "98.00, semi-supervised", _PAPER),
    ("Confident-GNMax: answered of 640", "286", "recalled, unverified [U]"),
    ("Confident-GNMax: ε of the votes", "1.97", _QUOTED),
    ("Confident-GNMax: student %", "98.5, semi-supervised", _QUOTED),
)


def _of(rows: Sequence[Row], rule: str, name: str) -> list[float]:
    found = [getattr(row, name) for row in rows if row.rule == rule]
    return [] if None in found else [float(f) for f in found]


def _figure(values: Sequence[float], scale: float = 1.0, digits: int = 2) -> str:
    """Mean and standard deviation; a dash where there is none."""
    if not values:
        return "–"
    around = spread(values)
    return f"{scale * around.mean:.{digits}f} ± {scale * (around.deviation or 0):.{digits}f}"


def _cells(row: Row) -> list[str]:
    """A run of the confident rule."""
    shares = (row.labels, row.plurality, row.of_all, row.teachers, row.student)
    bounds = (row.epsilon, row.ledger, row.dependent, row.dependent_by_ledger)
    return [
        f"{row.answered} of {row.asked}",
        *(f"{100 * share:.1f}" for share in shares if share is not None),
        *(f"{bound:.2f}" for bound in bounds if bound is not None),
        f"{row.seconds:.0f}",
    ]


def _text(rows: Sequence[Row], claims: Sequence[Judged], releases: Sequence[Told]) -> str:
    rules = list(dict.fromkeys(row.rule for row in rows))
    percent, epsilon = (100.0, 1), (1.0, 2)
    columns = {"asked": (1.0, 0), "answered": (1.0, 0), "labels": percent, "plurality": percent,
               "student": percent, "epsilon": epsilon, "ledger": epsilon,
               "dependent": epsilon}  # fmt: skip
    head = ["rule", "asked", "answered", "labels right %", "plurality, same rows %", "student %",
            "ε, any votes", "ε, ledger", "ε of these votes*"]  # fmt: skip
    body = [
        [rule, *(_figure(_of(rows, rule, name), *form) for name, form in columns.items())]
        for rule in rules
    ]
    text = "\n" + harness.table(head, body)
    head = ["seed", "answered", "labels right %", "plurality, same rows %", "plurality, all %",
            "teachers, mean %", "student %", "ε, any votes", "ε, ledger", "ε of these votes*",
            "the same, ledger*", "s"]  # fmt: skip
    body = [[str(row.seed), *_cells(row)] for row in rows if row.rule == "confident"]
    text += "\n" + harness.table(head, body)
    text += "\n\\* private itself: it may not be given away as a guarantee.\n"
    head = ["seed", "ε of these votes*", "told, too low half of the time",
            f"told, too low with {FAILURE:.0e}", "ε, any votes, ledger"]  # fmt: skip
    mine = [row for row in rows if row.rule == "confident"]
    body = [
        [str(row.seed), f"{row.dependent or 0.0:.2f}", f"{each.half:.2f} ± {each.spread:.2f}",
         f"{each.sure:.2f}", f"{row.ledger or 0.0:.2f}"]
        for row, each in zip(mine, releases, strict=True)
    ]  # fmt: skip
    text += "\n" + harness.table(head, body)
    text += "\n" + harness.table(
        ["claim", "by", "95 % interval", "verdict"],
        [[c.says, f"{c.around.mean:+.3f}", f"{c.around.low or 0:+.3f} to {c.around.high or 0:+.3f}",
          f"**{c.verdict}**"] for c in claims],
    )  # fmt: skip
    supervised = {
        rule: _figure(_of(rows, rule, "student"), 100, 1) + ", supervised" for rule in rules
    }
    here = (
        _figure(_of(rows, "confident", "teachers"), 100, 1),
        supervised["plurality"] + " by plurality",
        _figure(_of(rows, "lnmax", "labels"), 100, 1),
        _figure(_of(rows, "lnmax", "answered"), digits=0),
        _figure(_of(rows, "lnmax", "epsilon")) + ", any votes",
        supervised["lnmax"],
        _figure(_of(rows, "confident", "answered"), digits=0),
        _figure(_of(rows, "confident", "dependent")),
        supervised["confident"],
    )
    return text + "\n" + harness.table(
        ["", "theirs", "where from", "here"],
        [[*theirs, ours] for theirs, ours in zip(THEIRS, here, strict=True)],
    )  # fmt: skip


def _curves(found: Sequence[Voted], strategy: Mapping[str, Any]) -> dict[str, list[float]]:
    """Epsilon after so many rows asked, mean over seeds."""
    asked = np.linspace(0, len(found[0].truth), _CURVE + 1).astype(int)[1:]
    own = [dependent(each, strategy) for each in found]

    def mean(of: Any) -> list[float]:  # Any: a function of a seed and a count
        return [float(np.mean([of(i, int(n)) for i in range(len(found))])) for n in asked]

    def released(i: int, n: int) -> list[tuple[str, float, int]]:
        return _released(strategy, n, int(found[i].answered[:n].sum()))

    def these(i: int, n: int) -> float:
        curve = own[i]
        assert curve is not None, "its votes are accounted for"
        return votes.epsilon(curve[n - 1], DELTA)

    return {
        "asked": [float(n) for n in asked],
        "any votes, their conversion": mean(lambda i, n: published(released(i, n))),
        "any votes, the ledger": mean(lambda i, n: by_ledger(released(i, n))),
        "these votes*": mean(these),
    }


def _picture(found: Sequence[Voted], strategy: Mapping[str, Any]) -> bytes:
    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        _draw_votes(left, found, strategy)
        _draw_epsilon(right, _curves(found, strategy))

    return drawing.render(draw, (8.4, 3.4))


def _draw_votes(axes: Axes, found: Sequence[Voted], strategy: Mapping[str, Any]) -> None:
    teachers = int(found[0].counts[0].sum())
    largest = np.concatenate([each.counts.max(1) for each in found])
    answered = np.concatenate([each.answered for each in found])
    wrong = np.concatenate([each.labels != each.truth for each in found]) & answered
    width = max(1, teachers // 25)
    groups = {
        "answered, right": answered & ~wrong,
        "answered, wrong": wrong,
        "not answered": ~answered,
    }
    axes.hist(
        [largest[group] for group in groups.values()],
        bins=list(range(0, teachers + width, width)),
        stacked=True,
        color=[drawing.BLUE, drawing.VERMILION, drawing.FAINT],
        label=[f"{name} ({int(group.sum()):,})" for name, group in groups.items()],
        edgecolor="white",
        linewidth=0.3,
    )
    threshold = strategy["threshold"]
    axes.axvline(threshold, color=drawing.INK, linewidth=0.8)
    axes.annotate(f"threshold {threshold:g},\nnoise {strategy['threshold_sigma']:g}",
                  (threshold, 0.72), (-4, 0), xycoords=("data", "axes fraction"),
                  textcoords="offset points", ha="right", fontsize=8)  # fmt: skip
    axes.legend(loc="upper left", frameon=False, fontsize=8)
    axes.set_xlabel(f"votes for the favourite class, of {teachers}")
    axes.set_ylabel(f"rows asked, {len(found)} seeds")


def _draw_epsilon(axes: Axes, curves: Mapping[str, Sequence[float]]) -> None:
    colours = (drawing.BLUE, drawing.GREEN, drawing.VERMILION)
    ends = []
    for (name, values), colour in zip(list(curves.items())[1:], colours, strict=True):
        axes.plot(curves["asked"], values, color=colour, linewidth=1.2,
                  linestyle="--" if name.endswith("*") else "-")  # fmt: skip
        ends.append((values[-1], name, colour))
    axes.set_xlim(0, curves["asked"][-1])
    axes.set_ylim(bottom=0)
    drawing.name_ends(axes, ends)
    axes.set_xlabel("rows asked")
    axes.set_ylabel("ε, δ = 10⁻⁵")


def _do(given: Given) -> tuple[Tree, Settings, Runs, Findings]:
    parts = given.only or PARTS
    found: list[dict[str, object]] = []
    text, picture = "", None
    base: Tree = {}
    runs: dict[str, list[Run]] = {}
    if "accounting" in parts:
        found = accounting()
        text = _accounts(found)
    if "votes" not in parts:
        return base, {}, runs, Findings(found, text, picture)
    size = DIGITS if given.quick else MNIST
    base = experiment(given, size)
    settings = {"confident": {"strategy": confident(size)}, **others(size)}
    runs = carried_out(given, base, size)
    held = _images(given, size)
    rows, seen = list[Row](), dict[str, list[Voted]]()
    for rule, those in runs.items():
        for seed, run in enumerate(those):
            check_split(run, size, held)
            said = voted(run)
            seen.setdefault(rule, []).append(said)
            rows.append(measured(rule, seed, run, settings[rule]["strategy"], said))
    claims = judged(rows)
    strategy = settings["confident"]["strategy"]
    releases = [told(seed, each, strategy) for seed, each in enumerate(seen["confident"])]
    found += [{"part": "votes", **asdict(row)} for row in rows]
    found += [{"part": "told", **asdict(each)} for each in releases]
    found += [
        {"part": "claims", "claim": c.says, "expectation": c.expectation,
         "differences": c.differences, "mean": c.around.mean, "low": c.around.low,
         "high": c.around.high, "verdict": c.verdict}
        for c in claims
    ]  # fmt: skip
    picture = _picture(seen["confident"], strategy)
    text += _text(rows, claims, releases)
    return _without_places(base), settings, runs, Findings(found, text, picture)


def _without_places(base: Tree) -> Tree:
    public = base["data"]["public"]
    named = {k: v for k, v in public["source"].items() if k != "file"}
    return {**base, "data": {**base["data"], "public": {**public, "source": named}}}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    return harness.main("mini_pate", __doc__ or "", 6, _do, arguments, PARTS)


if __name__ == "__main__":
    sys.exit(main())

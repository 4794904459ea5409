"""A resolved plan as tables, for `python -m fedkd.simulate --explain`; nothing is trained."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedkd.assemble import Architecture, Plan, assemble, cautions, prepare, resolve
from fedkd.bundles import stacks_of
from fedkd.conduct import Watch
from fedkd.config import Config, Execution, Learning, Named
from fedkd.costs import asked, memory_parts, passes, steps, traffic
from fedkd.forecast import Forecast, Spending
from fedkd.phrases import size_text
from fedkd.publics import Origin
from fedkd.recorded import Weak, weakest
from fedkd.rehearsal import rehearse
from fedkd.wire import HEADER_BYTES

Table = list[tuple[str, ...]]

_MOST_CLIENTS_SHOWN = 32
_LONG = 60  # characters of a parameter's value
_PHASES = {
    "pretrain": "clients learn the public labels (round 1)",
    "train": "clients train on their private samples",
    "convene": "in each client, teachers of parts of its samples teach students public rows",
    "answer": "clients answer public rows",
    "combine": "the server combines the answers",
    "reset": "clients go back to the weights that they began with",
    "recall": "clients take the consensus about labels into their epochs",
    "distil_clients": "clients learn the consensus",
    "distil_server": "the student learns the consensus",
    "average_weights": "the server averages the clients' weights into the student",
}
_USUAL = {"private": "cross-entropy", "client": "KL", "server": "KL", "pretrain": "cross-entropy"}


def explain(config: Config, watch: Watch) -> list[tuple[str, Table]]:
    """The resolved plan as titled tables; the data are prepared in a folder that is removed.

    Raises `ConfigError` for whatever `fedkd.run` would refuse before training.
    """
    chosen = resolve(config)
    watch.stage("data: load, split, partition")
    with tempfile.TemporaryDirectory(prefix="fedkd-") as folder:
        prepare(chosen, Path(folder) / "data")
        plan = assemble(chosen, Path(folder) / "data")
        rehearse(plan)
        return [
            ("Experiment", _experiment(plan)),
            ("Models", _models(plan)),
            ("Clients", _clients(plan)),
            ("Learning", _learning(plan)),
            ("Passes", _passes(plan)),
            ("Cost", _cost(plan)),
            ("Privacy", _privacy(plan)),
            ("Execution", _execution(plan)),
        ]


def _experiment(plan: Plan) -> Table:
    config, data = plan.config, plan.dataset
    public = " + ".join(_shown(o) for o in data.origins)
    by = config.data.partition.by
    column = f" of {by}" if by else ""
    answers = {"student": "the student's answers"}.get(plan.strategy.feedback, "the consensus")
    words = [_PHASES[p].replace("the consensus", answers) if p == "distil_clients" else _PHASES[p]
             for p in plan.strategy.program]  # fmt: skip
    if plan.strategy.reply is not None:
        words = [w.replace("public rows", "public rows from their records") for w in words]
    return [
        ("Name", f"{config.name}, {config.rounds} rounds"),
        ("Seeds", f"training {config.seed}, data {config.data_seed}"),
        ("Source", f"{spelled(config.data.source)}: {data.classes} classes, samples of shape"
         f" {list(data.shape)}; {data.licence}"),
        ("Splits", f"test {len(data.test):,} · validation {len(data.validation):,} · public"
         f" {public} · private {len(data.rows):,} over {plan.clients:,}"
         f" clients by {spelled(config.data.partition)}{column}"),
        ("World", spelled(config.world)),
        *_liars(plan),
        *_clock(plan),
        ("Method", spelled(config.strategy)),
        ("A round", " → ".join(words)),
        *(("Caution", text) for text in cautions(plan)),
    ]  # fmt: skip


def _liars(plan: Plan) -> Table:
    """How many there are, if any, and what they know."""
    liars = plan.world.liars(plan.clients)
    kind = "each for itself" if plan.world.conspire is None else "knowing all honest answers"
    return [("Liars", f"{len(liars):,} of {plan.clients:,} clients, {kind}")] if liars else []


def _clock(plan: Plan) -> Table:
    """The world's clock, if it has one."""
    if plan.world.seconds is None:
        return []
    limit = plan.world.deadline
    patience = "for the slowest" if limit is None else f"{limit:g} virtual seconds at most"
    return [("Clock", f"virtual; each question waits {patience}")]


def _shown(origin: Origin) -> str:
    place = "" if origin.kind == "data.source" else f"{origin.kind}, "
    return f"{origin.size:,} ({place}{'with labels' if origin.labelled else 'labels hidden'})"


def _models(plan: Plan) -> Table:
    lines: Table = [("", "Model", "Parameters", "Multiply-adds", "Clients", "In stacks of")]
    stacks = stacks_of(plan, range(plan.clients))
    for kind, made in enumerate(plan.architectures):
        sizes = sorted({len(s) for s in stacks if plan.teacher[s[0]] == kind}, reverse=True)
        lines.append(("teachers", *_sizes(made), f"{plan.teacher.count(kind):,}",
                      ", ".join(map(str, sizes))))  # fmt: skip
    return [*lines, ("student", *_sizes(plan.student), "", "")]


def _sizes(made: Architecture) -> tuple[str, str, str]:
    return made.name, f"{made.network.parameters:,}", f"{made.multiply_adds:,}"


def _clients(plan: Plan) -> Table:
    held = plan.dataset.histogram
    if plan.clients > _MOST_CLIENTS_SHOWN:
        low, high = int(held.sum(1).min()), int(held.sum(1).max())
        classes = (held > 0).sum(1)
        return [
            (
                "Samples of a client",
                f"{low:,} to {high:,}, {held.sum() / plan.clients:,.1f} on average",
            ),
            ("Classes of a client", f"{classes.min()} to {classes.max()}"),
        ]
    names = plan.dataset.class_names
    lines: Table = [("Client", "Model", "Samples", "Most frequent classes")]
    for client, counts in enumerate(held):
        most = sorted(range(len(names)), key=lambda c: (-counts[c], c))[:3]
        shares = ", ".join(f"{names[c]} ({counts[c]})" for c in most if counts[c])
        rest = int((counts > 0).sum()) - len([c for c in most if counts[c]])
        shares += f", {rest} more" * bool(rest)
        made = plan.architectures[plan.teacher[client]]
        lines.append((str(client), made.name, f"{counts.sum():,}", shares))
    return lines


def _learning(plan: Plan) -> Table:
    lines: Table = [("", "Loss", "Optimiser", "Batch", "Epochs, round 1", "later",
                     "Gradient steps, round 1", "later")]  # fmt: skip
    first, later = steps(plan, 1), steps(plan, 2)
    for kind in first:
        those: Learning = getattr(plan.config.learning, kind)
        own = getattr(plan.strategy.losses, kind, None)
        loss = "the method's own" if own else _USUAL[kind]
        optimizer = those.optimizer.name
        lines.append((
            kind,
            spelled(those.loss) if isinstance(those.loss, Named) else loss,
            f"{optimizer} {those.optimizer.lr:g}",
            str(those.batch),
            str(those.epochs_in(1)),
            str(those.epochs_in(2)) if kind in later else "",
            f"{first[kind]:,}",
            f"{later[kind]:,}" if kind in later else "",
        ))  # fmt: skip
    return lines


def _passes(plan: Plan) -> Table:
    """Samples through models, by phase; measuring is beside it."""
    first = passes(plan, 1)
    later = passes(plan, 2) if plan.config.rounds > 1 else {}
    lines: Table = [("Samples passed in a round", "Forward, round 1", "later",
                     "Backward, round 1", "later")]  # fmt: skip
    for phase in dict.fromkeys([*first, *later]):
        row = [_PHASES[phase]]
        for way in ("forward", "backward"):
            row += [
                f"{getattr(counted[phase], way):,}" if phase in counted else ""
                for counted in (first, later)
            ]
        lines.append(tuple(row))
    return lines


def _cost(plan: Plan) -> Table:
    config = plan.config
    counts = [len(asked(plan, r)[0]) for r in (1, 2)[: config.rounds]]
    first, later = traffic(plan, 1), traffic(plan, 2)
    needed = memory_parts(plan)
    wanted = config.evaluation
    named = {
        "pooled": "student's architecture on all private data (pooled)",
        "local": "teachers that learn alone (local)",
        "labels": "student's architecture on the true public labels (labels)",
    }
    if not (plan.dataset.truth >= 0).any():
        del named["labels"]
    yardsticks = [text for name, text in named.items() if getattr(wanted, name)]

    def each(counted: Sequence[int]) -> str:
        low, *rest = [f"{n:,} ({size_text(n)})" for n in counted[: config.rounds]]
        return low if not rest or rest[0] == low else f"{low} in round 1, then {rest[0]}"

    varying = plan.strategy.shares.varying
    return [
        ("Bytes up, a round", "at most " * ("up" in varying) + each([first.up, later.up])),
        ("Bytes down, a round", "at most " * ("down" in varying) + each([first.down, later.down])),
        *_codecs(config),
        ("", f"the method's formula + {HEADER_BYTES} bytes a message, over"
         f" {' and then '.join(dict.fromkeys(map(str, counts)))} clients"),
        ("Memory of a worker", _memory(needed["worker"])),
        ("Memory of the server", _memory(needed["server"])),
        ("", "estimated: fedkd's own tensors, of a worker at its largest stack; libraries, their"
         " work space and what a method of its own makes come on top"),
        ("State of the clients", f"{size_text(sum(needed['state'].values()))} in the run folder"),
        ("Yardsticks", "; ".join(yardsticks) or "none"),
    ]  # fmt: skip


def _memory(parts: Mapping[str, int]) -> str:
    told = ", ".join(f"{name} {size_text(count)}" for name, count in parts.items())
    return f"{size_text(sum(parts.values()))}: {told}"


def _codecs(config: Config) -> Table:
    """The codecs of the config, if there are any."""
    ways = (("up", config.codecs.up), ("down", config.codecs.down))
    shown = [f"{way} {' → '.join(map(spelled, links))}" for way, links in ways if links]
    return [("Codecs", "; ".join(shown))] if shown else []


def _privacy(plan: Plan) -> Table:
    """What the run will guarantee of whom, what that takes for granted, and what it will not."""
    foretold = Forecast(plan)
    told, lines = foretold.told(), Table()
    for spending, guarantee in zip(foretold.spending(), told["guarantees"], strict=True):
        lines.append(("Guarantee", f"by {spending.group.unit}: {spending.group.relation}"))
        for account, one, first, times in spending.releases:
            parameters = ", ".join(f"{name}={value:.5g}" for name, value in account.parameters)
            begun = "" if plan.config.rounds == 1 else f"{first:,} in round 1, "
            lines.append(("  Mechanism", f"{account.mechanism}({parameters}), epsilon {one:.3g} for"
                          f" one release; {begun}{times:,} in {_rounds(plan)}"))  # fmt: skip
        begun = "" if plan.config.rounds == 1 else f"{spending.first:.4g} after round 1, "
        alike = len(set(guarantee["clients"].values())) == 1
        whose = "every client" if alike else f"client {spending.client}, which has the most"
        lines.append(("  Epsilon", f"{begun}{spending.last:.4g} after {_rounds(plan)} at delta"
                      f" {foretold.delta:.3g}: of {whose}, if it takes part in all and all that is"
                      " asked is answered"))  # fmt: skip
        lines += _asked_for(plan, foretold, spending)
        lines += _budgeted(plan, foretold, spending)
        lines.append(("  Holds if", "; ".join(guarantee["assumes"])))
    for worst in weakest([Weak(**claim) for claim in told["weak"]]):
        lines.append(("Weak claim", f"by {worst.unit}: {worst.relation}"))
        lines.append(("  Mechanism", f"{worst.mechanism}, epsilon {worst.epsilon:.3g} at"
                      f" delta {worst.delta:.3g} at worst"))  # fmt: skip
        lines.append(("  Why weak", "; ".join(a.removeprefix("weak: ") for a in worst.assumes)))
    return [*lines, *(("No guarantee", what.partition(": none")[0]) for what in told["none"])]


def _asked_for(plan: Plan, foretold: Forecast, spending: Spending) -> Table:
    """The target of `privacy.training` at its own delta, where figures are told at another one."""
    training = plan.config.privacy.training
    if training is None or training.delta is None or spending.group.unit != "record":
        return []
    if training.delta == foretold.delta:
        return []
    found = foretold.after.epsilon(spending.client, spending.group, training.delta)
    text = f"{found:.4g} of the {training.epsilon:g} asked for, at the delta of privacy.training"
    return [("  Target", f"{text}, {training.delta:g}")]


def _budgeted(plan: Plan, foretold: Forecast, spending: Spending) -> Table:
    """How long the budget lasts, and what happens then."""
    budget, over = plan.config.privacy.budget, foretold.overdraft(spending.group)
    if budget is None:
        return []
    if over is None:
        return [("  Budget", f"{budget.epsilon:g} lasts for {_rounds(plan)}")]
    who = f"{len(over.clients):,} of {plan.clients:,} clients"
    if budget.when_spent == "stop":
        text = f"would be exceeded in round {over.begins:,}, before which the run stops"
    else:
        text = f"leaves out {who}, the first from round {over.begins:,} on"
        text += f"; the run stops before round {over.ends:,}" * bool(over.ends)
    return [("  Budget", f"{budget.epsilon:g} {text}")]


def _rounds(plan: Plan) -> str:
    return f"{plan.config.rounds:,} round{'s' * (plan.config.rounds > 1)}"


def _execution(plan: Plan) -> Table:
    config = plan.config
    execution, compute = config.execution, config.compute
    gpus = f", {execution.gpus_per_task:g} GPU each" if compute.device == "cuda" else ""
    workers = "as many workers as the cluster has room for"
    if execution.workers != "auto":
        workers = f"{execution.workers} workers"
    if execution.runtime == "local":
        workers = "in one process"
    return [
        ("Runtime", f"{execution.runtime}, {workers}{gpus}"),
        ("Threads", f"{compute.task_threads} a task, {compute.server_threads} for the server"),
        ("Device", f"{compute.device}, {compute.precision}"),
        ("Failures", _policy(execution)),
        ("Run folder", execution.out or f"runs/{config.name}-DATE-TIME"),
        ("Fingerprint", config.fingerprint()),
    ]


def _policy(execution: Execution) -> str:
    """What becomes of a client that fails, and of work that is lost."""
    tries = f"{execution.retries} {'time' if execution.retries == 1 else 'times'}"
    ways = {
        "fail": "a client that fails stops the run",
        "retry": f"a client that fails is tried again up to {tries}, then the run stops",
        "drop": "a client that fails is left out of the rest of the round",
    }
    text = f"{ways[execution.on_failure]}; lost work is done again up to {tries}"
    if execution.on_failure == "drop":
        text += (
            f"; with fewer than {execution.min_clients} left the round is begun again once, then"
            " the run stops"
        )
    late = "no deadline"
    if execution.deadline_s is not None:
        late = f"a step that takes longer than {execution.deadline_s:g} s has failed"
    return f"{text}; {late}"


def spelled(spec: Named) -> str:
    """A plug-in with its parameters, as in dirichlet(alpha=0.1)."""
    texts = {name: str(value) for name, value in spec.params.items()}
    given = ", ".join(f"{n}={t if len(t) <= _LONG else '…'}" for n, t in texts.items())
    return f"{spec.name}({given})" if given else spec.name

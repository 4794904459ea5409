"""Where a run comes from: `provenance.json`, `citations.bib` and `checklist.md` in its folder.

A module that a config names may say what to cite for it, in a file of its name that ends in `.bib`
beside it or in a constant `BIBTEX`. What nobody told is written as unknown, never guessed.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

from fedkd import disk, folder, plugins
from fedkd.assemble import Plan, search
from fedkd.config import Config, Named
from fedkd.offers import Kind
from fedkd.publics import Origin
from fedkd.results.hashes import sha256

SCHEMA = 1
_MOST_FILES = 1000  # of one parameter that names a folder
_ENTRY = re.compile(r"@\w+\s*\{\s*([^,\s]+)\s*,")
_TOOL = """\
@misc{fedkd,
  title = {fedkd: a simulator of federated and multi-teacher distillation},
  howpublished = {Software},%s
}
"""


def write(plan: Plan, run: Path) -> None:
    """All three files, of a run that has ended."""
    about = folder.about(run)
    told = _provenance(plan, run)
    folder.write_json(run / "provenance.json", told)
    modules = [sys.modules.get(m) for m in dict.fromkeys(p["module"] for p in told["parts"])]
    given = [cited(module) for module in modules if module is not None]
    version = about.get("versions", {}).get("fedkd", "unknown")
    disk.write_atomically(run / "citations.bib", citations(version, given).encode())
    lines = (run / "records.jsonl").read_text(encoding="utf-8").splitlines()
    text = checklist(plan.config, about, told, [json.loads(x) for x in lines], _seconds(run))
    disk.write_atomically(run / "checklist.md", text.encode())


def cited(module: ModuleType) -> str:
    """What a module says is to be cited for it, as BibTeX; nothing where it says nothing."""
    beside = Path(getattr(module, "__file__", None) or "nowhere").with_suffix(".bib")
    written = beside.read_text(encoding="utf-8") if beside.is_file() else ""
    return f"{written}\n{getattr(module, 'BIBTEX', '')}"


def citations(version: str, given: Sequence[str]) -> str:
    """BibTeX of the tool and of what was used, each entry once, by its key."""
    entries: dict[str, str] = {}
    known = f"\n  note = {{Version {version}}}," if version[:1].isdigit() else ""
    for text in (_TOOL % known, *given):
        starts = [m.start() for m in _ENTRY.finditer(text)]
        for start, end in pairwise([*starts, len(text)]):
            entry = text[start:end].strip()
            found = _ENTRY.match(entry)
            assert found, "it was found before"
            entries.setdefault(found[1], entry)
    return "\n\n".join(entries.values()) + "\n"


def _provenance(plan: Plan, run: Path) -> dict[str, Any]:  # Any: JSON
    config, dataset = plan.config, plan.dataset
    parts = list(_parts(config))
    teachers = []
    for client, spec in enumerate(config.models):
        given = plan.stored(client)
        teachers.append(
            {
                "client": client,
                "model": spec.model_dump(mode="json"),
                "parameters": plan.architectures[plan.teacher[client]].network.parameters,
                "samples": plan.samples[client],
                "began_with": None if given is None else {"sha256": sha256(given)},
                "sha256": sha256(run / "teachers" / f"{client:05d}.safetensors"),
            }
        )
    student = run / "student.safetensors"
    return {
        "schema": SCHEMA,
        "fingerprint": config.fingerprint(),
        "test_rows": len(dataset.test),
        "parts": parts,
        "data": {
            "source": config.data.source.name,
            "provenance": dataset.provenance or "unknown",
            "licence": _known(dataset.licence),
            "files": dict(_files(config.data.source)),
            "sha256": sha256(run / "data" / "data.json"),
            "public": [
                {**o._asdict(), "licence": _licence(o, dataset.licence)} for o in dataset.origins
            ],
        },
        "teachers": teachers,
        "student": {
            "model": config.student.model_dump(mode="json"),
            "parameters": plan.student.network.parameters,
            "sha256": sha256(student) if student.is_file() else None,
        },
    }


def _licence(origin: Origin, own: str) -> str:
    """Of a public set; one that is held back from the data has theirs."""
    return _known(own if origin.kind == "data.source" else origin.licence)


def _known(licence: str) -> str:
    """What a source that was told of no licence says is no licence."""
    return licence if licence not in ("", "not stated") else "unknown"


def _parts(config: Config) -> Iterator[dict[str, Any]]:  # Any: JSON
    """What the config names, the module that it comes from, and the checksum of its file."""
    public = [p.source for p in config.data.publics if p.source is not None]
    learnings = ("private", "client", "server", "pretrain")
    losses = [x for n in learnings if (x := getattr(config.learning, n).loss) != "auto"]
    named: list[tuple[Kind, Named]] = [("strategy", config.strategy), ("world", config.world)]
    named += [("source", s) for s in (config.data.source, *public)]
    named.append(("partition", config.data.partition))
    named += [("model", m) for m in (config.student, *config.models)]
    named += [("loss", x) for x in losses]
    seen = set()
    for kind, spec in named:
        if (kind, spec.name) in seen:
            continue
        seen.add((kind, spec.name))
        module = plugins.resolve(kind, spec.name, search(config)).__module__
        file = getattr(sys.modules.get(module), "__file__", None)
        yield {
            "kind": kind,
            "name": spec.name,
            "module": module,
            "sha256": sha256(Path(file)) if file and os.path.isfile(file) else "unknown",
        }


def _files(spec: Named) -> Iterator[tuple[str, str]]:
    """The files that a source's parameters name, by their names alone, and their checksums."""
    for value in spec.params.values():
        if not isinstance(value, str) or not os.path.exists(value):
            continue
        path = Path(value)
        inside = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
        for file in inside[:_MOST_FILES]:
            yield file.name if file == path else file.relative_to(path).as_posix(), sha256(file)


def _seconds(run: Path) -> float | None:
    """How long the rounds took in all; None where that is not noted."""
    try:
        lines = (run / "timings.jsonl").read_text(encoding="utf-8").splitlines()
        return math.fsum(sum(json.loads(line)["seconds"].values()) for line in lines)
    except (OSError, ValueError, KeyError):
        return None


def wilson(share: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a share of n independent draws (E. B. Wilson, JASA 22, 1927)."""
    z = 1.959963984540054
    centre, scale = share + z * z / (2 * n), 1 + z * z / n
    width = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, (centre - width) / scale), min(1.0, (centre + width) / scale)


def checklist(
    config: Config,
    about: Mapping[str, Any],  # Any: JSON
    told: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]],
    seconds: float | None,
) -> str:
    """The usual questions about an experiment, answered as far as the run knows."""
    last, data = records[-1], told["data"]
    up, down = (sum(r["bytes"][way] for r in records) for way in ("up", "down"))
    steps = {who: sum(r["steps"][who] for r in records) for who in ("clients", "server")}
    versions = ", ".join(f"{n} {v}" for n, v in sorted(about.get("versions", {}).items()))
    partition = config.data.partition
    tests = config.data.test if config.data.test != "auto" else "the source's own"
    result = "- The method makes no student."
    if last.get("student"):
        share = last["student"]["test"]
        result = f"- Student after the last round: {share:.2%} on the test set."
        if n := told.get("test_rows"):
            low, high = wilson(share, n)
            result += (
                f" 95 % interval over the draw of these {n} test samples (Wilson): {low:.2%} to"
                f" {high:.2%}. It holds nothing of the variation over seeds."
            )
    public = "; ".join(f"{o['size']} {o['kind']}, licence {o['licence']}" for o in data["public"])
    lines = [
        f"# Reproducibility checklist: {config.name}",
        "",
        "Written by the run itself. What it cannot know stands at the end, to be filled in.",
        "",
        "## Data",
        f"- Source: {data['source']}; {data['provenance']}.",
        f"- Licence: {data['licence']}.",
        f"- Public sets: {public}.",
        f"- Splits: test {tests}, validation {config.data.validation}; test, validation, public and"
        " private samples are disjoint by construction.",
        f"- Partition: {json.dumps(partition.model_dump(mode='json'), sort_keys=True)} over"
        f" {len(told['teachers'])} clients, who hold"
        f" {min(t['samples'] for t in told['teachers'])} to"
        f" {max(t['samples'] for t in told['teachers'])} samples.",
        "- Test data are used for evaluation only; so are hidden public labels.",
        "",
        "## Seeds and trials",
        f"- Training seed {config.seed}, data seed {config.data_seed}.",
        "- Trials: this run is one. Mean and deviation over seeds take several runs, laid side by"
        " side with `python -m fedkd.report RUN RUN`.",
        "- The same experiment and seed give the same bytes with the same versions on the same kind"
        " of machine: `python -m fedkd.verify RUN`.",
        "",
        "## Method and models",
        f"- Method: {json.dumps(config.strategy.model_dump(mode='json'), sort_keys=True)};"
        f" world: {json.dumps(config.world.model_dump(mode='json'), sort_keys=True)}.",
        f"- Student: {told['student']['parameters']:,} parameters; teachers:"
        f" {min(t['parameters'] for t in told['teachers']):,} to"
        f" {max(t['parameters'] for t in told['teachers']):,}.",
        "- Every hyperparameter, defaults included: `config.yaml`. References: `citations.bib`.",
        "",
        "## Compute",
        f"- Machine: {about.get('machine', 'unknown')}; device {config.compute.device},"
        f" {config.compute.precision}; begun or resumed {len(about.get('sessions', []))} time(s).",
        f"- Versions: {versions or 'unknown'}.",
        f"- Rounds: {len(records)}; gradient steps of all clients {steps['clients']:,}, of the"
        f" server {steps['server']:,}.",
        f"- Communication: {up:,} bytes up, {down:,} bytes down.",
        f"- Time of the rounds: {'unknown' if seconds is None else f'{seconds:.1f} s'}.",
        "",
        "## Result",
        result,
        "- The student is reported after the last round and at its best round on the validation"
        " split, never at its best on the test set.",
        "",
        "## Not known to the run",
        "- How hyperparameters were chosen, over which ranges, and how many runs were made for it.",
        "- How many runs were left out of a publication, and why.",
        "- Whether the data may be used for the purpose at hand, beyond the licence named above.",
        "- Energy, cost and the time of other runs.",
    ]
    return "\n".join(lines) + "\n"

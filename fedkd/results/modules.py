"""Models of a finished run as ordinary torch modules, and as files for other programs."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from fedkd import data, disk, plugins
from fedkd.config import Config, ConfigError, Named
from fedkd.faults import shown
from fedkd.results.finished import finished

Format = Literal["safetensors", "torchscript", "torch.export", "onnx"]
ENDINGS: dict[str, str] = {
    "safetensors": ".safetensors",
    "torchscript": ".pt",
    "torch.export": ".pt2",
    "onnx": ".onnx",
}


def load_student(run: Path | str) -> nn.Module:
    """The student of a finished run with its weights, in eval mode, on the CPU.

    It takes normalised samples [B, …], as `fedkd.data.load(run / "data").batch(rows)` gives them,
    and returns logits [B, C]. Raises `ConfigError` for what is no finished run, or has no student.
    """
    path = Path(run)
    config = finished(path)
    file = path / "student.safetensors"
    if not file.is_file():
        raise ConfigError(
            f"run: {path} should have a student, found none: {config.strategy.name} makes none;"
            " load a teacher"
        )
    return _filled(path, config, config.student, "student", file)


def load_teacher(run: Path | str, client: int) -> nn.Module:
    """The same for the teacher of one client, counted from 0."""
    path = Path(run)
    config = finished(path)
    if not 0 <= client < len(config.models):
        raise ConfigError(
            f"teacher: should be from 0 to {len(config.models) - 1}, found {client}; correct it"
        )
    file = path / "teachers" / f"{client:05d}.safetensors"
    if not file.is_file():
        raise ConfigError(
            f"run: {file} should be there, found nothing; a replay trains no teachers: load those"
            " of its run"
        )
    return _filled(path, config, config.models[client], f"clients: the model of {client}", file)


def _filled(path: Path, config: Config, spec: Named, where: str, file: Path) -> nn.Module:
    facts = _data(path)
    where_to = config.execution.search or plugins.search_folders()
    factory = plugins.bind("model", spec, taken=2, search=where_to, expect=nn.Module, where=where)
    module = factory(facts.shape, facts.classes)
    assert isinstance(module, nn.Module)
    try:
        module.load_state_dict(load_file(file))
    except (SafetensorError, OSError, RuntimeError) as error:
        said = str(error).partition("\n")[0]
        raise ConfigError(
            f"run: {file} should hold the weights of {spec.name}, found: {said[:300]}; bring the"
            " file back, and the model to what it was"
        ) from None
    return module.eval()


def _data(path: Path) -> data.DataSet:
    try:
        return data.load(path / "data")
    except ValueError as error:
        raise ConfigError(str(error)) from None


def export_model(
    run: Path | str,
    path: Path | str,
    format: Format = "safetensors",
    teacher: int | None = None,
) -> Path:
    """Write the student, or the teacher of a client, to a new file; returns its path.

    `safetensors` holds the weights by name, with what they belong to in its metadata;
    `torchscript`, `torch.export` and `onnx` the whole model for batches of any size. Raises
    `ConfigError` for an unknown format, a file that exists, and where a package is missing.
    """
    if format not in get_args(Format):
        raise ConfigError(
            f"format: should be one of {', '.join(get_args(Format))}, found {shown(format)};"
            " correct it"
        )
    out = Path(path)
    if out.exists():
        raise ConfigError(
            f"out: should be a new file, found {out}, which exists; nothing is overwritten: name"
            " another one"
        )
    if format == "onnx" and (missing := [p for p in ("onnx", "onnxscript") if not _there(p)]):
        raise ConfigError(
            f"format: onnx should come with its packages, found no {' and no '.join(missing)};"
            " install them with pip install 'fedkd[onnx]'"
        )
    run = Path(run)
    module = load_student(run) if teacher is None else load_teacher(run, teacher)
    with disk.refusing(out.parent, "made"):
        out.parent.mkdir(parents=True, exist_ok=True)
    example = torch.zeros(2, *_data(run).shape)
    content = _safetensors(run, module, teacher) if format == "safetensors" else None
    if content is None:
        try:
            content = _CONTENT[format](module, example)
        except Exception as error:  # whatever a model does that a format cannot hold
            said = " ".join(str(error).split())[:300]
            raise ConfigError(
                f"format: the model should be one that {format} can hold, found"
                f" {type(error).__name__}: {said}; choose another format"
            ) from error
    disk.write_atomically(out, content)
    return out


def _safetensors(run: Path, module: nn.Module, teacher: int | None) -> bytes:
    config = finished(run)
    spec = config.student if teacher is None else config.models[teacher]
    facts = _data(run)
    about = {
        "model": json.dumps(spec.model_dump(mode="json")),
        "shape": json.dumps(list(facts.shape)),
        "classes": json.dumps(list(facts.class_names)),
        "mean": json.dumps(list(facts.mean)),
        "std": json.dumps(list(facts.std)),
        "fingerprint": config.fingerprint(),
    }
    return save({n: t.contiguous() for n, t in module.state_dict().items()}, about)


def _torchscript(module: nn.Module, example: Tensor) -> bytes:
    with warnings.catch_warnings():  # it is called deprecated and asked for all the same
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(module, example)
        held = io.BytesIO()
        torch.jit.save(traced, held)
    return held.getvalue()


def _exported(module: nn.Module, example: Tensor) -> bytes:
    batch = torch.export.Dim("batch")
    program = torch.export.export(module, (example,), dynamic_shapes=({0: batch},))
    held = io.BytesIO()
    torch.export.save(program, held)
    return held.getvalue()


def _onnx(module: nn.Module, example: Tensor) -> bytes:
    batch = torch.export.Dim("batch")
    with _hushed():
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            input_names=["samples"],
            output_names=["logits"],
            dynamic_shapes=({0: batch},),
            verbose=False,
        )
    assert program is not None, "a model that was exported gives a program"
    model: bytes = program.model_proto.SerializeToString()
    return model


_CONTENT = {"torchscript": _torchscript, "torch.export": _exported, "onnx": _onnx}


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """What the exporter says of its own inner life is nobody's business here."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _there(package: str) -> bool:
    return importlib.util.find_spec(package) is not None

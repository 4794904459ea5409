"""A model of a run as a file for other programs: `python -m fedkd.export RUN --format onnx`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fedkd import shell
from fedkd.results.finished import finished

_EPILOG = """\
examples:
  python -m fedkd.export runs/A                              weights by name: student.safetensors
  python -m fedkd.export runs/A --format onnx --out a.onnx   the whole model, for any ONNX runtime
  python -m fedkd.export runs/A --format torch.export        for torch.export.load
  python -m fedkd.export runs/A --format torchscript         for torch.jit.load, also from C++
  python -m fedkd.export runs/A --teacher 3                  the model of client 3

A model takes normalised samples (float32, any number of them) and gives logits. How samples are
normalised, (x - mean) / std a channel, bytes divided by 255 first, stands in RUN/data/data.json.
onnx needs pip install 'fedkd[onnx]'.
exit codes: 0 done, 1 failed on the way, 2 a fault in what was asked for, 130 interrupted."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=shell.typed("export"),
        description="Write the student of a run, or the teacher of a client, to a new file.",
        epilog=shell.as_typed(_EPILOG),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="the folder of a finished run")
    add("--format", default="safetensors", metavar="safetensors|torchscript|torch.export|onnx",
        help="how the model is kept (safetensors)")  # fmt: skip
    add("--teacher", type=int, metavar="K", help="the teacher of client K, from 0")
    add("--out", type=Path, metavar="FILE", help="a new file (in RUN/exported)")
    add("--debug", action="store_true", help="a traceback for every failure")
    given = parser.parse_args(arguments)
    return shell.answered(lambda: _do(given), given.debug)


def _do(given: argparse.Namespace) -> int:
    run: Path = given.run.absolute()
    finished(run)
    from fedkd.results.modules import ENDINGS, export_model

    name = "student" if given.teacher is None else f"teacher-{given.teacher:05d}"
    usual = run / "exported" / f"{name}{ENDINGS.get(given.format, '')}"
    print(shell.near(export_model(run, given.out or usual, given.format, given.teacher)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

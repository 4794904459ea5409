"""What a run is in a notebook, and the notebook of the pages, executed."""

import re
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest
import small

import fedkd
from fedkd import progress, runs

NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebook.ipynb"


class Handle:
    """A cell's output that is replaced in place."""

    def __init__(self) -> None:
        self.shown: list[str] = []

    def update(self, page: dict[str, str], raw: bool) -> None:
        assert raw and set(page) == {"text/plain"}
        self.shown.append(page["text/plain"])


class Kernel:
    """The shell of a notebook, as far as it is asked."""

    kernel = "a kernel"


@pytest.fixture
def cell(monkeypatch: pytest.MonkeyPatch) -> Handle:
    import IPython
    import IPython.display

    handle = Handle()
    monkeypatch.setattr(IPython, "get_ipython", Kernel)
    monkeypatch.setattr(IPython.display, "display", lambda *_, **__: handle)
    return handle


def record(number: int) -> dict[str, Any]:
    return {"round": number, "student": {"test": 0.5}, "ensemble": None, "teachers": None}


def test_a_cell_shows_one_text_of_a_bounded_length(cell: Handle) -> None:
    with progress.watching(1000) as watch:
        watch.event({"kind": "damage", "cause": "half a file"})
        for number in range(1, 1001):
            watch.round(record(number), {"server": 1.0})
    first, *_, last = cell.shown
    assert first == "start"
    lines = last.splitlines()
    assert len(lines) == 12 and lines[0] == "damaged: half a file"
    assert lines[1].startswith("round  991/1000   student  50.0%")
    assert "█ 1000/1000" in cell.shown[-2] and lines[-1].endswith(" s in all")


def test_a_stream_that_is_named_gets_lines_in_a_notebook_too(cell: Handle, tmp_path: Path) -> None:
    with (tmp_path / "log").open("w+") as stream, progress.watching(2, stream=stream) as watch:
        watch.round(record(1), {"server": 1.0})
        stream.seek(0)
        assert stream.read().startswith("round 1/2") and not cell.shown


def test_progress_is_shown_only_where_it_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = small.config(clients=[{"count": 2, "model": small.MLP}])

    def into(name: str) -> fedkd.Config:
        execution = chosen.execution.model_copy(update={"out": str(tmp_path / name)})
        return chosen.model_copy(update={"execution": execution})

    done = fedkd.run(into("silent"))
    assert not capsys.readouterr().err
    fedkd.run(into("shown"), progress=True)
    assert re.findall(r"^round (\d)/2", capsys.readouterr().err, re.MULTILINE) == ["1", "2"]
    assert fedkd.resume(done.folder, progress=True) == done
    table = done.table()
    assert list(table.index) == [1, 2] and table.index.name == "round"
    assert list(table["student/test"]) == [r["student"]["test"] for r in done.records]


def test_a_run_shows_itself(tmp_path: Path) -> None:
    unknown = {"round": 2, "student": None}
    shown = runs.Run(tmp_path / "<b>", [record(1), unknown])._repr_html_()
    assert re.findall(r"<td>(.*)</td>", shown) == ["50.0%", "—"]
    assert "&lt;b&gt;" in shown and "<b>" not in shown


def test_the_notebook_of_the_pages_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is, in a kernel of this interpreter; what it shows is what the page shows."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    stored = nbformat.read(NOTEBOOK, as_version=4)
    assert not stored.metadata.get("widgets")
    assert len(NOTEBOOK.read_bytes()) < 150_000, "outputs are kept small"
    kernel = {"kernel_name": "python3", "timeout": 120}
    where = {"metadata": {"path": str(tmp_path)}}
    run = nbclient.NotebookClient(nbformat.from_dict(stored), resources=where, **kernel).execute()
    for before, now in zip(stored.cells, run.cells, strict=True):
        assert kinds(before) == kinds(now), before.source
    assert len(list((tmp_path / "runs").iterdir())) == 4


def kinds(cell: Any) -> list[str]:
    """What a cell gives: text, a table, a picture."""
    return [max(o.get("data", {"text/plain": ""}), key=_richness) for o in cell.get("outputs", ())]


def _richness(kind: str) -> int:
    return ("text/plain", "text/html", "image/png").index(kind)

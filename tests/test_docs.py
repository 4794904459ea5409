"""The site builds without a warning and fetches nothing; the citation file is one."""

import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field

import fedkd

ROOT = Path(__file__).parents[1]
_FETCHED = re.compile(r'<(?:script|link|img|iframe)[^>]*(?:src|href)="(https?:)?//', re.IGNORECASE)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}  # its theme advertises a successor
    done = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr, done.stderr
    return out


def text_of(page: Path) -> str:
    """What a reader sees of a page, tags and entities aside."""
    shown = re.sub(r"<(script|style).*?</\1>|<[^>]+>", "", page.read_text("utf-8"), flags=re.DOTALL)
    return " ".join(shown.split())


def test_every_page_is_in_the_site(site: Path) -> None:
    pages = {p.stem for p in (ROOT / "docs").glob("*.md")} - {"index"}
    assert pages == {p.parent.name for p in site.glob("*/index.html")}
    assert "Quick start" in text_of(site / "index.html")


def test_the_site_fetches_nothing_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        assert not _FETCHED.search(page.read_text("utf-8")), page
    styles = [style.read_text("utf-8") for style in site.rglob("*.css")]
    assert styles and not any(re.search(r"(@import|url\()\s*['\"]?(https?:)?//", s) for s in styles)


def test_the_reference_shows_the_docstrings(site: Path) -> None:
    shown = text_of(site / "reference" / "index.html")
    for told in (fedkd.run, fedkd.load_config, fedkd.resume):
        first = (told.__doc__ or "").partition("\n")[0].replace("`", "")
        assert first in shown
    anchors = set(re.findall(r'id="(fedkd\.[\w.]+)"', (site / "reference/index.html").read_text()))
    assert {"fedkd.types.Strategy", "fedkd.transforms.sharpen", "fedkd.losses.kl"} <= anchors
    assert {"fedkd.config.Execution", "fedkd.trackers.Tracker", "fedkd.models.lenet5"} <= anchors


def test_notebook_and_changelog_are_in_the_site(site: Path) -> None:
    page = (site / "notebook" / "index.html").read_text("utf-8")
    assert "data:image/png;base64," in page and "teachers/test/mean</th>" in page
    assert "0.1.0" in text_of(site / "changelog" / "index.html")


def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "hooks.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_links_out_of_the_pages_become_names() -> None:
    def shown(text: str) -> str:
        made: str = hooks().on_page_markdown(text)
        return made

    assert shown("[strategies/](../strategies) here") == "strategies/ here"
    assert shown("[CI](../.ci/run)") == "CI (`.ci/run`)"
    assert shown("[README](../README.md#the-run-folder)") == "[README](index.md)"
    assert shown("[Data](data.md#files)") == "[Data](data.md#files)"
    with pytest.raises(AssertionError, match="nowhere"):
        shown("[x](../nowhere.py)")


def test_the_versions_of_the_pages_are_those_of_the_constraints() -> None:
    pinned = dict(re.findall(r"(?m)^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text()))
    page = (ROOT / "docs" / "installation.md").read_text(encoding="utf-8")
    rows = re.findall(r"(?m)^\| (\w+)[\w` ]* \| ([\d.]+) \| .* \| ([\d.]+) \|$", page)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[\[=>]", d)[0]: re.split("[=>]=", d)[1] for d in project["dependencies"]}
    assert {name for name, _, _ in rows} > {"torch", "flwr", "ray", "numpy"}
    for name, lowest, tested in rows:
        if name != "Python":
            assert (declared[name], pinned[name]) == (lowest, tested), name
    extras = re.search(r"(?s)## Extras\n(.*?)\n## ", page)
    assert extras
    named = set(re.findall(r"`(\w+)`", re.sub(r"(?m)^(?!\| `).*$|\| [^`|]*\|$", "", extras[1])))
    assert set(project["optional-dependencies"]) <= named


class Person(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str


class Citation(BaseModel):
    """What of the Citation File Format 1.2.0 is used here; no other key is known."""

    model_config = ConfigDict(extra="forbid")
    cff_version: Annotated[Literal["1.2.0"], Field(alias="cff-version")]
    message: str
    title: str
    type: Literal["software", "dataset"]
    abstract: str
    authors: Annotated[list[Person], Field(min_length=1)]
    version: str
    license: Literal["Apache-2.0"]
    keywords: Annotated[list[str], Field(min_length=1)]


def test_the_citation_file_is_one() -> None:
    tree: Any = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    cited = Citation.model_validate(tree)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert cited.version == project["version"] == fedkd.__version__
    assert cited.license == project["license"]
    assert "Wu et al., 2022" in cited.abstract and "not" in cited.abstract
    page = (ROOT / "docs" / "citing.md").read_text(encoding="utf-8")
    assert cited.title in page and f"{{{cited.version}}}" in page
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## {cited.version}" in changes

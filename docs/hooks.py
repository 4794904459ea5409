"""The site's pages are those of the repository: what they link to outside of `docs/` lies there."""

import re
from pathlib import Path
from typing import Any

import nbformat

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
_OUTWARDS = re.compile(r"\[([^\]]*)\]\(\.\./([^)\s#]*)(#[^)\s]*)?\)")
_NOTEBOOK_FILE = "[notebook.ipynb](notebook.ipynb)"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links into the repository become names of files; changelog and notebook stand where asked.

    The site does not know where its repository is published, so that it cannot link there.
    """
    markdown = _OUTWARDS.sub(_named, markdown).replace(_NOTEBOOK_FILE, "`docs/notebook.ipynb`")
    if "<!-- CHANGELOG.md -->" in markdown:
        text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
        markdown = markdown.replace("<!-- CHANGELOG.md -->", text.partition("\n")[2])
    if "<!-- notebook.ipynb -->" in markdown:
        markdown = markdown.replace("<!-- notebook.ipynb -->", _notebook(DOCS / "notebook.ipynb"))
    return markdown


def _named(found: re.Match[str]) -> str:
    text, path = found[1], found[2]
    if path == "README.md":
        return f"[{text}](index.md)"
    assert (ROOT / path).exists(), f"a page links to {path}, which is not there"
    return text if path in text or "`" in text else f"{text} (`{path}`)"


def _notebook(path: Path) -> str:
    """A notebook as Markdown, with what its cells gave. Its first heading is the page's own."""
    parts = []
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            parts.append(re.sub(r"^# .*\n+", "", cell.source))
        else:
            parts.append(f"```python\n{cell.source}\n```")
            parts += [_given(output) for output in cell.outputs]
    return "\n\n".join(parts)


def _given(output: Any) -> str:  # Any: a node of nbformat
    data = output.get("data", {"text/plain": output.get("text", "")})
    if "image/png" in data:
        picture = "".join(data["image/png"].split())
        return f'<img alt="What the cell drew" src="data:image/png;base64,{picture}">'
    if "text/html" in data:  # a style of its own would fight the site's
        table = re.sub(r"<style.*?</style>", "", data["text/html"], flags=re.DOTALL)
        table = re.sub(r' (class="dataframe"|border="1"|style="[^"]*")', "", table)
        return re.sub(r"^\s+", "", table, flags=re.MULTILINE)
    return f"```text\n{data['text/plain'].rstrip()}\n```"

"""A report as one page of HTML that needs nothing else: no network, no other file.

Foreign text cannot become markup: prose goes through markdown-it without HTML, links and pictures,
all else is escaped, and a content security policy lets only the page's own script run.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import asdict, replace
from functools import cache
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING

from fedkd.reporting.charts import Bars, Chart, Lines
from fedkd.reporting.document import Document
from fedkd.reporting.tabular import Table

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

_MOST_PLACES = 400  # on an axis
_MOST_CELLS = 8000


def html(document: Document) -> str:
    """The whole page."""
    style, script = _part("page.css"), _part("page.js")
    policy = f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}"
    blocks: list[str] = []
    for block in document.blocks:
        if isinstance(block, str):
            blocks.append(_prose(block))
        elif isinstance(block, Table):
            blocks.append(_table(block))
    charts = [thinned(chart) for chart in document.charts]
    figures = "".join(map(_figure, charts))
    notes = "".join(
        f'<div class="note" role="note">{_prose(note)}</div>' for note in document.notes
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_plain(document.title)}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        f"<header><h1>{_inline(document.title)}</h1>"
        '<button type="button" class="theme">Dark</button></header>\n<main>\n'
        f"{notes}{''.join(blocks)}\n"
        f'<section id="charts" aria-label="Charts">{figures}</section>\n</main>\n'
        "<noscript><p>The charts are drawn by a script, which this browser does not run.</p>"
        f'</noscript>\n<script type="application/json" id="data">{_data(charts)}</script>\n'
        f"<script>{script}</script>\n</body>\n</html>\n"
    )


def thinned(chart: Chart) -> Chart:
    """Of very many rounds or clients one in so many, which the note says; a page stays quick."""
    if isinstance(chart, Lines):
        longest = max((len(series.points) for series in chart.series), default=0)
        every = -(-longest // _MOST_PLACES)
    elif isinstance(chart, Bars):
        every = -(-len(chart.categories) // _MOST_PLACES)
    else:
        every = -(-len(chart.rows) * len(chart.columns) // _MOST_CELLS)
    if every < 2:
        return chart
    note = f"{chart.note} Of very many places the page shows one in {every}.".strip()
    if isinstance(chart, Lines):
        lines = [
            replace(s, points=s.points[::every], band=s.band[::every], labels=s.labels[::every])
            for s in chart.series
        ]
        return replace(chart, series=tuple(lines), note=note)
    if isinstance(chart, Bars):
        groups = tuple(replace(group, values=group.values[::every]) for group in chart.groups)
        return replace(chart, categories=chart.categories[::every], groups=groups, note=note)
    rows, values = chart.rows[::every], chart.values[::every]
    return replace(chart, rows=rows, values=values, note=note, every=every)


def _part(name: str) -> str:
    return files("fedkd.reporting").joinpath(name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    digest = hashlib.sha256(content.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


@cache
def _reader() -> MarkdownIt:
    from markdown_it import MarkdownIt

    reader = MarkdownIt("commonmark", {"html": False}).enable("table")
    return reader.disable(["image", "link", "autolink", "reference"])


def _prose(text: str) -> str:
    rendered: str = _reader().render(text)
    # quotes and angle brackets of the text itself are escaped, so these are the renderer's own
    rendered = rendered.replace('style="text-align:right"', 'class="figure"')
    return rendered.replace("<table>", '<div class="scroll"><table class="sortable">').replace(
        "</table>", "</table></div>"
    )


def _inline(text: str) -> str:
    rendered: str = _reader().renderInline(text)
    return rendered


def _plain(text: str) -> str:
    """A title as text: what `inert` wrote for Markdown, read back and escaped once."""
    tokens = _reader().parseInline(text)
    return escape("".join(child.content for token in tokens for child in token.children or ()))


def _table(table: Table) -> str:
    heads = "".join(
        f'<th scope="col"{"" if column.text else " class=figure"}>{escape(column.title)}</th>'
        for column in table.columns
    )
    rows = []
    for row in table.rows:
        cells = []
        for column, cell in zip(table.columns, row, strict=True):
            first = cell.values[0]
            bare = "" if first is None else str(first)
            form = "" if column.text else " class=figure"
            cells.append(f'<td{form} data-value="{escape(bare)}">{escape(cell.text)}</td>')
        rows.append(f"<tr>{''.join(cells)}</tr>")
    note = f'<p class="aside">{escape(table.note)}</p>' if table.note else ""
    return (
        f'<section><h2 id="table-{table.key}">{escape(table.title)}</h2><div class="scroll">'
        f'<table class="sortable" aria-labelledby="table-{table.key}"><thead><tr>{heads}</tr>'
        f"</thead><tbody>{''.join(rows)}</tbody></table></div>{note}</section>"
    )


def _figure(chart: Chart) -> str:
    note = f'<p class="aside">{escape(chart.note)}</p>' if chart.note else ""
    return (
        f'<figure id="chart-{chart.key}"><figcaption>{escape(chart.title)}</figcaption>'
        f"{note}</figure>"
    )


def _data(charts: list[Chart]) -> str:
    """As JSON in which no `<` can end the element that holds it."""
    content = [
        asdict(c)
        | {"kind": "lines" if isinstance(c, Lines) else "bars" if isinstance(c, Bars) else "heat"}
        for c in charts
    ]
    return json.dumps(content, ensure_ascii=True, allow_nan=False).replace("<", "\\u003c")

"""A report as a sequence of prose, tables and charts, whatever it is written as later."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fedkd.reporting import tabular
from fedkd.reporting.charts import Bars, Chart, Heat, Lines
from fedkd.reporting.tabular import Table

Block = str | Table | Chart  # a string is Markdown in which no foreign markup is alive


@dataclass(frozen=True, slots=True)
class Document:
    """`notes` are what a reader must know before any figure."""

    title: str
    notes: tuple[str, ...]
    blocks: tuple[Block, ...]

    @property
    def tables(self) -> Iterator[Table]:
        return (block for block in self.blocks if isinstance(block, Table))

    @property
    def charts(self) -> Iterator[Chart]:
        return (block for block in self.blocks if isinstance(block, Lines | Bars | Heat))


def markdown(document: Document, pictures: bool = False) -> str:
    """The text and the tables; with `pictures` the charts, as `pictures/KEY.png`."""
    parts = [f"# {document.title}\n", *(f"> **{note}**\n" for note in document.notes)]
    for block in document.blocks:
        if isinstance(block, str):
            parts.append(block)
        elif isinstance(block, Table):
            parts.append(tabular.markdown(block))
        elif pictures:
            parts.append(f"![{block.title}](pictures/{block.key}.png)\n")
            parts += [f"{block.note}\n"] if block.note else []
    return "\n".join(parts)


def latex(document: Document) -> str:
    r"""All tables and pictures, to be \input; `\fedkdpath` is where the report lies."""
    parts = [
        "% needs \\usepackage{booktabs,graphicx}; from another folder first\n"
        "% \\newcommand{\\fedkdpath}{PATH/OF/THIS/FOLDER/}\n"
        "\\providecommand{\\fedkdpath}{}\n"
    ]
    parts += [tabular.latex(table) for table in document.tables]
    for chart in document.charts:
        parts.append(
            "\\begin{figure}[htbp]\n\\centering\n"
            f"\\includegraphics[width=\\linewidth]{{\\fedkdpath pictures/{chart.key}.png}}\n"
            f"\\caption{{{tabular.escaped(' '.join([chart.title + '.', chart.note]))}}}\n"
            f"\\label{{fig:fedkd-{chart.key}}}\n\\end{{figure}}\n"
        )
    return "\n".join(parts)

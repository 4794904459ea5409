"""A table once, and as Markdown, LaTeX and CSV; foreign text is escaped for each of them."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field

from fedkd.phrases import NOTHING, grid, inert

Value = float | str | None


@dataclass(frozen=True, slots=True)
class Cell:
    """What is read, and the bare values behind it (shares in 0..1, bytes, counts)."""

    text: str
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Column:
    """A title, and the names of the values behind its cells; text stands to the left."""

    title: str
    names: tuple[str, ...]
    text: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """`key` is made of letters, digits and '-', and names its files."""

    key: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = field(default="")

    def __post_init__(self) -> None:
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"table {self.key}: every row should have a cell for every column")


def text(content: str) -> Cell:
    """A cell of words."""
    return Cell(content, (content,))


def number(value: float | None, shown: str) -> Cell:
    """A cell of one number as it is to be shown; a dash where there is none."""
    return Cell(NOTHING if value is None else shown, (value,))


def markdown(table: Table) -> str:
    """The table under its title; no markup of foreign text comes alive."""
    head = [inert(column.title) for column in table.columns]
    body = [[inert(cell.text) for cell in row] for row in table.rows]
    left = [place for place, column in enumerate(table.columns) if column.text]
    note = f"\n{inert(table.note)}\n" if table.note else ""
    return f"**{inert(table.title)}**\n\n{grid([head, *body], texts=left)}{note}"


def as_csv(table: Table) -> str:
    """Bare values under one line of names; empty where there is none."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([name for column in table.columns for name in column.names])
    for row in table.rows:
        writer.writerow([_plain(value) for cell in row for value in cell.values])
    return out.getvalue()


def _plain(value: Value) -> str:
    if value is None:
        return ""
    if isinstance(value, str):  # a spreadsheet would take some beginnings for a formula
        return f"'{value}" if value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
    return repr(value)


def latex(table: Table) -> str:
    r"""A `table` environment in booktabs' rules; needs `\usepackage{booktabs}` and nothing else."""
    form = "".join("l" if column.text else "r" for column in table.columns)
    lines = [
        r"\begin{table}[htbp]",
        r"\centering\small",
        rf"\caption{{{escaped(table.title)}}}",
        rf"\label{{tab:fedkd-{table.key}}}",
        rf"\begin{{tabular}}{{@{{}}{form}@{{}}}}",
        r"\toprule",
        _row([column.title for column in table.columns]),
        r"\midrule",
        *(_row([cell.text for cell in row]) for row in table.rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    if table.note:
        lines.append(rf"\par\smallskip\begin{{minipage}}{{\linewidth}}\footnotesize "
                     rf"{escaped(table.note)}\end{{minipage}}")  # fmt: skip
    return "\n".join([*lines, r"\end{table}", ""])


def _row(cells: Sequence[str]) -> str:
    return " & ".join(map(escaped, cells)) + r" \\"


_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#",
    "%": r"\%", "_": r"\_", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r'{\string"}',
    "`": r"\textasciigrave{}", "[": r"{[}", "]": r"{]}",
    "±": r"\ensuremath{\pm}", "−": r"\ensuremath{-}", "×": r"\ensuremath{\times}",
    "·": r"\ensuremath{\cdot}", "→": r"\ensuremath{\rightarrow}", "≥": r"\ensuremath{\geq}",
    "—": "---", "–": "--", "…": r"\dots{}", "\u00a0": "~",
}  # fmt: skip


def escaped(content: str) -> str:
    """Text that any LaTeX sets as it stands; a character beyond Latin is told by its number."""
    found = list[str]()
    for character in " ".join(content.split()):
        if character == "-" and found[-1:] == ["-"]:  # two would become a dash
            found.append("{}")
        if character in _LATEX:
            found.append(_LATEX[character])
        elif character.isascii() or ("\u00c0" <= character <= "\u00ff"):
            found.append(character if character.isprintable() else " ")
        else:
            found.append(rf"\texttt{{U+{ord(character):04X}}}")
    return "".join(found)

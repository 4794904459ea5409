"""Numbers, lists and foreign text as a reader can take them in."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

NOTHING = "—"  # where a table has no figure
_MOST_RANGES = 8
_MOST_CHARACTERS = 200
A_SENTENCE = 500  # characters of what is told in full


def grid(lines: Sequence[Sequence[str]], texts: Collection[int] = (0,)) -> str:
    """A Markdown table; its first line is the head, the columns in `texts` stand to the left."""
    head, *body = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    rule = ["---" if column in texts else "---:" for column in range(len(head))]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *body)) + "\n"


def size_text(count: float) -> str:
    """Bytes in decimal units: 72,000 is 72.0 kB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.95:
            return f"{count:.{0 if unit == 'B' else 1}f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def time_text(seconds: float) -> str:
    """Seconds to three digits at least: 0.0123, 12.3, 1,234."""
    return f"{seconds:,.0f}" if seconds >= 99.95 else f"{seconds:.3g}"


def extent(counts: Sequence[int]) -> str:
    """The smallest and the largest: 3 to 1,200."""
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def ranges(numbers: Iterable[int]) -> str:
    """Whole numbers in order, neighbours drawn together: 0–3, 7; of very many the first."""
    found: list[list[int]] = []
    for number in sorted(set(numbers)):
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    parts = [f"{a}" if a == b else f"{a}, {b}" if b == a + 1 else f"{a}–{b}" for a, b in found]
    if len(parts) > _MOST_RANGES:
        count = sum(b - a + 1 for a, b in found)
        return f"{', '.join(parts[:_MOST_RANGES])}, … ({count:,} in all)"
    return ", ".join(parts)


def plain(text: str, most: int = _MOST_CHARACTERS) -> str:
    """The first line of a text that others wrote, without what a terminal would obey, not long."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    shown = "".join(c if c.isprintable() else " " for c in first)
    shown = " ".join(shown.split())
    return shown if len(shown) <= most else shown[: most - 1] + "…"


def inert(text: str) -> str:
    """A text that others wrote, for Markdown: no markup, link or picture of theirs comes alive."""
    for mark, instead in (("&", "&amp;"), ("<", "&lt;"), ("](", "]\\("), ("`", "'")):
        text = text.replace(mark, instead)
    return text

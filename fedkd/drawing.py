"""What the pictures of a report share: style, canvas, names at the ends of curves.

matplotlib is imported when a picture is drawn, without pyplot: nothing opens a window and no global
figure is left behind. Equal data and an equal matplotlib give equal bytes. Colours are Okabe and
Ito's, which people with the common colour-vision deficiencies can tell apart.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9",
)  # fmt: skip
INK, MUTED, FAINT = "#222222", "#6B6B6B", "#E4E4E4"
_STYLE = {"font.size": 9, "axes.linewidth": 0.6, "text.color": INK, "axes.labelcolor": INK,
          "xtick.color": MUTED, "ytick.color": MUTED, "axes.edgecolor": MUTED}  # fmt: skip
_DOTS_PER_INCH = 200


def render(draw: Callable[[Figure], None], size: tuple[float, float]) -> bytes:
    """A picture of so many inches as the bytes of a PNG file."""
    import matplotlib.style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # from the defaults, so that a user's matplotlibrc does not change a stored picture
    with matplotlib.style.context(["default", _STYLE]):
        figure = Figure(figsize=size, dpi=_DOTS_PER_INCH, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        out = io.BytesIO()
        figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def name_ends(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Write every curve's name at its end; names that would overlap are moved apart.

    A hair line leads from a moved name back to the height it belongs to.
    """
    low, high = axes.get_ylim()
    placed = sorted(ends)
    heights = spread([level for level, _, _ in placed], 0.066 * (high - low), low, high)
    right = axes.get_yaxis_transform()  # x in parts of the axes, y in percent
    for (level, text, colour), height in zip(placed, heights, strict=True):
        axes.plot([1.01, 1.03, 1.05], [level, height, height], transform=right, color=colour,
                  linewidth=0.6, clip_on=False)  # fmt: skip
        axes.text(1.06, height, text, transform=right, color=colour, va="center",
                  fontweight="bold" if text.startswith("Student ") else "normal")  # fmt: skip


def spread(levels: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Ascending `levels` moved as little as needed to lie `gap` apart, inside low..high.

    Where they do not fit, the gap shrinks to what there is.
    """
    if len(levels) < 2:
        return list(levels)
    gap = min(gap, (high - low) / (len(levels) - 1))
    # y_i - i * gap must not descend: pooling neighbours that do is the least-squares answer
    pools: list[list[float]] = []
    for i, level in enumerate(levels):
        pools.append([level - i * gap])
        while len(pools) > 1 and sum(pools[-2]) / len(pools[-2]) > sum(pools[-1]) / len(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    flat = [sum(pool) / len(pool) for pool in pools for _ in pool]
    room = high - (len(levels) - 1) * gap
    return [min(max(base, low), room) + i * gap for i, base in enumerate(flat)]

"""How every figure looks: quiet lines, no frame, text that stays text; the same data gives the same file."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class Palette:
    """The colours of words, of quieter words, of lines, and of the ground behind them."""

    ink: str
    quiet: str
    line: str
    ground: str


PRINT_PALETTE = Palette(ink="#1c1f24", quiet="#5a616b", line="#e0ddd6", ground="#ffffff")
"""Of figures that are read on their own."""


def plot_settings(palette: Palette, font: int) -> dict[Any, Any]:
    """Return matplotlib's settings for a palette and a size of text in points."""
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": "tips",
        "font.size": font,
        "text.color": palette.ink,
        "text.parse_math": False,
        "axes.edgecolor": palette.line,
        "axes.facecolor": "none",
        "axes.labelcolor": palette.quiet,
        "axes.spines.left": False,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.axisbelow": True,
        "figure.facecolor": palette.ground,
        "grid.color": palette.line,
        "grid.linewidth": 1,
        "xtick.color": palette.line,
        "xtick.labelcolor": palette.quiet,
        "ytick.color": palette.line,
        "ytick.labelcolor": palette.quiet,
        "ytick.major.size": 0,
    }


def save_figure(figure: "Figure", file: Path) -> None:
    """Write a figure into an .svg or .png file, without the time. Raises OSError."""
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)

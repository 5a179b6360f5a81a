"""The style of all figures: no frame, thin grid lines, text kept as text. Equal data gives an identical file."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class Palette:
    """The colours of text, secondary text, grid lines and background."""

    text: str
    secondary: str
    grid: str
    background: str


PRINT_PALETTE = Palette(text="#1c1f24", secondary="#5a616b", grid="#e0ddd6", background="#ffffff")
"""The palette of figures that are written to files."""


def plot_settings(palette: Palette, font_size: int) -> dict[Any, Any]:
    """Return matplotlib's rcParams for a palette and a font size in points."""
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": "tips",
        "font.size": font_size,
        "text.color": palette.text,
        "text.parse_math": False,
        "axes.edgecolor": palette.grid,
        "axes.facecolor": "none",
        "axes.labelcolor": palette.secondary,
        "axes.spines.left": False,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.axisbelow": True,
        "figure.facecolor": palette.background,
        "grid.color": palette.grid,
        "grid.linewidth": 1,
        "xtick.color": palette.grid,
        "xtick.labelcolor": palette.secondary,
        "ytick.color": palette.grid,
        "ytick.labelcolor": palette.secondary,
        "ytick.major.size": 0,
    }


def save_figure(figure: "Figure", file: Path) -> None:
    """Write a figure to an .svg or .png file, without a timestamp. Raises OSError."""
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)

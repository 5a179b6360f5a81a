"""The figure of what policies lose, readable on its own: on a light ground, with each name at the end of its line."""

from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

from ml.platform.plot_style import PRINT_PALETTE, plot_settings, save_figure
from ml.simulation.regret import RegretComparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LINES = (("#6a717c", "-"), ("#8a6a00", "--"), ("#0069b0", "-"), ("#00805c", "-"))
_FONT = 12


def draw(played: RegretComparison, file: Path) -> None:
    """Draw the regret of each policy over time into an .svg or .png file; the same for the same outcomes.

    Raises OSError for a file that cannot be written.
    """
    import matplotlib as mpl  # heavy, and nothing but this figure needs it
    from matplotlib.figure import Figure

    with mpl.rc_context(plot_settings(PRINT_PALETTE, _FONT)):
        figure = Figure(figsize=(8, 4.4), dpi=144)
        axes = figure.add_axes((0.085, 0.125, 0.715, 0.68))
        for outcome, (colour, stroke) in zip(played.policies, cycle(_LINES), strict=False):
            axes.plot(outcome.regret, stroke, color=colour, linewidth=2.25)
        days = played.oracle.regret.size - 1
        axes.set_xlim(0, days)
        axes.set_ylim(0, max(1.0, axes.get_ylim()[1]))
        axes.set_xlabel("days")
        axes.locator_params(integer=True)
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.grid(axis="y")
        _names_beside(axes, played)
        figure.text(0.02, 0.93, "Regret: tips that would have helped if everybody's taste had been known", size=14)
        words = f"Added up over {played.tips:,} simulated tips for each policy; it learns of reactions a day late"
        figure.text(0.02, 0.87, words, color=PRINT_PALETTE.secondary)
        save_figure(figure, file)


def _names_beside(axes: "Axes", played: RegretComparison) -> None:
    """Write each policy's name and its regret right of its line's end, moved up where two would meet."""
    apart = 1.5 * _FONT * (axes.get_ylim()[1] / (axes.bbox.height / axes.figure.dpi * 72))
    placed = -apart
    ends = [
        (float(outcome.regret[-1]), outcome.policy, colour)
        for outcome, (colour, _) in zip(played.policies, cycle(_LINES), strict=False)
    ]
    for regret, policy, colour in sorted(ends):
        placed = max(placed + apart, regret)
        at = (played.oracle.regret.size - 1, placed)
        axes.annotate(
            f"{policy} {regret:,.0f}",
            at,
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            annotation_clip=False,
        )

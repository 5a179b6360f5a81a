"""The figure of the regret of each policy, for documents: light background, policy names at the ends of the lines."""

from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

from ml.platform.plot_style import PRINT_PALETTE, plot_settings, save_figure
from ml.simulation.regret import RegretComparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LINE_STYLES = (("#6a717c", "-"), ("#8a6a00", "--"), ("#0069b0", "-"), ("#00805c", "-"))
"""Colour and dash pattern."""

_FONT_SIZE = 12


def draw(comparison: RegretComparison, file: Path) -> None:
    """Draw the regret of each policy over time to an .svg or .png file; the same comparison gives the same file.

    Raises OSError for a file that cannot be written.
    """
    import matplotlib as mpl  # heavy, and needed by this figure only
    from matplotlib.figure import Figure

    with mpl.rc_context(plot_settings(PRINT_PALETTE, _FONT_SIZE)):
        figure = Figure(figsize=(8, 4.4), dpi=144)
        axes = figure.add_axes((0.085, 0.125, 0.715, 0.68))
        for outcome, (colour, dashes) in zip(comparison.policies, cycle(_LINE_STYLES), strict=False):
            axes.plot(outcome.regret, dashes, color=colour, linewidth=2.25)
        days = comparison.oracle.regret.size - 1
        axes.set_xlim(0, days)
        axes.set_ylim(0, max(1.0, axes.get_ylim()[1]))
        axes.set_xlabel("days")
        axes.locator_params(integer=True)
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.grid(axis="y")
        _label_lines(axes, comparison)
        figure.text(0.02, 0.93, "Regret: additional tips that would have helped if preferences were known", size=14)
        subtitle = f"Cumulative, {comparison.tips:,} simulated tips per policy; reactions are known after one day"
        figure.text(0.02, 0.87, subtitle, color=PRINT_PALETTE.secondary)
        save_figure(figure, file)


def _label_lines(axes: "Axes", comparison: RegretComparison) -> None:
    """Write the name and the regret of each policy next to the end of its line; move labels up that would overlap."""
    min_distance = 1.5 * _FONT_SIZE * (axes.get_ylim()[1] / (axes.bbox.height / axes.figure.dpi * 72))
    y = -min_distance
    ends = [
        (float(outcome.regret[-1]), outcome.policy, colour)
        for outcome, (colour, _) in zip(comparison.policies, cycle(_LINE_STYLES), strict=False)
    ]
    for regret, policy, colour in sorted(ends):
        y = max(y + min_distance, regret)
        axes.annotate(
            f"{policy} {regret:,.0f}",
            (comparison.oracle.regret.size - 1, y),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            annotation_clip=False,
        )

"""The figure of an off-policy evaluation: all estimates with their intervals, below the verdict."""

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml.experiments.evaluation import Estimate
from ml.pipelines.evaluation import BEST, EvaluationReport, percent
from ml.platform.plot_style import PRINT_PALETTE, plot_settings, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BEST_COLOUR, _OTHER_COLOUR, _REFUSED_COLOUR = "#0069b0", "#7fb0d4", "#b9b6af"
_FONT, _WIDTH, _ROW_HEIGHT = 12, 576, 32
"""In points."""
_MAX_LINE_LENGTH, _MAX_NAME_LENGTH = 80, 36
_MIN_AXIS_SPAN = 0.1
"""The minimum span of the reward axis, so that a tiny difference does not look large."""


def draw(report: EvaluationReport, file: Path) -> None:
    """Draw the reward of the log and every estimate, each with its interval, into an .svg or .png file.

    The same report gives the same figure. Raises OSError for a file that cannot be written.
    """
    import matplotlib as mpl  # heavy, and only needed here
    from matplotlib.figure import Figure

    estimates = {"the log": report.earned, **report.estimates}
    verdict_lines = textwrap.wrap(report.verdict, _MAX_LINE_LENGTH)
    above, below = 34 + 17 * len(verdict_lines), 48
    height = above + _ROW_HEIGHT * len(estimates) + below
    with mpl.rc_context(plot_settings(PRINT_PALETTE, _FONT)):
        figure = Figure(figsize=(_WIDTH / 72, height / 72), dpi=144)
        axes = figure.add_axes((76 / _WIDTH, below / height, 1 - 146 / _WIDTH, _ROW_HEIGHT * len(estimates) / height))
        for index, (name, estimate) in enumerate(estimates.items()):
            _draw_interval(axes, -index, estimate, _colour(name, estimate))
        axes.axvline(report.earned.value, color=PRINT_PALETTE.secondary, linewidth=1, linestyle=(0, (2, 3)), zorder=0)
        axes.set_yticks([-index for index in range(len(estimates))], [*estimates], color=PRINT_PALETTE.text)
        axes.set_ylim(0.5 - len(estimates), 0.5)
        _format_reward_axis(axes)
        name = report.policy
        if len(name) > _MAX_NAME_LENGTH:
            name = f"{name[: _MAX_NAME_LENGTH - 1]}…"
        figure.text(14 / _WIDTH, 1 - 24 / height, f"What {name} would have earned", size=14, weight="bold")
        figure.text(14 / _WIDTH, 1 - 32 / height, "\n".join(verdict_lines), va="top", linespacing=1.25)
        legend = "grey: not valid" if report.best.refusal else f"use {BEST} as the estimate"
        footer = (
            f"{report.decisions:,} decisions, {report.users:,} users; drawn: 95% intervals for a single look; {legend}"
        )
        figure.text(14 / _WIDTH, 10 / height, footer, color=PRINT_PALETTE.secondary, size=10)
        save_figure(figure, file)


def _draw_interval(axes: "Axes", y: float, estimate: Estimate, colour: str) -> None:
    axes.hlines(y, estimate.low, estimate.high, colour, linewidth=3)
    axes.plot(estimate.value, y, "o", color=colour, markersize=9, markeredgecolor=PRINT_PALETTE.background)
    right_of_axes: dict[str, Any] = {"xytext": (8, 0), "textcoords": "offset points", "va": "center"}
    axes.annotate(
        percent(estimate.value), (1, y), xycoords=("axes fraction", "data"), color=PRINT_PALETTE.text, **right_of_axes
    )


def _colour(name: str, estimate: Estimate) -> str:
    if name == "the log":
        return PRINT_PALETTE.secondary
    if estimate.refusal:
        return _REFUSED_COLOUR
    return _BEST_COLOUR if name == BEST else _OTHER_COLOUR


def _format_reward_axis(axes: "Axes") -> None:
    low, high = axes.get_xlim()
    if high - low < _MIN_AXIS_SPAN:
        axes.set_xlim((low + high - _MIN_AXIS_SPAN) / 2, (low + high + _MIN_AXIS_SPAN) / 2)
    axes.locator_params("x", nbins=7)
    axes.xaxis.set_major_formatter(lambda reward, _: f"{100 * reward:g}%")
    axes.grid(axis="x")

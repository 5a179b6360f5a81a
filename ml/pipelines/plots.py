"""The figure of what a policy would have earned, readable on its own: on a light ground, with its verdict above."""

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml.experiments.evaluation import Estimate
from ml.pipelines.evaluation import BEST, EvaluationReport, percent
from ml.platform.plot_style import PRINT_PALETTE, plot_settings, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BEST, _OTHERS, _WORTHLESS = "#0069b0", "#7fb0d4", "#b9b6af"
_FONT, _WIDTH, _ROW = 12, 576, 32
"""In points."""
_LONGEST_LINE, _LONGEST_NAME = 80, 36
_LEAST_SPAN = 0.1
"""That the axis spans at least: a difference of next to nothing should not look like one."""


def draw(report: EvaluationReport, file: Path) -> None:
    """Draw every estimate with its interval, beside what the log earned, into an .svg or .png file.

    The same report gives the same figure. Raises OSError for a file that cannot be written.
    """
    import matplotlib as mpl  # heavy, and nothing but this figure needs it
    from matplotlib.figure import Figure

    rows = {"the log": report.earned, **report.estimates}
    words = textwrap.wrap(report.verdict, _LONGEST_LINE)
    above, below = 34 + 17 * len(words), 48
    height = above + _ROW * len(rows) + below
    with mpl.rc_context(plot_settings(PRINT_PALETTE, _FONT)):
        figure = Figure(figsize=(_WIDTH / 72, height / 72), dpi=144)
        axes = figure.add_axes((76 / _WIDTH, below / height, 1 - 146 / _WIDTH, _ROW * len(rows) / height))
        for index, (name, estimate) in enumerate(rows.items()):
            _interval(axes, -index, estimate, _colour(name, estimate))
        axes.axvline(report.earned.value, color=PRINT_PALETTE.secondary, linewidth=1, linestyle=(0, (2, 3)), zorder=0)
        axes.set_yticks([-index for index in range(len(rows))], [*rows], color=PRINT_PALETTE.text)
        axes.set_ylim(0.5 - len(rows), 0.5)
        _percent_below(axes)
        name = report.policy if len(report.policy) <= _LONGEST_NAME else f"{report.policy[: _LONGEST_NAME - 1]}…"
        figure.text(14 / _WIDTH, 1 - 24 / height, f"What {name} would have earned", size=14, weight="bold")
        figure.text(14 / _WIDTH, 1 - 32 / height, "\n".join(words), va="top", linespacing=1.25)
        advice = "grey: worthless" if report.best.refusal else f"believe {BEST} first"
        counted = f"{report.decisions:,} decisions, {report.people:,} people; intervals of 95%; {advice}"
        figure.text(14 / _WIDTH, 10 / height, counted, color=PRINT_PALETTE.secondary, size=10)
        save_figure(figure, file)


def _interval(axes: "Axes", y: float, estimate: Estimate, colour: str) -> None:
    axes.hlines(y, estimate.low, estimate.high, colour, linewidth=3)
    axes.plot(estimate.value, y, "o", color=colour, markersize=9, markeredgecolor=PRINT_PALETTE.background)
    beside: dict[str, Any] = {"xytext": (8, 0), "textcoords": "offset points", "va": "center"}
    axes.annotate(
        percent(estimate.value), (1, y), xycoords=("axes fraction", "data"), color=PRINT_PALETTE.text, **beside
    )


def _colour(name: str, estimate: Estimate) -> str:
    if name == "the log":
        return PRINT_PALETTE.secondary
    if estimate.refusal:
        return _WORTHLESS
    return _BEST if name == BEST else _OTHERS


def _percent_below(axes: "Axes") -> None:
    low, high = axes.get_xlim()
    if high - low < _LEAST_SPAN:
        axes.set_xlim((low + high - _LEAST_SPAN) / 2, (low + high + _LEAST_SPAN) / 2)
    axes.locator_params("x", nbins=7)
    axes.xaxis.set_major_formatter(lambda reward, _: f"{100 * reward:g}%")
    axes.grid(axis="x")

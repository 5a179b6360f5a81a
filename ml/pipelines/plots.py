"""The figures of batch jobs: an off-policy evaluation, and the policies of the last nights."""

import textwrap
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml.experiments.evaluation import Estimate
from ml.pipelines.evaluation_report import BEST, EvaluationReport, percent
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


def draw_nights(nights: Mapping[date, Mapping[str, Mapping[str, Any]]], file: Path) -> None:
    """Draw the gain of each night's policy on held-out days, and how much the log says about it, by night.

    `nights`: the metrics on held-out days, by name. Raises OSError for a file that cannot be written.
    """
    import matplotlib as mpl  # as above
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
    from matplotlib.figure import Figure

    with mpl.rc_context(plot_settings(PRINT_PALETTE, _FONT)):
        figure = Figure(figsize=(_WIDTH / 72, 5), dpi=144)
        gains, sizes = figure.subplots(2, sharex=True, height_ratios=(2, 1))
        for night, metrics in nights.items():
            if gain := metrics.get("gain"):
                gains.vlines(night, 100 * gain["low"], 100 * gain["high"], _OTHER_COLOUR, linewidth=3)
                gains.plot(night, 100 * gain["value"], "o", color=_BEST_COLOUR)
            if size := metrics.get("effective_sample_size"):
                sizes.bar(night, size["value"], color=_OTHER_COLOUR)
        gains.axhline(0, color=PRINT_PALETTE.secondary, linewidth=1, linestyle=(0, (2, 3)))
        gains.set_ylabel("gain in points")
        gains.set_title("What the policy of each night gains", loc="left", weight="bold")
        gains.margins(y=0.1)
        sizes.set_ylabel("effective\nsample size")
        sizes.xaxis.set_major_locator(locator := AutoDateLocator(maxticks=8))  # type: ignore[no-untyped-call]
        sizes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
        caption = "over the log, on 3 held-out days; 95% intervals that hold at every look; no mark: not known"
        figure.text(0.01, 0.01, caption, size=10)
        figure.tight_layout(rect=(0, 0.04, 1, 1))
        save_figure(figure, file)

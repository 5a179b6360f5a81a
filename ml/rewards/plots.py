"""The two figures of the reward page, as SVG whose colours and font are those of the page around it."""

import io
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

from ml.platform.plot_style import Palette, plot_settings
from ml.rewards.variants import Variant

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = 6
"""The page defines `--series-0`, for the baseline, to `--series-5`."""

_INK, _QUIET, _LINE, _CARD = "#010000", "#010001", "#010002", "#010003"
_SERIES = [f"#0200{index:02}" for index in range(COLOURS)]
_PAGE_COLOURS = {_INK: "var(--ink)", _QUIET: "var(--quiet)", _LINE: "var(--line)", _CARD: "var(--card)"} | {
    placeholder: f"var(--series-{index})" for index, placeholder in enumerate(_SERIES)
}
"""From the placeholder colours that matplotlib draws with to the colours that the page defines, light and dark."""
_PLACEHOLDER = re.compile("|".join(_PAGE_COLOURS))

_MARKERS, _LINE_STYLES = "osD^vPX", ("-", "--", "-.")
_WIDTH, _FONT_SIZE, _MIN_ROW_HEIGHT, _MAX_ROW_HEIGHT, _MIN_HEIGHT = 420, 13, 50, 70, 250
"""In points; the figures scale with the page."""

_MIN_Y_SPAN = 10
"""The minimum range of the reward axis, in percentage points, so that a very small change does not look large."""

_MIN_TIPS_OF_MEAN = 30
"""The number of counted tips from which on a running mean is drawn."""

_drawing = threading.Lock()
"""Matplotlib is not thread-safe."""


@dataclass(frozen=True, slots=True)
class Plots:
    """The figures, each an `<svg>` element for a page."""

    intervals: str
    over_time: str


def colour(index: int) -> str:
    """Return the CSS colour of the variant at an index of a report."""
    return f"var(--series-{_series(index)})"


def draw_plots(variants: Sequence[Variant]) -> Plots:
    """Draw the figures of one or more variants. Takes 30 ms, the first time 0.3 s: call it in a thread."""
    import matplotlib as mpl  # heavy, and used by this page only

    with _drawing, mpl.rc_context(plot_settings(Palette(_INK, _QUIET, _LINE, "none"), _FONT_SIZE)):
        return Plots(_svg(_draw_intervals(variants), "intervals"), _svg(_draw_means_over_time(variants), "over-time"))


def _draw_intervals(variants: Sequence[Variant]) -> "Figure":
    """Draw a row for each variant: its label and its reward rate, and below them the estimate within its interval."""
    row_height = min(max(_MIN_ROW_HEIGHT, (_MIN_HEIGHT - 40) / len(variants)), _MAX_ROW_HEIGHT)
    figure, axes = _figure(row_height * len(variants) + 40, left=14, right=14, bottom=30, top=4)
    for index, variant in enumerate(variants):
        y, rate, line_colour = -index, variant.reward, _SERIES[_series(index)]
        if rate:
            axes.hlines(y, 100 * rate.low, 100 * rate.high, line_colour, linewidth=3, clip_on=False)
            marker: dict[str, Any] = {"markersize": 10, "markeredgecolor": _CARD, "clip_on": False}
            axes.plot(100 * rate.estimate, y, _marker(index), color=line_colour, **marker)
        rate_text = f"{100 * rate.estimate:.1f}%" if rate else "no counted tips"
        above: dict[str, Any] = {"xytext": (0, 10), "textcoords": "offset points"}
        label = axes.annotate(_shorten(variant.label, 40), (0, y), xycoords=("axes fraction", "data"), **above)
        label.set_bbox({"facecolor": _CARD, "edgecolor": "none", "pad": 1})
        axes.annotate(rate_text, (1, y), xycoords=("axes fraction", "data"), ha="right", weight="bold", **above)
    if variants[0].reward:
        axes.axvline(100 * variants[0].reward.estimate, color=_QUIET, linewidth=1, linestyle=(0, (2, 3)), zorder=0)
    axes.set_ylim(0.3 - len(variants), 0.75)
    axes.set_yticks([])
    axes.locator_params("x", nbins=5)
    axes.xaxis.set_major_formatter("{x:g}%")
    axes.margins(x=0.03)
    low, high = axes.get_xlim()
    axes.set_xlim(max(low, 0), min(high, 100))
    return figure


def _draw_means_over_time(variants: Sequence[Variant]) -> "Figure":
    """Draw a line for each variant: the mean reward of its tips up to each day, with the label at its end."""
    drawn = [(index, variant) for index, variant in enumerate(variants) if variant.days]
    labels = [_shorten(variant.label, 20) for _, variant in drawn]
    right = 0.58 * _FONT_SIZE * max(map(len, labels), default=0) + 18
    figure, axes = _figure(max(_MIN_HEIGHT, 18 * len(drawn) + 40), left=44, right=right, bottom=30, top=10)
    lines = [_running_mean(variant) for _, variant in drawn]
    days = sorted({day for line in lines for day in line})
    ends = []
    for (index, _), line in zip(drawn, lines, strict=True):
        line_colour, line_style = _SERIES[_series(index)], _LINE_STYLES[index // COLOURS % len(_LINE_STYLES)]
        axes.plot(
            [(day - days[0]).days for day in line], [*line.values()], line_style, color=line_colour, linewidth=2.25
        )
        last = max(line)
        ends.append(_LineEnd((last - days[0]).days, line[last], line_colour))
        marker: dict[str, Any] = {"markersize": 8, "markeredgecolor": _CARD, "clip_on": False}
        axes.plot(ends[-1].x, ends[-1].y, _marker(index), color=line_colour, **marker)
    _label_days(axes, days)
    axes.locator_params("y", nbins=5)
    axes.yaxis.set_major_formatter("{x:g}%")
    axes.grid(axis="y")
    axes.set_ylim(*_percent_limits(*axes.get_ylim()))
    _label_lines(axes, labels, ends)
    return figure


@dataclass(frozen=True, slots=True)
class _LineEnd:
    """The last point of a line, and the colour of the line."""

    x: float
    y: float
    colour: str


def _running_mean(variant: Variant) -> dict[date, float]:
    """Return the mean reward of all tips up to each day, in percent; on the last day it is the variant's reward rate.

    Days with fewer than `_MIN_TIPS_OF_MEAN` tips so far are left out, since their mean varies too much; the last day
    is always included.
    """
    means = {}
    counted, total = 0, 0.0
    for day in variant.days:
        counted += day.counted
        total += day.counted * day.reward
        if counted >= _MIN_TIPS_OF_MEAN or day is variant.days[-1]:
            means[day.day] = 100 * total / counted
    return means


def _percent_limits(low: float, high: float) -> tuple[float, float]:
    """Return limits of an axis in percent that include these as far as they are within 0 and 100."""
    low, high = max(low, 0), min(high, 100)
    missing = max(0, _MIN_Y_SPAN - (high - low)) / 2
    low, high = low - missing, high + missing
    moved = max(0, -low) - max(0, high - 100)
    return low + moved, high + moved


def _label_days(axes: "Axes", days: Sequence[date]) -> None:
    """Label up to four days on the x axis, including the first and the last."""
    first, span = (days[0], (days[-1] - days[0]).days) if days else (date.min, 0)
    steps = min(span, 3)
    ticks = sorted({round(span * step / steps) for step in range(steps + 1)}) if steps else [0]
    labelled = [first + timedelta(days=tick) for tick in ticks]
    axes.set_xticks(ticks, [f"{day.day} {day:%b}" for day in labelled] if days else [])
    axes.set_xlim(-max(0.04 * span, 0.2), span + max(0.02 * span, 0.2))


def _label_lines(axes: "Axes", labels: Sequence[str], ends: Sequence[_LineEnd]) -> None:
    """Write each label to the right of its line's end, moved vertically to avoid overlaps and connected by a line."""
    low, high = axes.get_ylim()
    edge = axes.get_xlim()[1]
    distance = 1.35 * _FONT_SIZE * (high - low) / axes.bbox.height
    label_y, remaining = low - distance, len(labels)
    for end, label in sorted(zip(ends, labels, strict=True), key=lambda end_and_label: end_and_label[0].y):
        remaining -= 1
        label_y = max(label_y + distance, min(end.y, high - remaining * distance))
        axes.plot((end.x, edge), (end.y, label_y), color=end.colour, linewidth=1, linestyle=(0, (1, 2)), zorder=1)
        axes.annotate(label, (edge, label_y), xytext=(6, 0), textcoords="offset points", va="center")
    axes.set_ylim(low, high)


def _figure(height: float, *, left: float, right: float, bottom: float, top: float) -> "tuple[Figure, Axes]":
    """Return a figure with one pair of axes; all lengths are in points."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH / 72, height / 72), dpi=72, facecolor="none")
    box = (left / _WIDTH, bottom / height, 1 - (left + right) / _WIDTH, 1 - (bottom + top) / height)
    return figure, figure.add_axes(box)


def _svg(figure: "Figure", name: str) -> str:
    """Return the figure as an `<svg>` element without a size and a font; `name` makes its ids unique in the page."""
    content = io.BytesIO()
    figure.savefig(content, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    root = ET.fromstring(content.getvalue())  # noqa: S314  # written by matplotlib
    for parent in list(root.iter()):
        for child in [child for child in parent if _local_name(child.tag) in {"metadata", "style"}]:
            parent.remove(child)
        parent.tag = _local_name(parent.tag)
        parent.attrib = {
            _local_name(key): _page_attribute(_local_name(key), value, name) for key, value in parent.items()
        }
    del root.attrib["width"], root.attrib["height"]
    root.set("aria-hidden", "true")
    return ET.tostring(root, encoding="unicode")


def _local_name(tag: str) -> str:
    """Return the name of an XML tag without its namespace."""
    return tag.rpartition("}")[2]


def _page_attribute(key: str, value: str, name: str) -> str:
    """Return the value of an attribute with unique ids, the page's colours, and the page's font."""
    match key:
        case "id":
            return f"{name}-{value}"
        case "href" | "clip-path":
            return value.replace("#", f"#{name}-")
        case "style":
            style = "; ".join(rule for rule in value.split("; ") if not rule.startswith("font-family:"))
            return _PLACEHOLDER.sub(lambda match: _PAGE_COLOURS[match[0]], style)
    return value


def _series(index: int) -> int:
    """Return the index of a variant's colour: 0 for the baseline only, the other colours in turn."""
    return 1 + (index - 1) % (COLOURS - 1) if index else 0


def _marker(index: int) -> str:
    return _MARKERS[index % len(_MARKERS)]


def _shorten(label: str, max_length: int) -> str:
    """Replace the middle of a long label by an ellipsis, since its end may be the digest."""
    tail = max_length // 2 - 1
    return label if len(label) <= max_length else f"{label[: max_length - tail - 1]}…{label[-tail:]}"

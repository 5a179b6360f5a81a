"""The two figures of the reward page, as SVG that takes its colours and its font from the page around it."""

import io
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

from ml.platform.plot_style import Palette, plot_settings
from ml.rewards.report import Variant

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = 6
"""The page defines `--series-0`, for the baseline, to `--series-5`."""

_INK, _QUIET, _LINE, _CARD = "#010000", "#010001", "#010002", "#010003"
_SERIES = [f"#0200{index:02}" for index in range(COLOURS)]
_OF_THE_PAGE = {_INK: "var(--ink)", _QUIET: "var(--quiet)", _LINE: "var(--line)", _CARD: "var(--card)"} | {
    sentinel: f"var(--series-{index})" for index, sentinel in enumerate(_SERIES)
}
"""Colours that nobody sees: each stands for one that the page defines, for light and for dark."""
_SENTINEL = re.compile("|".join(_OF_THE_PAGE))

_MARKERS, _STROKES = "osD^vPX", ("-", "--", "-.")
_WIDTH, _FONT, _ROW = 420, 13, 50
"""In points; the figures grow and shrink with the page."""

_LEAST_SPAN = 10
"""Points that the axis of rewards spans at least: a change of next to nothing should not look like one."""

_STEADY = 30
"""Counted tips from which on a mean is drawn."""

_drawing = threading.Lock()
"""Matplotlib is not thread-safe."""


@dataclass(frozen=True, slots=True)
class Plots:
    """The figures, each an `<svg>` element to be put into a page."""

    intervals: str
    over_time: str


def colour(index: int) -> str:
    """Return the CSS colour of the variant at this place in a report."""
    return f"var(--series-{_series(index)})"


def draw_plots(variants: Sequence[Variant]) -> Plots:
    """Draw the figures of at least one variant. Takes 30 ms, and the first time 0.3 s: not for the event loop."""
    import matplotlib as mpl  # heavy, and nothing but this page needs it

    with _drawing, mpl.rc_context(plot_settings(Palette(_INK, _QUIET, _LINE, "none"), _FONT)):
        return Plots(_svg(_intervals(variants), "intervals"), _svg(_over_time(variants), "over-time"))


def _intervals(variants: Sequence[Variant]) -> "Figure":
    """A row for each variant: its name and its rate in words, and below them the point between its limits."""
    figure, axes = _figure(_ROW * len(variants) + 40, left=14, right=14, bottom=30, top=4)
    for index, variant in enumerate(variants):
        y, rate, shade = -index, variant.reward, _SERIES[_series(index)]
        axes.hlines(y, 100 * rate.low, 100 * rate.high, shade, linewidth=3)
        if variant.counted:
            axes.plot(100 * rate.estimate, y, _marker(index), color=shade, markersize=10, markeredgecolor=_CARD)
        words = f"{100 * rate.estimate:.1f}%" if variant.counted else "nothing counted yet"
        above: dict[str, Any] = {"xytext": (0, 10), "textcoords": "offset points"}
        name = axes.annotate(_short(variant.label, 40), (0, y), xycoords=("axes fraction", "data"), **above)
        name.set_bbox({"facecolor": _CARD, "edgecolor": "none", "pad": 1})
        axes.annotate(words, (1, y), xycoords=("axes fraction", "data"), ha="right", weight="bold", **above)
    if variants[0].counted:
        axes.axvline(100 * variants[0].reward.estimate, color=_QUIET, linewidth=1, linestyle=(0, (2, 3)), zorder=0)
    axes.set_ylim(0.3 - len(variants), 0.75)
    axes.set_yticks([])
    axes.locator_params("x", nbins=5)
    axes.xaxis.set_major_formatter("{x:g}%")
    axes.margins(x=0.03)
    return figure


def _over_time(variants: Sequence[Variant]) -> "Figure":
    """A line for each variant: the mean reward of its tips up to each day, with its name at the end."""
    drawn = [(index, variant) for index, variant in enumerate(variants) if variant.days]
    names = [_short(variant.label, 20) for _, variant in drawn]
    right = 0.58 * _FONT * max(map(len, names), default=0) + 18
    figure, axes = _figure(max(250, 18 * len(drawn) + 40), left=44, right=right, bottom=30, top=10)
    lines = [_running_mean(variant) for _, variant in drawn]
    days = sorted({day for line in lines for day in line})
    ends = []
    for (index, _), line in zip(drawn, lines, strict=True):
        shade, stroke = _SERIES[_series(index)], _STROKES[index // COLOURS % len(_STROKES)]
        axes.plot([(day - days[0]).days for day in line], [*line.values()], stroke, color=shade, linewidth=2.25)
        last = max(line)
        ends.append(_End((last - days[0]).days, line[last], shade))
        axes.plot(ends[-1].x, ends[-1].y, _marker(index), color=shade, markersize=8, markeredgecolor=_CARD)
    _days_below(axes, days)
    axes.locator_params("y", nbins=5)
    axes.yaxis.set_major_formatter("{x:g}%")
    axes.grid(axis="y")
    low, high = axes.get_ylim()
    if high - low < _LEAST_SPAN:
        axes.set_ylim((low + high - _LEAST_SPAN) / 2, (low + high + _LEAST_SPAN) / 2)
    _names_beside(axes, names, ends)
    return figure


@dataclass(frozen=True, slots=True)
class _End:
    """Where a line ends."""

    x: float
    y: float
    shade: str


def _running_mean(variant: Variant) -> dict[date, float]:
    """The mean reward in percent of all tips up to each day: the interval figure's rate, as it came about.

    The first days, while a few tips make all the difference, are left out, but never the last.
    """
    means = {}
    counted, total = 0, 0.0
    for day in variant.days:
        counted += day.counted
        total += day.counted * day.reward
        if counted >= _STEADY or day is variant.days[-1]:
            means[day.day] = 100 * total / counted
    return means


def _days_below(axes: "Axes", days: Sequence[date]) -> None:
    """Name up to four days, the first and the last among them."""
    first, span = (days[0], (days[-1] - days[0]).days) if days else (date.min, 0)
    steps = min(span, 3)
    ticks = sorted({round(span * step / steps) for step in range(steps + 1)}) if steps else [0]
    named = [first + timedelta(days=tick) for tick in ticks]
    axes.set_xticks(ticks, [f"{day.day} {day:%b}" for day in named] if days else [])
    axes.set_xlim(-max(0.04 * span, 0.2), span + max(0.02 * span, 0.2))


def _names_beside(axes: "Axes", names: Sequence[str], ends: Sequence[_End]) -> None:
    """Write each name right of its line's end, moved up or down where two would meet, and lead the line to it."""
    low, high = axes.get_ylim()
    edge = axes.get_xlim()[1]
    apart = 1.35 * _FONT * (high - low) / axes.bbox.height
    placed, above = low - apart, len(names)
    for end, name in sorted(zip(ends, names, strict=True), key=lambda one: one[0].y):
        above -= 1
        placed = max(placed + apart, min(end.y, high - above * apart))
        axes.plot((end.x, edge), (end.y, placed), color=end.shade, linewidth=1, linestyle=(0, (1, 2)), zorder=1)
        axes.annotate(name, (edge, placed), xytext=(6, 0), textcoords="offset points", va="center")
    axes.set_ylim(low, high)


def _figure(height: float, *, left: float, right: float, bottom: float, top: float) -> "tuple[Figure, Axes]":
    """A figure with one pair of axes, all in points."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH / 72, height / 72), dpi=72, facecolor="none")
    box = (left / _WIDTH, bottom / height, 1 - (left + right) / _WIDTH, 1 - (bottom + top) / height)
    return figure, figure.add_axes(box)


def _svg(figure: "Figure", name: str) -> str:
    """Return the figure as an element of a page: no size or font of its own, and ids that no other figure has."""
    written = io.BytesIO()
    figure.savefig(written, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    root = ET.fromstring(written.getvalue())  # noqa: S314  # nobody but matplotlib wrote it
    for parent in list(root.iter()):
        for child in [one for one in parent if _local(one.tag) in {"metadata", "style"}]:
            parent.remove(child)
        parent.tag = _local(parent.tag)
        parent.attrib = {_local(key): _of_the_page(_local(key), value, name) for key, value in parent.items()}
    del root.attrib["width"], root.attrib["height"]
    root.set("aria-hidden", "true")
    return ET.tostring(root, encoding="unicode")


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _of_the_page(key: str, value: str, name: str) -> str:
    match key:
        case "id":
            return f"{name}-{value}"
        case "href" | "clip-path":
            return value.replace("#", f"#{name}-")
        case "style":
            kept = "; ".join(one for one in value.split("; ") if not one.startswith("font-family:"))
            return _SENTINEL.sub(lambda found: _OF_THE_PAGE[found[0]], kept)
    return value


def _series(index: int) -> int:
    """The baseline's colour is nobody else's; the others take turns."""
    return 1 + (index - 1) % (COLOURS - 1) if index else 0


def _marker(index: int) -> str:
    return _MARKERS[index % len(_MARKERS)]


def _short(text: str, longest: int) -> str:
    """Cut the middle out of a long name: its end may be the digest."""
    tail = longest // 2 - 1
    return text if len(text) <= longest else f"{text[: longest - tail - 1]}…{text[-tail:]}"

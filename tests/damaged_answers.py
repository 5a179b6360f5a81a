"""Answers of providers with one other value somewhere in them, drawn by Hypothesis."""

import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

from tests.upstream import TIP
from tests.wire_formats import FINISH_REASONS, Answer, stream_events

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=5,
)


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path to each value in a JSON document."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from paths(inner, (*path, key))


def replaced(value: Any, path: tuple[Any, ...], replacement: Any) -> Any:
    """Return a JSON document with another value at `path`."""
    if not path:
        return replacement
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], replacement)
    return copy


@st.composite
def damaged(draw: st.DrawFn, document: Any) -> Any:
    """Draw the document with one other value somewhere in it."""
    return replaced(document, draw(st.sampled_from([*paths(document)])), draw(json_values))


def events(wire_format: str) -> list[Any]:
    """Return the events of a stream."""
    text = b"".join(stream_events(wire_format, Answer(TIP, FINISH_REASONS[wire_format]["stop"]))).decode()
    data = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in data if line != "[DONE]"]

"""The segments of users."""

from typing import Any

import pytest
from hypothesis import given

from ml.features.segments import SEGMENT_VALUES, check_segment, segments
from ml.platform.errors import UnprocessableRequest
from tests.features.test_context import some_signals


def test_the_segments_of_a_user_are_their_categories_and_their_language() -> None:
    signals = {"locale": "de-AT", "mood": "low", "goal": "sleep", "energy": 3, "weekday": "friday"}
    assert segments(signals) == ("mood:low", "weekday:friday", "locale:de")
    assert segments({}) == segments({"mood": None, "locale": None}) == ()


@given(some_signals)
def test_every_segment_of_a_user_is_accepted(signals: dict[str, Any]) -> None:
    for segment in segments(signals):
        check_segment(segment)


@pytest.mark.parametrize(
    ("segment", "allowed"),
    [
        ("", [f"{name}:…" for name in SEGMENT_VALUES]),
        ("moood:low", [f"{name}:…" for name in SEGMENT_VALUES]),
        ("energy:5", [f"{name}:…" for name in SEGMENT_VALUES]),
        ("locale:", [f"{name}:…" for name in SEGMENT_VALUES]),
        ("locale:de-DE", [f"{name}:…" for name in SEGMENT_VALUES]),
        ("mood:loww", ["mood:great", "mood:good", "mood:okay", "mood:low", "mood:awful"]),
        ("mood", ["mood:great", "mood:good", "mood:okay", "mood:low", "mood:awful"]),
        ("local_time:noon", ["local_time:night", "local_time:morning", "local_time:afternoon", "local_time:evening"]),
    ],
)
def test_a_segment_that_no_user_can_be_in_is_refused_with_those_that_are_allowed(
    segment: str, allowed: list[str]
) -> None:
    with pytest.raises(UnprocessableRequest) as error:
        check_segment(segment)
    assert [*error.value.errors[0].allowed] == allowed

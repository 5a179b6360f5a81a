"""The finish reason of a response, read from its bytes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml.serving.response_observer import FinishReason, ResponseObserver
from tests.wire_formats import FINISH_REASONS, Answer, stream_events

OUTCOMES = {
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "refused": FinishReason.REFUSED,
    "tool": FinishReason.OTHER,
}


def observe(data: bytes, piece_length: int = 1000) -> ResponseObserver:
    observer = ResponseObserver()
    for start in range(0, len(data), piece_length):
        observer.feed(data[start : start + piece_length])
    return observer


@pytest.mark.parametrize("outcome", OUTCOMES)
@pytest.mark.parametrize("provider", FINISH_REASONS)
@pytest.mark.parametrize("piece_length", [1, 7, 1000])
def test_the_reason_is_found_however_the_bytes_are_divided(provider: str, outcome: str, piece_length: int) -> None:
    data = b"".join(stream_events(provider, Answer("Dim the lights.", FINISH_REASONS[provider][outcome])))
    observer = observe(data, piece_length)
    assert observer.finish_reason is OUTCOMES[outcome]
    assert observer.is_known_format


@given(text=st.text())
@pytest.mark.parametrize("provider", FINISH_REASONS)
def test_the_text_of_an_answer_is_never_taken_for_a_reason(provider: str, text: str) -> None:
    for told in (text, f'{text}"finish_reason": "stop"', json.dumps({"stop_reason": "end_turn", "text": text})):
        assert observe(b"".join(stream_events(provider, Answer(told, None)))).finish_reason is None


def test_a_blocked_prompt_is_a_refusal() -> None:
    assert observe(b'{"promptFeedback": {"blockReason": "OTHER"}}').finish_reason is FinishReason.REFUSED

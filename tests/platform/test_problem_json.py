"""The wording of errors in request bodies."""

import re
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, ValidationError

from ml.features.definitions import SIGNALS
from ml.platform.problem_json import error_from_validation
from ml.recommender.schemas import ReactionRequest, TipRequest
from ml.rollouts.card_pages import CardFormat
from ml.serving.schemas import GenerateRequest, ScoreRequest

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=300) | st.just("2026-01-31"),
    lambda inner: st.lists(inner, max_size=12) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=15,
)
FIELDS: dict[type[BaseModel], list[str]] = {
    model: sorted(model.model_fields) for model in (GenerateRequest, ScoreRequest, TipRequest, ReactionRequest)
}


def details(model: type[BaseModel], body: Any) -> list[str]:
    try:
        model.model_validate(body)
    except ValidationError as error:
        return [field.detail for field in error_from_validation(error.errors()).errors]
    return []


@pytest.mark.parametrize("model", FIELDS)
@given(data=st.data())
def test_every_error_completes_a_sentence_about_its_field_in_our_own_words(
    model: type[BaseModel], data: st.DataObject
) -> None:
    body = data.draw(
        JSON
        | st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS[model], JSON))
        | st.fixed_dictionaries({"signals": st.dictionaries(st.sampled_from([*SIGNALS]), JSON, max_size=4)})
    )
    for detail in details(model, body):
        assert re.match(r"should |is |are |has |have ", detail), detail
        assert not re.search(r"Input|String should|Value error|unable|parse", detail), detail


@pytest.mark.parametrize(
    ("signals", "detail"),
    [
        ({"energy": 11}, "should be at most 10"),
        ({"energy": "high"}, "should be a whole number"),
        ({"sleep_hours": -1}, "should be at least 0"),
        ({"mood": "blue"}, "should be one of 'great', 'good', 'okay', 'low' or 'awful'"),
        ({"local_time": "25:00"}, "should match the pattern ^([01][0-9]|2[0-3]):[0-5][0-9]$"),
    ],
)
def test_a_wrong_signal_is_answered_with_what_is_allowed(signals: dict[str, Any], detail: str) -> None:
    assert details(GenerateRequest, {"signals": signals}) == [detail]


def test_an_option_and_a_large_limit_are_named_exactly() -> None:
    class Page(BaseModel):
        number: Annotated[int, Field(lt=2**31)]
        format: CardFormat

    allowed = ["should be below 2147483648", "should be one of 'html', 'json' or 'markdown'"]
    assert details(Page, {"number": 2**31, "format": "pdf"}) == allowed


def test_a_list_that_is_too_short_is_answered_with_the_least_number_of_items() -> None:
    assert details(ScoreRequest, {"candidates": []}) == ["should have 1 or more items"]

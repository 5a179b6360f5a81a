"""The wording of errors in request bodies."""

import json
import re
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, ValidationError

from ml.features.definitions import SIGNALS
from ml.features.request_schemas import Candidate, Signals
from ml.platform.errors import FieldError
from ml.platform.problem_json import error_from_validation
from ml.recommender.schemas import ReactionBatch, ReactionRequest, TipRequest
from ml.rollouts.card_pages import CardFormat
from ml.serving.schemas import GenerateRequest, ScoreRequest

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=300) | st.just("2026-01-31"),
    lambda inner: st.lists(inner, max_size=12) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=15,
)
TIP_ID = "01a20832-ae71-7aec-ae48-acec0e56168b"
FIELDS: dict[type[BaseModel], list[str]] = {
    model: sorted(model.model_fields) for model in (GenerateRequest, ScoreRequest, TipRequest, ReactionRequest)
}


def details(model: type[BaseModel], body: Any) -> list[str]:
    try:
        model.model_validate(body)
    except ValidationError as error:
        return [field.detail for field in error_from_validation(error.errors(), model).errors]
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


@pytest.mark.parametrize(
    ("model", "body", "pointer", "known"),
    [
        (ScoreRequest, {"candidates": [{"id": "a"}, {"id": "b", "tipp": "x"}]}, "#/candidates/1/tipp", Candidate),
        (ScoreRequest, {"candidates": [{"id": "a"}], "signals": {"a/b": 1}}, "#/signals/a~1b", Signals),
        (
            ReactionBatch,
            {"reactions": [{"tip_id": TIP_ID, "reaction": "helpful", "when": 1}]},
            "#/reactions/0/when",
            ReactionRequest,
        ),
    ],
)
def test_an_unknown_field_is_answered_with_the_known_fields_of_its_object(
    model: type[BaseModel], body: Any, pointer: str, known: type[BaseModel]
) -> None:
    names = tuple(known.model_fields)
    with pytest.raises(ValidationError) as error:
        model.model_validate_json(json.dumps(body))
    detail = f"is not known; the known ones are {', '.join(names)}"
    assert error_from_validation(error.value.errors(), model).errors == (FieldError(pointer, detail, names),)


def test_an_unknown_field_of_a_model_that_is_not_given_is_answered_without_the_known_ones() -> None:
    with pytest.raises(ValidationError) as error:
        ScoreRequest.model_validate({"candidates": [{"id": "a"}], "x": 1})
    assert error_from_validation(error.value.errors()).errors == (FieldError("#/x", "is not known"),)

"""The encoder: the same numbers for one row, for chunks, for a large batch, and for rows read by another engine."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml.features.definitions import AGGREGATES, CANDIDATE, SIGNALS
from ml.features.encoder import CONTEXT_ENCODER, FeatureEncoder, candidate_encoder, candidate_row
from ml.features.feature_types import Floats, Language
from ml.features.text_types import Texts
from ml.features.topics import TOPICS
from tests.features.test_context import some_signals

VERSIONS = ("v1", "v2-mentor")
CANDIDATE_ENCODER = candidate_encoder(VERSIONS)

Row = Mapping[str, Any]


def some_contexts(n: int) -> list[Row]:
    """Contexts with random features, among them the ends of every range."""
    rng = random.Random(11)
    values: Mapping[str, Sequence[Any]] = {
        "goal": ["sleep better", "İSTANBUL ẞ walk", "", "\ud83d phone", "3.5"],
        "mood": ["great", "awful"],
        "energy": [1, 7, 10],
        "stress": [2, 9],
        "sleep_hours": [0.0, -0.0, 5.55, 24, 1e-300],
        "steps_today": [0, 1, 199_999],
        "minutes_since_break": [0, 77, 1_440],
        "open_tasks": [3],
        "meetings_left_today": [0, 50],
        "streak_days": [36_500],
        "days_since_last_visit": [12],
        "activity": ["in_bed", "walking"],
        "local_time": ["00:00", "05:59", "06:00", "23:59"],
        "weekday": ["monday", "sunday"],
        "reward_rate_30d": [0.0, 1 / 3, 1.0],
        "tips_7d": [0, 7],
    }
    return [{name: rng.choice(choices) for name, choices in values.items() if rng.random() < 0.7} for _ in range(n)]


def as_columns(rows: Sequence[Row], encoder: FeatureEncoder) -> dict[str, list[Any]]:
    return {name: [row.get(name) for row in rows] for name in encoder.feature_types if any(name in row for row in rows)}


def encode_through_duckdb(rows: Sequence[Row], encoder: FeatureEncoder, *, batch_size: int) -> Floats:
    """Store the rows in a database, read them in batches, and encode each batch."""
    table = pa.table({name: pa.array(column) for name, column in as_columns(rows, encoder).items()})
    with duckdb.connect() as connection:
        connection.register("rows_to_store", table)
        connection.execute("CREATE TABLE stored AS SELECT * FROM rows_to_store")
        reader = connection.execute("SELECT * FROM stored").to_arrow_reader(batch_size)
        batches = [
            encoder.encode_columns(
                {name: batch.column(name).to_numpy(zero_copy_only=False) for name in batch.schema.names}
            )
            for batch in reader
        ]
    assert len(batches) > 1
    return np.concatenate(batches)


def bits(numbers: Floats) -> bytes:
    """Return all bits; every NaN has the same."""
    return np.where(np.isnan(numbers), np.nan, numbers).tobytes()


def test_a_context_has_the_same_encoding_alone_in_chunks_in_a_batch_and_through_duckdb() -> None:
    contexts = some_contexts(5_000)
    batch = CONTEXT_ENCODER.encode_rows(contexts)
    assert batch.shape == (5_000, len(CONTEXT_ENCODER.columns))
    assert bits(np.concatenate([CONTEXT_ENCODER.encode_rows([context]) for context in contexts])) == bits(batch)
    chunks = [CONTEXT_ENCODER.encode_rows(contexts[start : start + 617]) for start in range(0, len(contexts), 617)]
    assert bits(np.concatenate(chunks)) == bits(batch)
    # DuckDB stores no lone surrogates.
    storable = [{**context, "goal": context.get("goal", "").replace("\ud83d", "")} for context in contexts]
    assert bits(encode_through_duckdb(storable, CONTEXT_ENCODER, batch_size=2_048)) == bits(
        CONTEXT_ENCODER.encode_rows(storable)
    )


def test_a_candidate_has_the_same_encoding_alone_and_through_duckdb() -> None:
    texts = ["Dim the lights.", "Geh zehn Minuten spazieren.", "x" * 280, None]
    rows = [candidate_row(version, text) for version in (*VERSIONS, "v9", None) for text in texts] * 300
    batch = CANDIDATE_ENCODER.encode_rows(rows)
    assert bits(np.concatenate([CANDIDATE_ENCODER.encode_rows([row]) for row in rows])) == bits(batch)
    assert bits(encode_through_duckdb(rows, CANDIDATE_ENCODER, batch_size=2_048)) == bits(batch)


@given(some_signals)
def test_valid_signals_are_encoded_as_numbers_from_0_to_1(signals: dict[str, Any]) -> None:
    numbers = CONTEXT_ENCODER.encode_rows([signals])[0]
    known = numbers[~np.isnan(numbers)]
    assert ((known >= 0) & (known <= 1)).all()


@given(some_signals)
def test_exactly_the_columns_of_missing_signals_are_nan(signals: dict[str, Any]) -> None:
    numbers = dict(zip(CONTEXT_ENCODER.columns, CONTEXT_ENCODER.encode_rows([signals])[0], strict=True))
    for name, type_ in CONTEXT_ENCODER.feature_types.items():
        for column in type_.columns(name):
            assert np.isnan(numbers[column]) == (signals.get(name) is None)


def test_every_feature_has_columns_except_these() -> None:
    types = {name: signal.type for name, signal in SIGNALS.items()}
    features = {**types, **CONTEXT_ENCODER.feature_types, **CANDIDATE}
    without_columns = {name for name, type_ in features.items() if not type_.columns(name)}
    assert without_columns == {"recent_tips", "locale", "prompt_version"}
    assert all(isinstance(types[name], Texts | Language) for name in without_columns - {"prompt_version"})
    assert CANDIDATE_ENCODER.columns[:2] == ("prompt_version=v1", "prompt_version=v2-mentor")
    assert all(name in CONTEXT_ENCODER.feature_types for name in AGGREGATES)


def test_column_names_are_unique_and_include_the_scale() -> None:
    assert {"sleep_hours/24", "mood=low", "local_time=night", "goal~sleep"} < {*CONTEXT_ENCODER.columns}
    for encoder in (CONTEXT_ENCODER, CANDIDATE_ENCODER):
        assert len({*encoder.columns}) == len(encoder.columns)


def test_a_time_of_day_is_encoded_as_its_quarter_of_the_day() -> None:
    times = {"00:00": "night", "05:59": "night", "06:00": "morning", "12:00": "afternoon", "23:59": "evening"}
    for time, part in times.items():
        numbers = dict(
            zip(CONTEXT_ENCODER.columns, CONTEXT_ENCODER.encode_rows([{"local_time": time}])[0], strict=True)
        )
        assert [column for column, number in numbers.items() if number == 1] == [f"local_time={part}"]


def test_a_tip_is_encoded_as_its_topics_and_its_length() -> None:
    (numbers,) = CANDIDATE_ENCODER.encode_rows(
        [candidate_row("v1", "Walk outside, then put your phone in the bedroom.")]
    )
    encoded = dict(zip(CANDIDATE_ENCODER.columns, numbers, strict=True))
    assert encoded["length(tip)/280"] == 49 / 280
    assert {topic for topic in TOPICS if encoded[f"tip~{topic}"]} == {"sleep", "movement", "outdoors", "screens"}


def test_an_unknown_prompt_version_is_encoded_as_missing() -> None:
    (numbers,) = CANDIDATE_ENCODER.encode_rows([candidate_row("v9", "Walk.")])
    assert np.isnan(numbers[:2]).all()
    assert not np.isnan(numbers[2:]).any()


@pytest.mark.parametrize("encoder", [CONTEXT_ENCODER, CANDIDATE_ENCODER], ids=["context", "candidate"])
def test_an_empty_batch_has_all_columns_and_no_rows(encoder: FeatureEncoder) -> None:
    assert encoder.encode_rows([]).shape == (0, len(encoder.columns))
    for name, type_ in encoder.feature_types.items():
        assert type_.numbers(np.array([], object)).shape == (0, len(type_.columns(name)))


def test_an_unknown_feature_raises_a_key_error() -> None:
    with pytest.raises(KeyError, match="shoe_size"):
        CONTEXT_ENCODER.encode_columns({"shoe_size": np.array([43])})


@given(st.lists(st.text(max_size=40), min_size=1, max_size=5))
def test_text_of_any_characters_can_be_encoded(texts: list[str]) -> None:
    assert CANDIDATE_ENCODER.encode_rows([candidate_row(None, text) for text in texts]).shape == (
        len(texts),
        len(CANDIDATE_ENCODER.columns),
    )

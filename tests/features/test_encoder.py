"""One definition of what a row is in numbers, whatever brings the row."""

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
from ml.features.feature_types import Floats, Language, Texts
from ml.features.topics import TOPICS
from tests.features.test_context import some_signals

VERSIONS = ("v1", "v2-mentor")
TIPS = candidate_encoder(VERSIONS)

Row = Mapping[str, Any]


def some_people(n: int) -> list[Row]:
    """People of whom this and that is known, the edges of every range among it."""
    chance = random.Random(11)
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
    return [
        {name: chance.choice(choices) for name, choices in values.items() if chance.random() < 0.7} for _ in range(n)
    ]


def in_columns(rows: Sequence[Row], space: FeatureEncoder) -> dict[str, list[Any]]:
    return {name: [one.get(name) for one in rows] for name in space.kinds if any(name in one for one in rows)}


def through_duckdb(rows: Sequence[Row], space: FeatureEncoder, *, at_once: int) -> Floats:
    """Store the rows in a database, read them in batches, and make each batch into numbers."""
    table = pa.table({name: pa.array(column) for name, column in in_columns(rows, space).items()})
    with duckdb.connect() as connection:
        connection.register("rows_to_store", table)
        connection.execute("CREATE TABLE stored AS SELECT * FROM rows_to_store")
        reader = connection.execute("SELECT * FROM stored").to_arrow_reader(at_once)
        batches = [
            space.encode_columns(
                {name: batch.column(name).to_numpy(zero_copy_only=False) for name in batch.schema.names}
            )
            for batch in reader
        ]
    assert len(batches) > 1
    return np.concatenate(batches)


def bits(numbers: Floats) -> bytes:
    """All the bits; of what is no number, only that."""
    return np.where(np.isnan(numbers), np.nan, numbers).tobytes()


def test_a_person_has_the_same_numbers_alone_in_chunks_in_a_million_and_through_duckdb() -> None:
    people = some_people(5_000)
    batch = CONTEXT_ENCODER.encode_rows(people)
    assert batch.shape == (5_000, len(CONTEXT_ENCODER.columns))
    assert bits(np.concatenate([CONTEXT_ENCODER.encode_rows([one]) for one in people])) == bits(batch)
    chunks = [CONTEXT_ENCODER.encode_rows(people[start : start + 617]) for start in range(0, len(people), 617)]
    assert bits(np.concatenate(chunks)) == bits(batch)
    readable = [
        {**one, "goal": one.get("goal", "").replace("\ud83d", "")} for one in people
    ]  # no half characters there
    assert bits(through_duckdb(readable, CONTEXT_ENCODER, at_once=2_048)) == bits(CONTEXT_ENCODER.encode_rows(readable))


def test_a_tip_has_the_same_numbers_alone_and_through_duckdb() -> None:
    texts = ["Dim the lights.", "Geh zehn Minuten spazieren.", "x" * 280, None]
    tips = [candidate_row(version, text) for version in (*VERSIONS, "v9", None) for text in texts] * 300
    batch = TIPS.encode_rows(tips)
    assert bits(np.concatenate([TIPS.encode_rows([tip]) for tip in tips])) == bits(batch)
    assert bits(through_duckdb(tips, TIPS, at_once=2_048)) == bits(batch)


@given(some_signals)
def test_any_signals_that_validate_become_numbers_of_a_known_range(signals: dict[str, Any]) -> None:
    numbers = CONTEXT_ENCODER.encode_rows([signals])[0]
    known = numbers[~np.isnan(numbers)]
    assert ((known >= 0) & (known <= 1)).all()


@given(some_signals)
def test_what_is_missing_is_nan_and_changes_nothing_else(signals: dict[str, Any]) -> None:
    numbers = dict(zip(CONTEXT_ENCODER.columns, CONTEXT_ENCODER.encode_rows([signals])[0], strict=True))
    for name, kind in CONTEXT_ENCODER.kinds.items():
        for column in kind.columns(name):
            assert np.isnan(numbers[column]) == (signals.get(name) is None)


def test_every_feature_becomes_numbers_but_the_few_that_say_nothing_general() -> None:
    kinds = {name: signal.kind for name, signal in SIGNALS.items()}
    silent = {name for name, kind in {**kinds, **CONTEXT_ENCODER.kinds, **CANDIDATE}.items() if not kind.columns(name)}
    assert silent == {"recent_tips", "locale", "prompt_version"}
    assert all(isinstance(kinds[name], Texts | Language) for name in silent - {"prompt_version"})
    assert TIPS.columns[:2] == ("prompt_version=v1", "prompt_version=v2-mentor")
    assert all(name in CONTEXT_ENCODER.kinds for name in AGGREGATES)


def test_columns_are_named_after_what_they_hold_and_no_two_alike() -> None:
    assert {"sleep_hours/24", "mood=low", "local_time=night", "goal~sleep"} < {*CONTEXT_ENCODER.columns}
    for space in (CONTEXT_ENCODER, TIPS):
        assert len({*space.columns}) == len(space.columns)


def test_a_clock_falls_into_quarters_of_the_day() -> None:
    times = {"00:00": "night", "05:59": "night", "06:00": "morning", "12:00": "afternoon", "23:59": "evening"}
    for time, part in times.items():
        numbers = dict(
            zip(CONTEXT_ENCODER.columns, CONTEXT_ENCODER.encode_rows([{"local_time": time}])[0], strict=True)
        )
        assert [column for column, one in numbers.items() if one == 1] == [f"local_time={part}"]


def test_a_text_counts_by_its_topics_and_a_tip_by_its_length_too() -> None:
    (numbers,) = TIPS.encode_rows([candidate_row("v1", "Walk outside, then put your phone in the bedroom.")])
    said = dict(zip(TIPS.columns, numbers, strict=True))
    assert said["length(tip)/280"] == 49 / 280
    assert {topic for topic in TOPICS if said[f"tip~{topic}"]} == {"sleep", "movement", "outdoors", "screens"}


def test_a_version_that_was_never_seen_is_missing() -> None:
    (numbers,) = TIPS.encode_rows([candidate_row("v9", "Walk.")])
    assert np.isnan(numbers[:2]).all()
    assert not np.isnan(numbers[2:]).any()


@pytest.mark.parametrize("space", [CONTEXT_ENCODER, TIPS], ids=["people", "tips"])
def test_no_rows_are_no_rows_of_as_many_numbers(space: FeatureEncoder) -> None:
    assert space.encode_rows([]).shape == (0, len(space.columns))
    for name, kind in space.kinds.items():
        assert kind.numbers(np.array([], object)).shape == (0, len(kind.columns(name)))


def test_a_name_that_is_no_feature_is_an_error() -> None:
    with pytest.raises(KeyError, match="shoe_size"):
        CONTEXT_ENCODER.encode_columns({"shoe_size": np.array([43])})


@given(st.lists(st.text(max_size=40), min_size=1, max_size=5))
def test_texts_of_any_characters_are_read(texts: list[str]) -> None:
    assert TIPS.encode_rows([candidate_row(None, text) for text in texts]).shape == (len(texts), len(TIPS.columns))

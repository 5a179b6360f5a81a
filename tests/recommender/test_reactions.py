"""POST /reactions and /reactions/batch: the effective reaction, and the requests that are refused."""

import json
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
import pytest

from ml.store.reactions import REACTIONS, EffectiveReaction, Reaction, resolve_reaction
from tests.databases import Database
from tests.example_tips import NOW, SetClock
from tests.fixtures import ON_SQLITE

EARLIER, LATER = "2026-01-31T20:00:00Z", "2026-01-31T21:00:00Z"


@pytest.fixture
def tip_id(recommender: httpx.Client, clock: SetClock) -> str:
    """The id of a tip that was shown a day ago."""
    clock.go(days=-1)
    tip_id = new_tip(recommender)
    clock.go(days=1)
    return tip_id


def new_tip(http: httpx.Client) -> str:
    tip_id: str = http.post("/tips", json={"user_id": "u-1"}).json()["tip_id"]
    return tip_id


def react(http: httpx.Client, tip_id: str, reaction: str, **fields: Any) -> tuple[str, str, float]:
    answer = http.post("/reactions", json={"tip_id": tip_id, "reaction": reaction, **fields})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["tip_id"] == tip_id
    return body["outcome"], body["reaction"], body["reward"]


def counts(database: Database) -> dict[str, tuple[int, float]]:
    """Return the number of tips with each effective reaction, and the sum of their rewards, from the counters."""
    rows = database.rows("SELECT * FROM reward_hours WHERE segment = '' AND reaction <> '' AND tips <> 0")
    return {row["reaction"]: (row["tips"], row["reward"]) for row in rows}


@pytest.mark.parametrize("reaction", REACTIONS)
def test_a_reaction_is_stored_and_counted_with_its_reward(
    recommender: httpx.Client, tip_id: str, database: Database, reaction: str
) -> None:
    assert react(recommender, tip_id, reaction) == ("recorded", reaction, REACTIONS[reaction])
    (row,) = database.rows("SELECT reaction, reward, reacted_at FROM tip_scores")
    assert (row["reaction"], row["reward"]) == (reaction, REACTIONS[reaction])
    assert str(row["reacted_at"]).startswith("2026-01-31 21:40:00")
    assert counts(database) == {reaction: (1, REACTIONS[reaction])}
    assert database.count("reactions") == 1


def test_the_latest_reaction_is_effective_in_any_order_of_arrival(
    recommender: httpx.Client, tip_id: str, database: Database
) -> None:
    assert react(recommender, tip_id, "saved", at=LATER) == ("recorded", "saved", 0.5)
    assert react(recommender, tip_id, "helpful", at=EARLIER) == ("superseded", "saved", 0.5)
    assert react(recommender, tip_id, "not_helpful") == ("recorded", "not_helpful", 0.0)
    assert counts(database) == {"not_helpful": (1, 0.0)}
    assert database.count("reactions") == 3


def test_a_repeated_reaction_changes_nothing(recommender: httpx.Client, tip_id: str, database: Database) -> None:
    for fields in ({"at": LATER}, {}):
        first = react(recommender, tip_id, "done", **fields)
        for _ in range(3):
            assert react(recommender, tip_id, "done", **fields) == ("repeated", "done", 1.0)
        assert first[0] in {"recorded", "repeated"}
    assert react(recommender, tip_id, "helpful", at=EARLIER) == ("superseded", "done", 1.0)
    assert react(recommender, tip_id, "helpful", at=EARLIER) == ("superseded", "done", 1.0)
    assert counts(database) == {"done": (1, 1.0)}
    assert database.count("reactions") == 2


def test_a_reaction_that_arrives_weeks_later_counts_in_the_hour_of_its_tip(
    recommender: httpx.Client, tip_id: str, clock: SetClock, database: Database
) -> None:
    clock.go(days=40)
    assert react(recommender, tip_id, "helpful") == ("recorded", "helpful", 1.0)
    hours = database.rows("SELECT DISTINCT hour FROM reward_hours")
    assert hours == [{"hour": int((NOW - timedelta(days=1)).timestamp()) // 3600}]


def test_a_reaction_that_arrives_later_is_effective_even_if_the_clock_went_back(
    recommender: httpx.Client, tip_id: str, clock: SetClock, database: Database
) -> None:
    for number, reaction in enumerate(("helpful", "saved", "dismissed")):
        assert react(recommender, tip_id, reaction)[:2] == ("recorded", reaction)
        assert database.count("reactions") == number + 1
        clock.go(hours=-5)


@ON_SQLITE
def test_a_reaction_at_the_same_instant_in_another_time_zone_is_a_repetition(
    recommender: httpx.Client, tip_id: str
) -> None:
    assert react(recommender, tip_id, "done", at="2026-01-31T21:00:00Z")[0] == "recorded"
    assert react(recommender, tip_id, "done", at="2026-01-31T22:30:00+01:30")[0] == "repeated"


def test_the_results_of_a_batch_have_the_order_of_its_reactions(recommender: httpx.Client, database: Database) -> None:
    first, second = new_tip(recommender), new_tip(recommender)
    reactions = [
        {"tip_id": second, "reaction": "saved"},
        {"tip_id": first, "reaction": "helpful", "at": LATER},
        {"tip_id": second, "reaction": "saved"},
        {"tip_id": first, "reaction": "dismissed", "at": EARLIER},
        {"tip_id": second, "reaction": "done"},
    ]
    answer = recommender.post("/reactions/batch", json={"reactions": reactions})
    assert answer.status_code == 200
    results = [
        (result["tip_id"], result["outcome"], result["reaction"], result["reward"])
        for result in answer.json()["results"]
    ]
    assert results == [
        (second, "recorded", "saved", 0.5),
        (first, "recorded", "helpful", 1.0),
        (second, "repeated", "saved", 0.5),
        (first, "superseded", "helpful", 1.0),
        (second, "recorded", "done", 1.0),
    ]
    assert counts(database) == {"helpful": (1, 1.0), "done": (1, 1.0)}


def test_a_batch_with_unknown_tips_stores_nothing_and_reports_each(
    recommender: httpx.Client, tip_id: str, database: Database
) -> None:
    unknown = str(uuid.uuid4())
    reactions = [{"tip_id": id_, "reaction": "done"} for id_ in (unknown, tip_id, unknown)]
    answer = recommender.post("/reactions/batch", json={"reactions": reactions})
    assert (answer.status_code, answer.json()["type"]) == (404, "urn:tips:problem:unknown-tip")
    assert [error["pointer"] for error in answer.json()["errors"]] == ["#/reactions/0/tip_id", "#/reactions/2/tip_id"]
    assert database.count("reactions") == 0
    assert counts(database) == {}


@ON_SQLITE
def test_a_batch_with_invalid_items_stores_nothing_and_reports_each(
    recommender: httpx.Client, tip_id: str, database: Database
) -> None:
    valid = {"tip_id": tip_id, "reaction": "done"}
    reactions = [valid, {**valid, "reaction": "meh"}, {**valid, "tip_id": "x"}, {"tip_id": tip_id}, {**valid, "a/b": 1}]
    answer = recommender.post("/reactions/batch", json={"reactions": reactions})
    assert answer.status_code == 422
    assert [error["pointer"] for error in answer.json()["errors"]] == [
        "#/reactions/1/reaction",
        "#/reactions/2/tip_id",
        "#/reactions/3/reaction",
        "#/reactions/4/a~1b",
    ]
    assert database.count("reactions") == 0


@ON_SQLITE
def test_a_batch_with_reactions_in_the_future_stores_nothing(
    recommender: httpx.Client, tip_id: str, database: Database
) -> None:
    soon, too_late = (NOW + timedelta(seconds=59)).isoformat(), (NOW + timedelta(seconds=61)).isoformat()
    reactions = [{"tip_id": tip_id, "reaction": "done", "at": at} for at in (EARLIER, too_late, soon)]
    answer = recommender.post("/reactions/batch", json={"reactions": reactions})
    assert answer.status_code == 422
    assert answer.json()["errors"] == [{"pointer": "#/reactions/1/at", "detail": "is in the future"}]
    assert database.count("reactions") == 0
    assert react(recommender, tip_id, "done", at=soon)[0] == "recorded"


def test_a_reaction_to_an_unknown_tip_is_a_404(recommender: httpx.Client) -> None:
    answer = recommender.post("/reactions", json={"tip_id": str(uuid.uuid4()), "reaction": "done"})
    assert (answer.status_code, answer.json()["type"]) == (404, "urn:tips:problem:unknown-tip")
    assert answer.json()["errors"][0]["pointer"] == "#/tip_id"


@ON_SQLITE
def test_the_error_of_an_unknown_reaction_names_the_known_reactions(recommender: httpx.Client, tip_id: str) -> None:
    answer = recommender.post("/reactions", json={"tip_id": tip_id, "reaction": "love"})
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert (error["pointer"], error["allowed"]) == ("#/reaction", list(REACTIONS))


@ON_SQLITE
@pytest.mark.parametrize(
    "at",
    [
        "2026-01-31T20:00:00",
        1_769_889_600,
        "1769889600",
        "2026-01-31",
        "yesterday",
        "",
        "1999-12-31T23:59:59Z",
        "0001-01-01T00:00:00+23:59",
        "9999-12-31T23:59:59-23:59",
        "9999-12-31T23:59:59Z",
        "2026-02-01T21:40:00Z",
        "2026-01-31T20:00:00Z\x00",
        True,
        [],
    ],
)
def test_an_invalid_time_is_refused(recommender: httpx.Client, tip_id: str, database: Database, at: object) -> None:
    answer = recommender.post("/reactions", json={"tip_id": tip_id, "reaction": "done", "at": at})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "#/at"
    assert database.count("reactions") == 0


@ON_SQLITE
@pytest.mark.parametrize(
    "tip_id", ["'; DROP TABLE reactions; --", "\x00", "", 7, None, "x" * 10_000, "00000000-0000-0000-0000-00000000000g"]
)
def test_an_invalid_tip_id_is_refused(recommender: httpx.Client, tip_id: object) -> None:
    answer = recommender.post("/reactions", json={"tip_id": tip_id, "reaction": "done"})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "#/tip_id"
    assert "DROP" not in answer.text


def test_a_batch_of_the_maximum_size_is_stored_and_a_larger_one_is_refused(
    recommender: httpx.Client, database: Database
) -> None:
    tip_id = new_tip(recommender)
    reaction = {"tip_id": tip_id, "reaction": "not_helpful", "at": "2026-01-31T20:00:00.123456+00:00"}
    content = json.dumps({"reactions": [reaction] * 500})
    answer = recommender.post("/reactions/batch", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 200
    assert [result["outcome"] for result in answer.json()["results"]] == ["recorded"] + ["repeated"] * 499
    assert database.count("reactions") == 1
    for reactions in ([{"tip_id": tip_id, "reaction": "done"}] * 501, []):
        answer = recommender.post("/reactions/batch", json={"reactions": reactions})
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["pointer"] == "#/reactions"


@ON_SQLITE
def test_a_batch_of_10_000_reactions_is_too_large(recommender: httpx.Client, tip_id: str) -> None:
    reactions = [{"tip_id": tip_id, "reaction": "done"}] * 10_000
    answer = recommender.post("/reactions/batch", json={"reactions": reactions})
    assert (answer.status_code, answer.json()["type"]) == (413, "urn:tips:problem:payload-too-large")


TIP_ID = UUID(int=1)


def test_of_two_reactions_at_the_same_instant_the_order_of_arrival_does_not_matter() -> None:
    at = datetime(2026, 1, 31, tzinfo=UTC)
    for first, second in (("done", "helpful"), ("helpful", "done")):
        _, effective, _ = resolve_reaction(Reaction(TIP_ID, first, at), None, NOW)
        _, effective, _ = resolve_reaction(Reaction(TIP_ID, second, at), effective, NOW)
        assert effective == EffectiveReaction(at, "helpful", 1.0)


def test_every_reward_is_between_0_and_1() -> None:
    assert all(0 <= reward <= 1 for reward in REACTIONS.values())

"""POST /exposures and /exposures/batch: which tips count as seen, and the requests that are refused."""

import uuid
from datetime import timedelta
from typing import Any

import httpx
import pytest

from tests.databases import Database
from tests.example_tips import NOW, SetClock
from tests.fixtures import ON_SQLITE
from tests.store.rebuilt_counts import check_counts


def new_tip(http: httpx.Client) -> str:
    tip_id: str = http.post("/tips", json={"user_id": "u-1"}).json()["tip_id"]
    return tip_id


def expose(http: httpx.Client, tip_id: str, **fields: Any) -> tuple[str, str]:
    answer = http.post("/exposures", json={"tip_id": tip_id, **fields})
    assert answer.status_code == 200, answer.text
    assert answer.json()["tip_id"] == tip_id
    return answer.json()["outcome"], answer.json()["at"]


def seen(database: Database) -> int:
    """Return the number of tips that count as seen, from the counters."""
    rows = database.rows("SELECT SUM(tips) AS tips FROM draw_hours WHERE segment = '' AND seen")
    return int(rows[0]["tips"] or 0)


def test_the_first_exposure_of_a_tip_counts_and_repeated_ones_change_nothing(
    recommender: httpx.Client, clock: SetClock, database: Database
) -> None:
    tip_id = new_tip(recommender)
    assert seen(database) == 0
    assert expose(recommender, tip_id) == ("recorded", NOW.isoformat().replace("+00:00", "Z"))
    clock.go(hours=1)
    earlier = (NOW - timedelta(minutes=5)).isoformat()
    for fields in ({}, {"at": earlier}):
        assert expose(recommender, tip_id, **fields) == ("repeated", NOW.isoformat().replace("+00:00", "Z"))
    assert (seen(database), database.count("exposures")) == (1, 1)
    check_counts(database)


@pytest.mark.parametrize("reaction_first", [True, False], ids=["after the reaction", "before the reaction"])
def test_a_tip_is_counted_as_seen_with_its_reaction_in_any_order(
    recommender: httpx.Client, database: Database, reaction_first: bool
) -> None:
    tip_id = new_tip(recommender)
    if reaction_first:
        recommender.post("/reactions", json={"tip_id": tip_id, "reaction": "helpful"}).raise_for_status()
    assert expose(recommender, tip_id)[0] == "recorded"
    if not reaction_first:
        recommender.post("/reactions", json={"tip_id": tip_id, "reaction": "helpful"}).raise_for_status()
    (row,) = database.rows("SELECT tips, reward FROM draw_hours WHERE segment = '' AND tips > 0")
    assert row == {"tips": 1, "reward": 1.0}
    (row,) = database.rows("SELECT seen FROM reward_hours WHERE segment = '' AND reaction = 'helpful' AND tips > 0")
    assert row["seen"]
    check_counts(database)


def test_an_exposure_that_arrives_after_the_reaction_window_is_stored_but_does_not_count(
    recommender: httpx.Client, clock: SetClock, database: Database
) -> None:
    tip_id = new_tip(recommender)
    clock.go(hours=25)
    assert expose(recommender, tip_id, at=NOW.isoformat())[0] == "late"
    assert expose(recommender, tip_id)[0] == "repeated"
    assert (seen(database), database.count("exposures")) == (0, 1)


def test_the_results_of_a_batch_have_the_order_of_its_exposures(recommender: httpx.Client, database: Database) -> None:
    first, second = new_tip(recommender), new_tip(recommender)
    exposures = [{"tip_id": tip_id} for tip_id in (second, first, second)]
    answer = recommender.post("/exposures/batch", json={"exposures": exposures})
    assert answer.status_code == 200
    results = [(result["tip_id"], result["outcome"]) for result in answer.json()["results"]]
    assert results == [(second, "recorded"), (first, "recorded"), (second, "repeated")]
    assert seen(database) == 2
    check_counts(database)


def test_a_batch_with_unknown_tips_stores_nothing_and_reports_each(
    recommender: httpx.Client, database: Database
) -> None:
    known, unknown = new_tip(recommender), str(uuid.uuid4())
    exposures = [{"tip_id": tip_id} for tip_id in (unknown, known, unknown)]
    answer = recommender.post("/exposures/batch", json={"exposures": exposures})
    assert (answer.status_code, answer.json()["type"]) == (404, "urn:tips:problem:unknown-tip")
    assert [error["pointer"] for error in answer.json()["errors"]] == ["#/exposures/0/tip_id", "#/exposures/2/tip_id"]
    assert (seen(database), database.count("exposures")) == (0, 0)
    assert recommender.post("/exposures", json={"tip_id": unknown}).status_code == 404


@ON_SQLITE
def test_an_exposure_in_the_future_is_refused(recommender: httpx.Client, database: Database) -> None:
    tip_id = new_tip(recommender)
    at = (NOW + timedelta(seconds=61)).isoformat()
    for path, body, pointer in (
        ("/exposures", {"tip_id": tip_id, "at": at}, "#/at"),
        ("/exposures/batch", {"exposures": [{"tip_id": tip_id}, {"tip_id": tip_id, "at": at}]}, "#/exposures/1/at"),
    ):
        answer = recommender.post(path, json=body)
        assert answer.status_code == 422
        assert answer.json()["errors"] == [{"pointer": pointer, "detail": "is in the future"}]
    assert database.count("exposures") == 0


@ON_SQLITE
def test_a_batch_holds_1_to_500_exposures(recommender: httpx.Client, database: Database) -> None:
    tip_id = new_tip(recommender)
    for n, status in ((0, 422), (500, 200), (501, 422)):
        answer = recommender.post("/exposures/batch", json={"exposures": [{"tip_id": tip_id}] * n})
        assert answer.status_code == status
    assert database.count("exposures") == 1

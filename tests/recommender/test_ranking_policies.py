"""Ranking policies by rollouts: which one ranks a decision, what is stored, and a policy that serving does not have."""

import json
from collections import Counter
from typing import Any
from uuid import UUID, uuid4

import pytest
from scipy.stats import chisquare
from starlette.responses import JSONResponse
from structlog.testing import capture_logs

from ml.experiments.assignment import draw_weighted, hash_to_unit_interval
from ml.experiments.rollout_state import Track, fold
from ml.recommender.ranking import POLICY_SALT, draw_policy
from tests.conftest import eventually
from tests.databases import Database, Row
from tests.fake_serving import POLICY_VERSION, FakeServing, ranking
from tests.fixtures import ON_SQLITE, StartRecommender
from tests.recommender.test_rollout_selection import ask, event
from tests.rollout_events import append_to, move

NEW = "aaaaaaaaaaaa"
CHAMPION = move("uniform", "champion", kind="policy")
CANARY = move(NEW, "canary", kind="policy", share=0.5)


def stored(database: Database) -> list[Row]:
    rows = database.rows("SELECT * FROM tip_scores")
    for row in rows:
        row["policy_options"] = row["policy_options"] and json.loads(row["policy_options"])
        row["decision_id"] = str(UUID(str(row["decision_id"])))
    return rows


def test_policies_are_drawn_as_often_as_the_propensities_say() -> None:
    track = fold(
        [event(1, "uniform", "champion", kind="policy"), event(2, NEW, "canary", kind="policy", share=0.3)]
    ).policy
    draws = [draw_policy(track, uuid4(), ()) for _ in range(5_000)]
    drawn = Counter(draw.version for draw in draws if draw)
    assert chisquare([drawn["uniform"], drawn[NEW]], [3_500, 1_500]).pvalue > 0.001
    assert {draw.event for draw in draws if draw} == {2}
    assert draw_policy(Track(), uuid4(), ()) is None


def test_the_policy_of_each_decision_is_drawn_asked_for_and_stored(
    start_recommender: StartRecommender, database: Database, fake_serving: FakeServing
) -> None:
    fake_serving.policies[NEW] = "linear"
    append_to(database, CHAMPION, CANARY)
    http = start_recommender(tip_prompt_version="v1,v2-mentor", tip_candidates=2)
    for _ in range(10):
        ask(http)
    asked = {body["event_id"]: body["policy"] for body in fake_serving.score_bodies}
    rows = stored(database)
    assert len(rows) == 2 * len(asked) == 20
    assert {*asked.values()} == {"uniform", NEW}
    for row in rows:
        drawn = draw_weighted(row["policy_options"], hash_to_unit_interval(POLICY_SALT, row["decision_id"]))
        assert row["policy_options"] == {"uniform": 0.5, NEW: 0.5}
        assert row["policy_asked"] == row["score_policy_version"] == asked[row["decision_id"]] == drawn.option
        assert (row["policy_event"], row["policy"], row["prompt_event"]) == (2, "uniform", None)
    counted = database.rows(
        "SELECT policy_version, sum(tips) AS n FROM ranking_hours WHERE segment = '' AND outcome = 'comparable' "
        "GROUP BY policy_version"
    )
    assert {row["policy_version"]: row["n"] for row in counted} == Counter(asked.values())


@ON_SQLITE
@pytest.mark.parametrize("candidates", [1, 2])
def test_without_events_or_without_a_ranking_no_policy_is_asked_for(
    start_recommender: StartRecommender, database: Database, fake_serving: FakeServing, candidates: int
) -> None:
    if candidates == 1:
        append_to(database, CHAMPION)
    ask(start_recommender(tip_candidates=candidates))
    assert all("policy" not in body for body in fake_serving.score_bodies)
    assert len(fake_serving.score_bodies) == candidates - 1
    columns = ("policy_asked", "policy_options", "policy_event")
    assert {row[name] for row in stored(database) for name in columns} == {None}


@ON_SQLITE
def test_another_policy_ranks_without_a_restart(
    start_recommender: StartRecommender, database: Database, fake_serving: FakeServing
) -> None:
    http = start_recommender(tip_candidates=2)
    ask(http)
    append_to(database, move(POLICY_VERSION, "champion", kind="policy"))

    def is_asked() -> bool:
        ask(http)
        return bool(fake_serving.score_bodies[-1].get("policy") == POLICY_VERSION)

    assert eventually(is_asked, 30)


@ON_SQLITE
def test_if_serving_does_not_have_the_drawn_policy_the_champion_ranks(
    start_recommender: StartRecommender, database: Database, fake_serving: FakeServing
) -> None:
    fake_serving.policies[NEW] = "linear"
    fake_serving.unknown = {NEW}
    append_to(database, CHAMPION, move(NEW, "canary", kind="policy", share=1.0))
    http = start_recommender(tip_candidates=2)
    with capture_logs() as logs:
        ask(http)
    assert [line["policy"] for line in logs if line["event"] == "champion_ranks"] == [NEW]
    assert [body["policy"] for body in fake_serving.score_bodies] == [NEW, "uniform"]
    for row in stored(database):
        assert (row["policy_asked"], row["policy_options"], row["policy_event"]) == ("uniform", {"uniform": 1.0}, 1)
        assert row["score_policy_version"] == "uniform"


@ON_SQLITE
@pytest.mark.parametrize("unknown", [True, False])
def test_if_the_champion_does_not_rank_the_first_candidate_is_shown(
    start_recommender: StartRecommender, database: Database, fake_serving: FakeServing, unknown: bool
) -> None:
    append_to(database, CHAMPION)
    http = start_recommender(tip_candidates=2)
    if unknown:
        fake_serving.unknown = {"uniform"}
    else:  # serving ranks with another policy than it was asked for

        async def score(request: Any) -> Any:
            return JSONResponse(ranking(await request.json()))

        fake_serving.score = score
    tip = ask(http)
    rows = stored(database)
    assert {row["score_policy"] for row in rows} == {"unavailable"}
    assert {(row["policy_asked"], row["policy_event"]) for row in rows} == {("uniform", 1)}
    (shown,) = [row for row in rows if row["shown"]]
    assert UUID(str(shown["tip_id"])) == UUID(tip["tip_id"]) == UUID(shown["decision_id"])
    assert len(fake_serving.score_bodies) == 1

"""Prompt versions by rollouts: shares, cohorts and the holdout, and what happens if serving lacks a version."""

import json
from collections import Counter
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from scipy.stats import chisquare
from starlette.responses import JSONResponse
from structlog.testing import capture_logs

from ml.experiments.assignment import draw_weighted, hash_to_unit_interval
from ml.experiments.policies import POLICIES, SALT
from ml.experiments.rollout_state import RolloutEvent, RolloutState, fold
from ml.platform.settings import ConfigurationError
from ml.recommender.candidates import Draw
from ml.recommender.rollout_selection import Holdout, RolloutSelector
from ml.recommender.selection import PromptSelection, PromptSelector
from ml.recommender.settings import RecommenderSettings
from tests.conftest import eventually
from tests.databases import Database, Row
from tests.example_tips import DIGEST
from tests.fake_serving import TIP_RESPONSE, FakeServing
from tests.fixtures import ON_SQLITE, StartRecommender
from tests.rollout_events import append_to, move
from tests.store.rebuilt_counts import check_counts

ROLLOUT: dict[str, Any] = {"tip_prompt_policy": "rollout"}
OTHER_DIGEST = "b" * 64


class Live:
    """A state that does not change."""

    def __init__(self, *events: RolloutEvent) -> None:
        self.state: RolloutState = fold(events)


def event(number: int, version: str, stage: str, **fields: Any) -> RolloutEvent:
    values = {"rollout": number, "kind": "prompt", "digest": DIGEST, "action": "promote", "from_stage": "registered"}
    return RolloutEvent(id=number, at=float(number), version=version, to_stage=stage, **values | fields)  # type: ignore[arg-type]


EVENTS = (
    event(1, "v1", "champion"),
    event(2, "v2", "canary", share=0.25),
    event(3, "v3", "canary", share=0.4, segment="locale:de"),
)


def selector(*events: RolloutEvent, holdout: Holdout | None = None) -> RolloutSelector:
    return RolloutSelector(Live(*events), PromptSelector({}), holdout)  # type: ignore[arg-type]


# Draws


@pytest.mark.parametrize("segments", [(), ("mood:low", "locale:de")])
def test_versions_are_drawn_as_often_as_the_logged_propensities_say(segments: tuple[str, ...]) -> None:
    expected = {"v1": 0.35, "v2": 0.25, "v3": 0.4} if segments else {"v1": 0.75, "v2": 0.25}
    drawing = selector(*EVENTS)
    selections = [drawing.select(f"u-{n % 50}", [str(uuid4())], segments)[0] for n in range(5_000)]
    for selection in selections:
        assert selection.options == pytest.approx(expected)
        assert selection.probability == selection.options[str(selection.prompt_version)]
        assert (selection.policy, selection.event, selection.digest) == ("rollout", 3, DIGEST)
    drawn = Counter(selection.prompt_version for selection in selections)
    assert chisquare(
        [drawn[version] for version in expected], [5_000 * share for share in expected.values()]
    ).pvalue > (0.001)


def test_all_candidates_of_a_decision_have_the_version_that_follows_from_their_ids() -> None:
    drawing = selector(*EVENTS)
    for _ in range(200):
        tip_ids = [str(uuid4()) for _ in range(3)]
        first, *others = drawing.select("u-1", tip_ids)
        assert others == [first, first]
        assert drawing.select("u-1", tip_ids[::-1])[0] == first
        assert first.prompt_version == repeated(first.options, tip_ids)


def repeated(options: Any, tip_ids: list[str]) -> str:
    return draw_weighted(options, hash_to_unit_interval(SALT, min(tip_ids))).option


def test_before_the_first_champion_the_versions_of_the_settings_are_drawn() -> None:
    drawing = RolloutSelector(Live(), PromptSelector({"v1": 1.0}), None)  # type: ignore[arg-type]
    (selection,) = drawing.select("u-1", ["tip-1"])
    assert (selection.prompt_version, selection.policy, selection.event) == ("v1", "single", None)
    assert drawing.champion() is None


def test_held_out_users_always_get_the_control_and_others_never() -> None:
    holdout = Holdout(0.2, "v1")
    drawing = selector(event(1, "v2", "champion"), holdout=holdout)
    held_out = 0
    for number in range(5_000):
        selection, again = (drawing.select(f"u-{number}", [str(uuid4())])[0] for _ in range(2))
        assert selection == again
        if selection.policy == "holdout":
            held_out += 1
            assert selection == PromptSelection("v1", "holdout", POLICIES["holdout"].version, {"v1": 1.0}, 1.0)
        else:
            assert (selection.prompt_version, selection.event) == ("v2", 1)
    assert chisquare([held_out, 5_000 - held_out], [1_000, 4_000]).pvalue > 0.001


def test_a_larger_holdout_keeps_the_users_of_a_smaller_one() -> None:
    users = [f"u-{number}" for number in range(1_000)]
    smaller, larger = ({user for user in users if Holdout(share, "v1").includes(user)} for share in (0.1, 0.3))
    assert smaller < larger


def test_a_draw_survives_its_way_through_the_store() -> None:
    for drawing in (selector(*EVENTS), selector(*EVENTS, holdout=Holdout(0.5, "v1")), PromptSelector({})):
        for user in ("u-1", "u-2", "u-3"):
            tip_id = uuid4()
            (selection,) = drawing.select(user, [str(tip_id)])
            draw = Draw(tip_id, selection)
            assert Draw.from_json(json.loads(json.dumps(draw.as_json()))) == draw
    # As a release without rollouts stores it, and reads it.
    (selection,) = PromptSelector({"v1": 1.0}).select("u-1", ["tip-1"])
    assert Draw(uuid4(), selection).as_json().keys() == {
        *("tip_id", "prompt_version", "policy", "policy_version", "options", "probability"),
    }


# Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ROLLOUT_HOLDOUT": "0.1", "ROLLOUT_CONTROL": "v1"}, "ROLLOUT_HOLDOUT: .* needs TIP_PROMPT_POLICY=rollout"),
        ({"TIP_PROMPT_POLICY": "rollout", "ROLLOUT_HOLDOUT": "0.1"}, "ROLLOUT_HOLDOUT: .* needs ROLLOUT_CONTROL, the"),
        ({"TIP_PROMPT_POLICY": "rollout", "ROLLOUT_HOLDOUT": "0.6"}, "ROLLOUT_HOLDOUT: the value '0.6' "),
        ({"ROLLOUT_CONTROL": "v1,v2-mentor"}, "ROLLOUT_CONTROL: the value .* should be one prompt version"),
        ({"ROLLOUT_SHADOW_SHARE": "1.5"}, "ROLLOUT_SHADOW_SHARE: "),
        ({"ROLLOUT_SHADOW_LIMIT": "-1"}, "ROLLOUT_SHADOW_LIMIT: "),
        ({"TIP_PROMPT_POLICY": "rollout", "TIP_PROMPT_VERSION": "v1,v2-mentor"}, "TIP_PROMPT_POLICY: .* at most one"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    settings: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=message):
        RecommenderSettings.from_environment()


@ON_SQLITE
def test_a_control_that_serving_does_not_have_is_refused(start_recommender: StartRecommender) -> None:
    with pytest.raises(ConfigurationError, match=r"ROLLOUT_CONTROL: serving does not know v9; it knows v1, v2-mentor"):
        start_recommender(**ROLLOUT, rollout_holdout=0.1, rollout_control="v9")


# Through HTTP


def ask(http: httpx.Client, user_id: str = "u-1", locale: str | None = None, **headers: str) -> dict[str, Any]:
    body = {"user_id": user_id, "signals": {"locale": locale} if locale else {}}
    answer = http.post("/tips", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def rows(database: Database, table: str = "tip_scores") -> list[Row]:
    found = database.rows(f"SELECT * FROM {table} ORDER BY tip_id")
    for row in found:
        row["options"] = json.loads(row["options"])
        row["tip_id"], row["decision_id"] = (str(UUID(str(row[name]))) for name in ("tip_id", "decision_id"))
    return found


def decided_by(http: httpx.Client, database: Database, event_id: int, **request: Any) -> None:
    """Ask until a tip is decided by an event."""

    def is_effective() -> bool:
        tip_id = ask(http, **request)["tip_id"]
        return any(row["tip_id"] == tip_id and row["prompt_event"] == event_id for row in rows(database))

    assert eventually(is_effective, 30)


def test_each_tip_has_the_event_that_decided_it_and_the_shares_after_it(
    start_recommender: StartRecommender, database: Database
) -> None:
    both = [start_recommender(**ROLLOUT), start_recommender(**ROLLOUT)]
    canary, rolled_back = (
        move("v2-mentor", "canary", share=0.5),
        move("v2-mentor", "registered", rollout=2, from_stage="canary", action="rollback"),
    )
    expected: dict[int, dict[str, float]] = {1: {"v1": 1.0}}
    for http in both:
        ask(http)
    for new, options in ((canary, {"v1": 0.5, "v2-mentor": 0.5}), (rolled_back, {"v1": 1.0})):
        (appended,) = append_to(database, new)
        expected[appended.id] = options
        for http in both:
            decided_by(http, database, appended.id)
        for number in range(8):
            ask(both[number % 2], f"u-{number}")
    stored = rows(database)
    assert {row["prompt_event"] for row in stored} == {1, 2, 3}
    for row in stored:
        assert row["options"] == expected[row["prompt_event"]]
        assert row["policy"] == "rollout"
        assert row["prompt_version"] == row["prompt_version_asked"] == repeated(row["options"], [row["tip_id"]])
        assert row["probability"] == row["options"][row["prompt_version"]]
    assert database.rows("SELECT actor, action, reason FROM rollout_events WHERE id = 1") == [
        {
            "actor": "environment",
            "action": "initial",
            "reason": "the first champion: the default of serving",
        }
    ]
    check_counts(database)


@ON_SQLITE
def test_candidates_have_one_version_and_count_as_one_draw(
    start_recommender: StartRecommender, database: Database
) -> None:
    append_to(database, move("v1", "champion"), move("v2-mentor", "canary", share=0.5))
    http = start_recommender(**ROLLOUT, tip_candidates=3)
    for _ in range(8):
        ask(http)
    by_decision: dict[str, list[Row]] = {}
    for row in rows(database):
        by_decision.setdefault(row["decision_id"], []).append(row)
    assert len(by_decision) == 8
    for decision in by_decision.values():
        (version,) = {row["prompt_version"] for row in decision}
        assert version == repeated(decision[0]["options"], [row["tip_id"] for row in decision])
    counted = database.rows("SELECT outcome, sum(tips) AS n FROM draw_hours WHERE segment = '' GROUP BY outcome")
    assert counted == [{"outcome": "comparable", "n": 8}]


@ON_SQLITE
def test_a_canary_of_a_cohort_is_drawn_for_its_users_only(
    start_recommender: StartRecommender, database: Database
) -> None:
    append_to(database, move("v1", "champion"), move("v2-mentor", "canary", share=1.0, segment="locale:de"))
    http = start_recommender(**ROLLOUT)
    assert {ask(http, locale="de-AT")["prompt_version"] for _ in range(3)} == {"v2-mentor"}
    assert {ask(http, locale=locale)["prompt_version"] for locale in ("en", "fr", None)} == {"v1"}
    assert all(row["options"] == {row["prompt_version"]: 1.0} for row in rows(database))


@ON_SQLITE
def test_held_out_users_get_the_control_through_switches(
    start_recommender: StartRecommender, database: Database
) -> None:
    append_to(database, move("v2-mentor", "champion"))
    http = start_recommender(**ROLLOUT, rollout_holdout=0.5, rollout_control="v1")
    users = [f"u-{number}" for number in range(12)]
    held_out = {user for user in users if Holdout(0.5, "v1").includes(user)}
    assert 0 < len(held_out) < 12
    for user in users:
        assert ask(http, user)["prompt_version"] == ("v1" if user in held_out else "v2-mentor")
    for row in rows(database):
        expected = ("holdout", {"v1": 1.0}, None) if row["user_id"] in held_out else ("rollout", {"v2-mentor": 1.0}, 1)
        assert (row["policy"], row["options"], row["prompt_event"]) == expected
    check_counts(database)


# A version that serving does not have


def test_if_serving_does_not_have_the_drawn_version_the_champion_is_written(
    start_recommender: StartRecommender, database: Database, fake_serving: FakeServing
) -> None:
    append_to(database, move("v1", "champion"), move("v2-mentor", "canary", share=1.0))
    fake_serving.unknown = {"v2-mentor"}
    http = start_recommender(**ROLLOUT, tip_candidates=2)
    with capture_logs() as logs:
        tip = ask(http, **{"Idempotency-Key": "a-key"})
    assert tip["prompt_version"] == "v1"
    assert sum(line["event"] == "champion_written" for line in logs) == 1
    stored, failed = rows(database), rows(database, "generation_failures")
    for row in stored:
        assert (row["options"], row["probability"], row["prompt_event"]) == ({"v1": 1.0}, 1.0, 1)
    # The draws that could not be written are kept, so that no draw of a version is lost.
    assert len(stored) == len(failed) == 2
    assert {row["tip_id"] for row in stored}.isdisjoint(row["tip_id"] for row in failed)
    for row in failed:
        assert (row["prompt_version_asked"], row["options"]) == ("v2-mentor", {"v2-mentor": 1.0})
        assert row["error"] == "upstream-refused"
    counted = database.rows("SELECT outcome, sum(tips) AS n FROM draw_hours WHERE segment = '' GROUP BY outcome")
    assert {row["outcome"]: row["n"] for row in counted} == {"comparable": 1, "failed": 1}
    check_counts(database)
    assert ask(http, **{"Idempotency-Key": "a-key"}) == tip


@ON_SQLITE
def test_a_text_under_another_digest_is_never_shown(
    start_recommender: StartRecommender, database: Database, fake_serving: FakeServing
) -> None:
    append_to(database, move("v1", "champion"), move("v2-mentor", "canary", share=1.0))

    async def generate(request: Any) -> JSONResponse:
        version = (await request.json())["prompt_version"]
        digest = OTHER_DIGEST if version == "v2-mentor" else DIGEST
        return JSONResponse(TIP_RESPONSE | {"prompt_version": version, "prompt_digest": digest})

    fake_serving.generate = generate
    tip = ask(start_recommender(**ROLLOUT))
    assert (tip["prompt_version"], tip["prompt_digest"]) == ("v1", DIGEST)
    assert [row["prompt_event"] for row in rows(database)] == [1]
    assert [row["prompt_version_asked"] for row in rows(database, "generation_failures")] == ["v2-mentor"]


@ON_SQLITE
@pytest.mark.parametrize("settings", [{}, {"rollout_holdout": 0.5, "rollout_control": "v2-mentor"}])
def test_if_serving_does_not_have_the_champion_or_the_control_the_error_stands(
    start_recommender: StartRecommender, database: Database, fake_serving: FakeServing, settings: dict[str, Any]
) -> None:
    append_to(database, move("v1", "champion"))
    http = start_recommender(**ROLLOUT, **settings)
    fake_serving.unknown = {"v2-mentor"} if settings else {"v1"}
    user = next(f"u-{n}" for n in range(100) if not settings or Holdout(0.5, "").includes(f"u-{n}"))
    answer = http.post("/tips", json={"user_id": user})
    assert (answer.status_code, answer.json()["type"]) == (502, "urn:tips:problem:upstream-refused")
    assert len(fake_serving.generate_bodies) == 1
    assert database.count("tip_scores") == 0
    assert database.count("generation_failures") == 1


@ON_SQLITE
def test_a_candidate_that_serving_does_not_have_is_left_out_if_others_were_written(
    start_recommender: StartRecommender, database: Database, fake_serving: FakeServing
) -> None:
    append_to(database, move("v1", "champion"), move("v2-mentor", "canary", share=1.0))
    answers = iter([OTHER_DIGEST, DIGEST, DIGEST])

    async def generate(request: Any) -> JSONResponse:
        version = (await request.json())["prompt_version"]
        return JSONResponse(TIP_RESPONSE | {"prompt_version": version, "prompt_digest": next(answers)})

    fake_serving.generate = generate
    ask(start_recommender(**ROLLOUT, tip_candidates=3))
    assert [row["prompt_version"] for row in rows(database)] == ["v2-mentor"] * 2
    assert len(rows(database, "generation_failures")) == 1


@ON_SQLITE
def test_a_retry_after_a_switch_writes_what_was_drawn_first(
    start_recommender: StartRecommender, database: Database, fake_serving: FakeServing
) -> None:
    append_to(database, move("v1", "champion"), move("v2-mentor", "canary", share=1.0))
    http = start_recommender(**ROLLOUT)
    fake_serving.respond(lambda: JSONResponse({"type": "urn:tips:problem:unusable-tip", "detail": "No tip."}, 502))
    body, key = {"user_id": "u-1"}, {"Idempotency-Key": "a-key"}
    assert http.post("/tips", json=body, headers=key).status_code == 502
    fake_serving.generate = None
    append_to(database, move("v2-mentor", "registered", rollout=2, from_stage="canary", action="rollback"))
    decided_by(http, database, 3)
    assert http.post("/tips", json=body, headers=key).json()["prompt_version"] == "v2-mentor"
    # Its event allows it: it is stored with the draw.
    row = next(row for row in rows(database) if row["prompt_version"] == "v2-mentor")
    assert (row["prompt_event"], row["options"]) == (2, {"v2-mentor": 1.0})

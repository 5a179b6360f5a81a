"""`GET /rollouts` and `GET /rollouts/{id}`."""

import httpx

from tests.databases import Database
from tests.example_tips import SetClock
from tests.rollouts.example_rollouts import running_app
from tests.rollouts.scenario import DIGESTS, LEARNED


def test_without_rollouts_there_is_nothing_and_an_unknown_one_is_a_404(sqlite_database: Database) -> None:
    with running_app(sqlite_database.url, SetClock()) as url:
        empty = httpx.get(f"{url}/rollouts").json()
        assert (empty["event"], empty["champions"], empty["open"], empty["ended"]) == (0, [], [], [])
        assert len(empty["not_gated"]) == 2
        unknown = httpx.get(f"{url}/rollouts/1")
        assert (unknown.status_code, unknown.json()["type"]) == (404, "urn:tips:problem:unknown-rollout")
        assert httpx.get(f"{url}/rollouts/0").status_code == 422


def test_all_rollouts_and_each_one_are_described(filled: tuple[bytes, SetClock], sqlite_database: Database) -> None:
    content, clock = filled
    sqlite_database.file.write_bytes(content)
    with running_app(sqlite_database.url, clock) as url:
        overview = httpx.get(f"{url}/rollouts").json()
        assert [(each["kind"], each["version"]) for each in overview["champions"]] == [
            *(("prompt", "v1"), ("policy", "uniform")),
        ]
        assert [(each["rollout"], each["stage"]) for each in overview["open"]] == [
            *((4, "canary"), (6, "shadow"), (8, "shadow")),
        ]
        (ended,) = overview["ended"]
        assert (ended["rollout"], ended["action"], ended["actor"]) == (2, "rollback", "grace")
        canary = httpx.get(f"{url}/rollouts/4").json()
        assert canary["position"]["share"] == 0.25
        assert canary["position"]["digest"] == DIGESTS["v2-mentor"]
        assert canary["next"] == {"step": "ramp", "stage": "canary", "share": 0.5, "segment": ""}
        assert {gate["name"] for gate in canary["gates"]} >= {"card", "slices", "step_tips"}
        assert [row["version"] for row in canary["funnel"]] == ["v1", "v2-mentor"]
        assert [(event["from_stage"], event["to_stage"]) for event in canary["events"]] == [
            *(("registered", "shadow"), ("shadow", "canary")),
        ]
        assert canary["events"][1]["evidence"]["shadow_decisions"] == 80
        policy = httpx.get(f"{url}/rollouts/8").json()
        assert (policy["kind"], policy["version"]) == ("policy", LEARNED)
        assert httpx.get(f"{url}/rollouts/2").json()["position"] is None

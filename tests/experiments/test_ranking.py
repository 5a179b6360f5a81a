"""Ranking by what was learned: the encoder, the policy as bytes, and what is learned."""

import io
import json
import math
import re
import zipfile
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from ml.experiments.ranking import Encoder, Learner, RankingPolicy, UnusablePolicyError, _loaded
from ml.features.definitions import SIGNALS
from ml.features.encoder import CONTEXT_ENCODER, candidate_encoder, candidate_row
from ml.features.feature_types import Floats
from ml.pipelines.training import train
from ml.registry.policies import LearnedPolicy
from tests.features.test_context import some_signals
from tests.policies import TIPS, decisions, policy

COLUMNS, TIP_COLUMNS = ("mood=low", "sleep_hours/24"), ("version=v1", "length(tip)/280", "12:30".replace(":", "-"))

anything = st.text(st.characters(exclude_categories=[]), max_size=80) | st.sampled_from(
    [
        "a|b",
        "|a x",
        "a:b",
        "12:30",
        "7",
        "\n",
        "\r\n\n",
        "shared |c x",
        "0:-1:1 |a x",
        "inf",
        "nan",
        "\x00",
        "\u2028",
        "",
    ]
)
numbers = st.floats(-1e6, 1e6) | st.floats(0, 1) | st.just(math.nan)
LEARNED = LearnedPolicy(RankingPolicy.load(policy()))
OF_TIPS = candidate_encoder([*TIPS])
ENCODER = Encoder(CONTEXT_ENCODER.columns, OF_TIPS.columns)
MODEL = _loaded(zipfile.ZipFile(io.BytesIO(policy())).read("model.vw"))


def names(line: str) -> set[str]:
    """The features of a line, as Vowpal Wabbit's text format has them."""
    head, bar, rest = line.partition("|")
    assert (head, bar) in {("shared ", "|"), ("", "|")}
    namespace, *features = rest.split(" ")
    assert namespace in {"c", "a"}
    assert all(re.fullmatch(r"[^:|]+(:-?[0-9.e+-]+)?", feature) for feature in features if feature)
    return {feature.partition(":")[0] for feature in features if feature}


@given(
    some_signals,
    anything,
    st.lists(st.tuples(anything | st.none(), anything | st.none()), min_size=1, max_size=8),
)
def test_any_text_in_any_field_yields_as_many_actions_as_candidates_and_only_declared_features(
    signals: dict[str, Any], goal: str, tips: list[tuple[str | None, str | None]]
) -> None:
    person = {**signals, "goal": goal, "mood": goal, "local_time": signals.get("local_time")}
    rows = [candidate_row(version, tip) for version, tip in tips]
    lines = ENCODER.encode(CONTEXT_ENCODER.encode_rows([person])[0], OF_TIPS.encode_rows(rows))
    assert len(lines) == len(tips) + 1
    assert set().union(*map(names, lines)) <= {*CONTEXT_ENCODER.columns, *OF_TIPS.columns}
    assert all("\n" not in line and "\r" not in line for line in lines)
    by_the_model = [-cost for cost in MODEL.predict(lines)]
    ranking = LEARNED.rank(person, rows)
    assert ranking.probabilities.shape == (len(tips),)
    assert ranking.scores == pytest.approx(np.clip(by_the_model, 0, 1), abs=1e-5)


@given(
    npst.arrays(np.float64, 2, elements=numbers),
    st.integers(1, 6).flatmap(lambda n: npst.arrays(np.float64, (n, 3), elements=numbers)),
)
def test_numbers_are_written_so_that_they_are_read_as_they_are(context: Floats, tips: Floats) -> None:
    lines = Encoder(COLUMNS, TIP_COLUMNS).encode(context, tips)
    assert len(lines) == len(tips) + 1
    for line, columns, numbers in zip(
        lines, [COLUMNS, *[TIP_COLUMNS] * len(tips)], [context.tolist(), *tips.tolist()], strict=True
    ):
        said = {column: number for column, number in zip(columns, numbers, strict=True) if abs(number) >= 1e-6}
        assert names(line) == said.keys()
        for feature in line.split(" ")[1 + line.startswith("shared") :]:
            if feature:
                name, _, number = feature.partition(":")
                assert float(number or 1) == pytest.approx(said[name], rel=1e-5)


@pytest.mark.parametrize("name", ["a:b", "a|b", "a b", "a\nb", "", "17", "7\t", "a\u2028b"])
def test_a_name_that_would_not_stay_one_feature_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="columns cannot be called"):
        Encoder([name], ["a"])
    with pytest.raises(ValueError, match="columns cannot be called"):
        Encoder(["a"], [name])


@given(numbers)
@example(7.46794e-160)  # which Vowpal Wabbit reads as no number
@example(1e6)
def test_any_number_that_is_written_gives_numbers_back(number: float) -> None:
    person = np.full(len(CONTEXT_ENCODER.columns), number)
    tips = np.full((2, len(LEARNED._in_candidates)), number)
    scores = LEARNED._policy.rank(person, tips).scores
    assert ((scores >= 0) & (scores <= 1)).all()


@pytest.mark.parametrize("number", [math.inf, -math.inf, 1e39, -1.1e6])
def test_what_single_precision_cannot_hold_is_refused(number: float) -> None:
    encoder = Encoder(COLUMNS, TIP_COLUMNS)
    with pytest.raises(ValueError, match="at most 1,000,000"):
        encoder.encode(np.array([number, 0]), np.zeros((1, 3)))
    with pytest.raises(ValueError, match="at most 1,000,000"):
        encoder.encode(np.zeros(2), np.array([[0, number, 0]]))


def test_columns_that_are_missing_are_refused() -> None:
    encoder = Encoder(COLUMNS, TIP_COLUMNS)
    with pytest.raises(ValueError, match="columns are missing"):
        encoder.encode(np.zeros(3), np.zeros((1, 3)))
    with pytest.raises(ValueError, match="columns are missing"):
        encoder.encode(np.zeros(2), np.zeros((1, 2)))


@pytest.mark.parametrize("reward", [-0.1, 1.1, math.nan])
def test_a_reward_out_of_range_is_refused(reward: float) -> None:
    with pytest.raises(ValueError, match="reward"):
        Learner(COLUMNS, TIP_COLUMNS).learn(np.zeros(2), np.zeros(3), reward)


@pytest.mark.parametrize("rewards", [(0.0,), (1.0,), (0.0, 1.0), (0.25, 0.5)])
def test_a_policy_predicts_what_the_model_predicts_that_it_was_made_of(rewards: tuple[float, ...]) -> None:
    chance = np.random.default_rng(3)
    learner = Learner(COLUMNS, TIP_COLUMNS)
    for _ in range(500):
        learner.learn(chance.random(2), chance.random(3), chance.choice(rewards))
    made = RankingPolicy.load(learner.policy("p", versions=(), learned_from=500, trained_until=0.0))
    for _ in range(50):
        context, tips = chance.random(2), chance.random((4, 3))
        tips[chance.random((4, 3)) < 0.3] = np.nan
        assert made.rank(context, tips).scores == pytest.approx(learner.scores(context, tips), abs=1e-5)


def test_the_same_decisions_in_any_order_of_arrival_give_the_same_policy_byte_by_byte() -> None:
    made = decisions(300)
    assert train(made) == train(list(reversed(made)))
    assert train(made) != train(made[:-1])
    with pytest.raises(ValueError, match="nothing to learn from"):
        train([])


def test_a_policy_says_what_it_is_and_what_it_was_made_for() -> None:
    loaded = RankingPolicy.load(policy())
    assert (loaded.card.name, loaded.card.learned_from, loaded.card.trained_until) == ("tips", 2_000, 1_999.0)
    assert loaded.card.versions == ("v1", "v2-mentor", "v3-few-shot")
    assert loaded.card.context == CONTEXT_ENCODER.columns
    assert re.fullmatch("[0-9a-f]{12}", loaded.version)
    assert loaded.version != RankingPolicy.load(policy(seed=2)).version


def test_scores_are_the_rewards_to_expect_and_the_best_is_chosen_most_often() -> None:
    tips = [candidate_row(version, tip) for version, tip in TIPS.items()]
    for mood, best in (("good", 0), ("low", 1)):
        ranking = LEARNED.rank({"mood": mood, "stress": 5}, tips)
        assert ranking.scores.argmax() == ranking.probabilities.argmax() == best
        assert abs(ranking.scores[best] - 0.8) < 0.15
        assert (ranking.scores >= 0).all()
        assert (ranking.scores <= 1).all()
        assert ranking.probabilities.sum() == pytest.approx(1, abs=1e-12)
        assert (ranking.probabilities >= 0.02 / 3).all()


@pytest.mark.parametrize("n", [1, 50])
def test_as_few_and_as_many_candidates_as_there_can_be_are_ranked(n: int) -> None:
    ranking = LEARNED.rank({}, [candidate_row("v1", f"Tip {number}") for number in range(n)])
    assert ranking.probabilities.shape == (n,)
    assert ranking.probabilities.sum() == pytest.approx(1, abs=1e-12)
    assert (ranking.probabilities > 0).all()


def test_ranking_is_the_same_from_several_threads() -> None:
    people = [{"mood": mood, "stress": stress} for mood in ("low", "good") for stress in range(1, 11)] * 20
    tips = [candidate_row(version, text) for version, text in (("v1", "Dim."), ("v2-mentor", "Breathe."), ("v9", None))]
    alone = [LEARNED.rank(person, tips).scores.tolist() for person in people]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda person: LEARNED.rank(person, tips).scores.tolist(), people)) == alone


def test_a_truncated_policy_is_refused_wherever_it_ends() -> None:
    blob = policy()
    for end in range(0, len(blob), max(1, len(blob) // 60)):
        with pytest.raises(UnusablePolicyError):
            RankingPolicy.load(blob[:end])


def test_a_damaged_policy_is_refused_wherever_the_damage_is() -> None:
    blob = policy()
    start = blob.index(b"PK\x03\x04", 1) + 40  # in the model, which has no structure that could tell
    for place in range(start, start + 600, 37):
        damaged = bytearray(blob)
        damaged[place] ^= 0xFF
        with pytest.raises(UnusablePolicyError):
            RankingPolicy.load(bytes(damaged))


def changed(**changes: Any) -> bytes:
    """The policy with another card."""
    with zipfile.ZipFile(io.BytesIO(policy())) as archive:
        card, model = json.loads(archive.read("card.json")), archive.read("model.vw")
    blob = io.BytesIO()
    with zipfile.ZipFile(blob, "w") as archive:
        archive.writestr("card.json", json.dumps(card | changes))
        archive.writestr("model.vw", model)
    return blob.getvalue()


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        b"PK",
        b"\x80\x04K\x01.",
        b"version\x009.11.9",
        changed(extra=1),
        changed(name="a b"),
        changed(name="uniform"),
    ],
    ids=["empty", "too short", "a pickle", "a bare model", "an unknown field", "a bad name", "a reserved name"],
)
def test_what_is_no_policy_is_refused(blob: bytes) -> None:
    with pytest.raises(UnusablePolicyError, match="is damaged, or is no policy"):
        RankingPolicy.load(blob)


@pytest.mark.parametrize(
    ("changes", "column"),
    [
        ({"context": [*CONTEXT_ENCODER.columns, "sleep_hours/12"]}, "sleep_hours/12"),
        ({"context": ["shoe_size/60"]}, "shoe_size/60"),
        ({"candidate": ["length(tip)/300"]}, "length.tip./300"),
        ({"versions": ["v1"]}, "prompt_version=v2-mentor"),
    ],
)
def test_a_policy_made_for_other_features_is_refused_and_one_is_named(changes: dict[str, Any], column: str) -> None:
    with pytest.raises(UnusablePolicyError, match=f"was made for other features, such as {column}"):
        LearnedPolicy(RankingPolicy.load(changed(**changes)))


def test_a_policy_that_knows_fewer_features_than_there_are_still_ranks() -> None:
    some = LearnedPolicy(RankingPolicy.load(changed(context=["mood=low", "stress/10"])))
    assert (
        some.rank(
            {"mood": "low", "stress": 3, "goal": "x"}, [candidate_row("v1", "Dim."), candidate_row("v2-mentor", None)]
        ).scores.size
        == 2
    )
    assert len(CONTEXT_ENCODER.columns) > len(SIGNALS)

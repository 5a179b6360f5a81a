"""Policy files: equal bytes for equal policies, and the refusal of every damaged or hostile file."""

import io
import json
import math
import os
import pickle
import random
import re
import struct
import sys
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from ml.experiments.arrays import Floats
from ml.experiments.linear import DayAdjustedStatistics, LinearModel, fit
from ml.experiments.regression_statistics import RegressionStatistics
from ml.features.definitions import SIGNALS
from ml.features.encoder import CONTEXT_ENCODER, candidate_row
from ml.pipelines.training import fit_policy
from ml.registry import artifacts, npz_archive
from ml.registry.artifacts import MAX_BYTES, MAX_FEATURES, PolicyCard, RankingPolicy, UnusablePolicyError
from ml.registry.policies import LearnedPolicy, load_policy
from tests.features.test_context import some_signals
from tests.policies import TIPS, policy
from tests.process import run

K, M = 2, 3
D = (1 + K) * (1 + M)
DAMAGED = r"^is damaged, or is not a policy$"
LEARNED = LearnedPolicy(RankingPolicy.from_bytes(policy()))

any_text = st.text(st.characters(exclude_categories=[]), max_size=80) | st.sampled_from(
    ["a|b", "a:b", "7", "\n", "0:-1:1 |a x", "inf", "nan", "\x00", "\u2028", ""]
)
any_float = st.floats() | st.floats(0, 1) | st.just(math.nan)


@cache
def small_policy() -> bytes:
    """Return a policy of a few columns, whose file is small enough to test every byte of it."""
    rng = np.random.default_rng(4)
    names = ("mood=low", "stress/10"), ("prompt_version=v1", "prompt_version=v2", "length(tip)/280")
    statistics = RegressionStatistics.from_rows(*names, rng.random((50, K)), rng.random((50, M)), rng.random(50))
    return fit_policy(
        {0: DayAdjustedStatistics.of_day(statistics)}, name="small", versions=["v1", "v2"], trained_until=1.0
    ).to_bytes()


def small_policy_members() -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(small_policy())) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def npy(values: Any, dtype: Any = np.float64) -> bytes:
    content = io.BytesIO()
    np.save(content, np.asarray(values, dtype), allow_pickle=True)
    return content.getvalue()


def member_values(name: str) -> Floats:
    values: Floats = np.load(io.BytesIO(small_policy_members()[name]), allow_pickle=False)
    return values


def with_members(**members: bytes) -> bytes:
    """Return the small policy with other members, in a valid archive."""
    return npz_archive._write_members(
        small_policy_members() | {f"{name}.npy": content for name, content in members.items()}
    )


def with_card(blob: bytes = b"", **fields: Any) -> bytes:
    """Return a policy, by default the small one, with other fields in its card, in a valid archive."""
    with zipfile.ZipFile(io.BytesIO(blob or small_policy())) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    card = json.loads(np.load(io.BytesIO(members["card.npy"])).tobytes())
    text = json.dumps(card | fields).encode()
    return npz_archive._write_members(members | {"card.npy": npy(np.frombuffer(text, np.uint8), np.uint8)})


def with_value(name: str, index: int, value: float) -> bytes:
    values = member_values(f"{name}.npy").copy()
    values.flat[index] = value
    return with_members(**{name: npy(values)})


# Writing


def test_a_policy_is_equal_after_a_round_trip() -> None:
    for blob in (small_policy(), policy()):
        loaded = RankingPolicy.from_bytes(blob)
        assert loaded.to_bytes() == blob
        assert re.fullmatch("[0-9a-f]{12}", loaded.version)
        assert RankingPolicy(loaded.card, loaded.model).version == loaded.version
    assert loaded.version != RankingPolicy.from_bytes(policy(seed=2)).version


def test_numpy_reads_a_file_without_unpickling() -> None:
    with np.load(io.BytesIO(policy()), allow_pickle=False) as arrays:
        card = json.loads(arrays["card"].tobytes())
        assert arrays["weights"].shape == (1 + len(card["context"]), 1 + len(card["candidate"]))
        assert {array.dtype.str for name, array in arrays.items() if name != "card"} == {"<f8"}


def test_the_card_describes_the_policy() -> None:
    card = RankingPolicy.from_bytes(policy()).card
    assert (card.name, card.learned_from, card.trained_until) == ("tips", 2_000, 1_999.0)
    assert card.versions == ("v1", "v2-mentor", "v3-few-shot")
    assert card.context == CONTEXT_ENCODER.columns
    assert card.exploration.gamma == pytest.approx(10 * math.sqrt(2_000))


def test_a_model_that_does_not_match_its_card_is_refused() -> None:
    loaded = RankingPolicy.from_bytes(small_policy())
    with pytest.raises(ValueError, match="weights must have the shape"):
        RankingPolicy(loaded.card, LinearModel(np.zeros((2, 2)), np.eye(4), 0.1))
    with pytest.raises(ValueError, match="at most 1e\\+06"):
        RankingPolicy(loaded.card, LinearModel(np.full((1 + K, 1 + M), 1e7), np.eye(D), 0.1))


# Reading


def test_a_file_truncated_at_any_position_is_refused() -> None:
    blob = small_policy()
    for end in range(0, len(blob), 7):
        with pytest.raises(UnusablePolicyError, match=DAMAGED):
            RankingPolicy.from_bytes(blob[:end])


def test_a_file_with_any_bit_flipped_is_refused() -> None:
    blob = small_policy()
    for index in range(len(blob)):
        damaged = bytearray(blob)
        damaged[index] ^= 1 << index % 8
        with pytest.raises(UnusablePolicyError):
            RankingPolicy.from_bytes(bytes(damaged))


@settings(max_examples=150, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 30), st.booleans())
def test_a_file_with_any_bytes_changed_is_refused(chance: random.Random, changes: int, repaired: bool) -> None:
    """Including a valid archive around a member with changed or random bytes."""
    if repaired:
        name = chance.choice(["card", "weights", "covariance", "noise_variance"])
        content = bytearray(small_policy_members()[f"{name}.npy"])
        for _ in range(changes):
            content[chance.randrange(128)] = chance.randrange(256)  # in the header
        blob = with_members(**{name: bytes(content)})
        if content == small_policy_members()[f"{name}.npy"]:
            return
    else:
        damaged = bytearray(small_policy())
        for _ in range(changes):
            damaged[chance.randrange(len(damaged))] ^= chance.randrange(1, 256)
        blob = bytes(damaged)
        if blob == small_policy():
            return
    with pytest.raises(UnusablePolicyError):
        RankingPolicy.from_bytes(blob)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([b"", b"PK\x03\x04", b"\x93NUMPY\x01\x00"]))
def test_arbitrary_bytes_are_refused(blob: bytes, start: bytes) -> None:
    with pytest.raises(UnusablePolicyError, match=DAMAGED):
        RankingPolicy.from_bytes(start + blob)
    with pytest.raises(UnusablePolicyError, match=DAMAGED):
        RankingPolicy.from_bytes(with_members(card=npy(np.frombuffer(start + blob, np.uint8), np.uint8)))
    with pytest.raises(UnusablePolicyError, match=DAMAGED):
        RankingPolicy.from_bytes(with_members(weights=start + blob))


HUGE = 10**400
CARDS: dict[str, dict[str, Any]] = {
    "an unknown field": {"extra": 1},
    "a bad name": {"name": "a b"},
    "a line break after the name": {"name": "a\n"},
    "a reserved name": {"name": "uniform"},
    "no column": {"candidate": []},
    "an additional column": {"context": ["mood=low", "stress/10", "more"]},
    "a column twice": {"context": ["mood=low", "mood=low"]},
    "a column with a control character": {"context": ["mood=low", "stress\n/10"]},
    "a lone surrogate": {"context": ["mood=low", "\ud800"]},
    "100,000 columns": {"context": [str(number) for number in range(100_000)]},
    "too many features": {"context": [f"{number}" for number in range(MAX_FEATURES)]},
    "decisions beyond any float": {"learned_from": HUGE},
    "no decisions": {"learned_from": 0},
    "half a decision": {"learned_from": 0.5},
    "a time beyond any float": {"trained_until": HUGE},
    "a time beyond any date": {"trained_until": 1e308},
    "a time that is not a number": {"trained_until": math.nan},
    "an infinite time": {"trained_until": math.inf},
    "an infinite gamma": {"gamma_scale": math.inf},
    "a gamma that overflows": {"gamma_scale": 1e308},
    "a tiny gamma": {"gamma_scale": 5e-324},
    "a floor of 0": {"floor": 0.0},
    "a tiny floor": {"floor": 5e-324},
    "a floor of 1": {"floor": 1.0},
    "text for a number": {"floor": "0.02"},
    "null for a list": {"context": None},
}


@pytest.mark.parametrize("fields", CARDS.values(), ids=CARDS)
def test_an_invalid_card_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(UnusablePolicyError, match=DAMAGED):
        RankingPolicy.from_bytes(with_card(**fields))


@pytest.mark.parametrize("name", ["weights", "covariance", "noise_variance"])
@pytest.mark.parametrize("value", [1e308, -1e308, 1e7, math.nan, math.inf, -math.inf])
def test_a_number_out_of_range_is_refused(name: str, value: float) -> None:
    with pytest.raises(UnusablePolicyError, match=DAMAGED):
        RankingPolicy.from_bytes(with_value(name, 0, value))


class Executed:
    """An object that fails the test when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return pytest.fail, ("it was unpickled",)


def zip_of(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    blob = io.BytesIO()
    with zipfile.ZipFile(blob, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return blob.getvalue()


def npy_with_header(shape: str, descr: str = "<f8") -> bytes:
    """Return an array file whose header claims another shape than that of its data."""
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + bytes(96)


FILES: dict[str, Callable[[], bytes]] = {
    "an empty file": bytes,
    "the beginning of an archive": lambda: b"PK",
    "a pickle": lambda: pickle.dumps(Executed()),
    "an empty archive": lambda: zip_of({}),
    "one array": lambda: npy([1.0]),
    "a missing member": lambda: zip_of(
        {name: content for name, content in small_policy_members().items() if name != "weights.npy"}
    ),
    "an additional member": lambda: npz_archive._write_members(small_policy_members() | {"more.npy": npy([1.0])}),
    "a member under another name": lambda: npz_archive._write_members(
        {name.replace("card", "../card"): content for name, content in small_policy_members().items()}
    ),
    "members in another order": lambda: npz_archive._write_members(dict(reversed(small_policy_members().items()))),
    "a compressed archive": lambda: zip_of(small_policy_members(), zipfile.ZIP_DEFLATED),
    "a bomb": lambda: zip_of(small_policy_members() | {"covariance.npy": npy(np.zeros(10**6))}, zipfile.ZIP_DEFLATED),
    "many members": lambda: zip_of({str(number): b"" for number in range(5_000)}),
    "bytes before the archive": lambda: b"#!/bin/sh\n" + small_policy(),
    "bytes after the archive": lambda: small_policy() + b"\n",
    "an object": lambda: with_members(weights=npy([Executed()] * D, object)),
    "integers": lambda: with_members(weights=npy(np.ones((1 + K, 1 + M)), np.int64)),
    "single precision": lambda: with_members(weights=npy(member_values("weights.npy"), np.float32)),
    "big-endian numbers": lambda: with_members(weights=npy(member_values("weights.npy"), ">f8")),
    "complex numbers": lambda: with_members(weights=npy(member_values("weights.npy"), np.complex128)),
    "columns before rows": lambda: with_members(weights=npy(np.asfortranarray(member_values("weights.npy")))),
    "weights of another shape": lambda: with_members(weights=npy(member_values("weights.npy").ravel())),
    "a covariance that is too short": lambda: with_members(covariance=npy(member_values("covariance.npy")[:-1])),
    "two noise variances": lambda: with_members(noise_variance=npy([0.1, 0.1])),
    "a negative noise variance": lambda: with_value("noise_variance", 0, -0.1),
    "a negative variance": lambda: with_value("covariance", 0, -0.1),
    "a covariance above its variances": lambda: with_value("covariance", 1, 10.0),
    "a header that claims a terabyte": lambda: with_members(weights=npy_with_header("(100000000, 1250)")),
    "a header that claims 100,000 columns": lambda: with_members(weights=npy_with_header("(100000, 100000)")),
    "a header of nested parentheses": lambda: with_members(weights=npy_with_header("(" * 60 + ")" * 60)),
    "a card of numbers": lambda: with_members(card=npy([0.5])),
    "a card in rows": lambda: with_members(card=npy(np.frombuffer(b"{}" * 4, np.uint8).reshape(2, 4), np.uint8)),
    "a card that is too long": lambda: with_members(card=npy(np.full(300_000, 32), np.uint8)),
    "a card nested too deeply": lambda: with_members(card=npy(np.full(100_000, ord("[")), np.uint8)),
}


@pytest.mark.parametrize("file", FILES.values(), ids=FILES)
def test_a_file_that_is_not_a_policy_is_refused(file: Callable[[], bytes]) -> None:
    with pytest.raises(UnusablePolicyError, match=DAMAGED):
        RankingPolicy.from_bytes(file())


def test_the_number_of_members_is_checked_before_the_directory_is_read() -> None:
    with pytest.raises(ValueError, match="there is no archive of a few members"):
        npz_archive.member_names(zip_of({str(number): b"" for number in range(5_000)}))
    # The directory of a ZIP64 archive is found by a locator, and not by the record that is checked.
    blob = small_policy()
    locator = b"PK\x06\x07" + struct.pack("<LQL", 0, len(blob) - 22, 1)
    with pytest.raises(ValueError, match="ZIP64"):
        npz_archive.member_names(blob[:-22] + locator + blob[-22:])


def test_a_policy_of_an_earlier_release_is_refused_with_a_specific_message() -> None:
    earlier = zip_of({"card.json": b"{}", "model.vw": b"\x00" * 100}, zipfile.ZIP_DEFLATED)
    with pytest.raises(UnusablePolicyError, match=r"^was written by an earlier release; train it again$"):
        RankingPolicy.from_bytes(earlier)


def test_a_file_above_the_maximum_size_is_refused() -> None:
    with pytest.raises(UnusablePolicyError, match=r"^is larger than a policy can be$"):
        RankingPolicy.from_bytes(bytes(MAX_BYTES + 1))


def test_the_largest_possible_policy_is_within_the_size_limits() -> None:
    """The size is computed; only the card is created."""
    d = MAX_FEATURES
    assert d * (d + 1) // 2 * 8 + d * 8 + artifacts.MAX_CARD_BYTES + 2_000 <= MAX_BYTES
    columns = tuple(f"{number}".rjust(60, "c") for number in range(MAX_FEATURES // 2 - 1))
    card = PolicyCard(name="a" * 64, context=columns, candidate=("x",), versions=(), learned_from=1, trained_until=0.0)
    assert len(card.model_dump_json(indent=1)) <= artifacts.MAX_CARD_BYTES
    with pytest.raises(ValueError, match="at most 4,096 features"):
        PolicyCard(**card.model_dump() | {"candidate": ("x", "y", "z")})


def test_too_little_memory_for_a_large_policy_is_not_a_crash() -> None:
    script = """
import json, resource
import numpy as np
from ml.registry.artifacts import MAX_FEATURES, RankingPolicy, UnusablePolicyError
from ml.registry.npz_archive import write_archive

d = MAX_FEATURES
card = {"name": "large", "context": [str(n) for n in range(d // 2 - 1)], "candidate": ["x"], "versions": []}
card |= {"learned_from": 1, "trained_until": 0.0}
arrays = {"weights.npy": np.ones((d // 2, 2)), "covariance.npy": np.ones(d * (d + 1) // 2)}
arrays |= {"noise_variance.npy": np.array(1.0)}
blob = write_archive({"card.npy": np.frombuffer(json.dumps(card).encode(), np.uint8), **arrays})
del arrays
print(RankingPolicy.from_bytes(blob).card.name)
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 200 * 2**20, resource.RLIM_INFINITY))
try:
    RankingPolicy.from_bytes(blob)
except UnusablePolicyError as error:
    print(error)
"""
    ended = run(sys.executable, "-c", script)
    assert (ended.stdout, ended.stderr) == ("large\nneeds more memory than there is\n", "")


# Files


def test_a_file_is_loaded_by_its_path(tmp_path: Path) -> None:
    file = tmp_path / "policy.npz"
    file.write_bytes(policy())
    assert load_policy(str(file), "").version == LEARNED.version


@pytest.mark.parametrize("name", ["missing.npz", "a\x00b"])
def test_a_missing_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnusablePolicyError, match=r"^is not a file that can be read$"):
        load_policy(f"{tmp_path}/{name}", "")


def test_a_directory_a_pipe_and_a_device_are_refused_without_blocking(tmp_path: Path) -> None:
    with pytest.raises(UnusablePolicyError, match=r"^is a directory, not a file$"):
        load_policy(str(tmp_path), "")
    os.mkfifo(tmp_path / "pipe")
    for path in (f"{tmp_path}/pipe", "/dev/zero"):
        with pytest.raises(UnusablePolicyError, match=r"^is not a regular file$"):
            load_policy(path, "")


def test_a_file_that_is_too_large_is_refused_without_being_read(tmp_path: Path) -> None:
    with (tmp_path / "large.npz").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(UnusablePolicyError, match=r"^is larger than a policy can be$"):
        load_policy(f"{tmp_path}/large.npz", "")


# Features


@pytest.mark.parametrize(
    ("changes", "column"),
    [
        ({"context": [*CONTEXT_ENCODER.columns[:-1], "sleep_hours/12"]}, "sleep_hours/12"),
        ({"context": [*CONTEXT_ENCODER.columns[1:], "shoe_size/60"]}, "shoe_size/60"),
        ({"versions": ["v1"]}, "prompt_version=v2-mentor"),
    ],
)
def test_a_policy_with_unknown_columns_is_refused_with_the_name_of_one(changes: dict[str, Any], column: str) -> None:
    with pytest.raises(UnusablePolicyError, match=f"was made for other features, such as {column}"):
        LearnedPolicy(RankingPolicy.from_bytes(with_card(policy(), **changes)))


def test_a_policy_with_fewer_columns_than_the_definitions_ranks() -> None:
    learned = LearnedPolicy(RankingPolicy.from_bytes(small_policy()))
    ranking = learned.rank(
        {"mood": "low", "stress": 3, "goal": "x"}, [candidate_row("v1", "Dim."), candidate_row("v2", None)]
    )
    assert ranking.scores.shape == (2,)
    assert len(CONTEXT_ENCODER.columns) > len(SIGNALS)


# Ranking


@settings(max_examples=40, deadline=None)
@given(
    some_signals,
    any_text,
    st.lists(st.tuples(any_text | st.none(), any_text | st.none()), min_size=1, max_size=8),
)
def test_any_text_in_any_field_gives_a_ranking_of_all_candidates(
    signals: dict[str, Any], goal: str, tips: list[tuple[str | None, str | None]]
) -> None:
    context = {**signals, "goal": goal, "mood": goal, "activity": goal, "local_time": signals.get("local_time")}
    ranking = LEARNED.rank(context, [candidate_row(version, tip) for version, tip in tips])
    assert ranking.probabilities.shape == ranking.scores.shape == (len(tips),)
    assert ((ranking.scores >= 0) & (ranking.scores <= 1)).all()
    assert (ranking.probabilities > 0).all()
    assert ranking.probabilities.sum() == pytest.approx(1, abs=1e-12)


@settings(deadline=None)
@given(npst.arrays(np.float64, K, elements=any_float), npst.arrays(np.float64, (3, M), elements=any_float))
@example(np.full(K, 1e308), np.full((3, M), -math.inf))
@example(np.full(K, 5e-324), np.full((3, M), math.nan))
def test_any_numbers_give_scores_from_0_to_1(context: Floats, candidates: Floats) -> None:
    ranking = RankingPolicy.from_bytes(small_policy()).rank(context, candidates)
    assert ((ranking.scores >= 0) & (ranking.scores <= 1)).all()


@pytest.mark.parametrize(("context", "tips"), [((K + 1,), (1, M)), ((K,), (1, M - 1)), ((K,), (M,))])
def test_arrays_with_other_columns_are_refused(context: tuple[int, ...], tips: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="columns must be"):
        RankingPolicy.from_bytes(small_policy()).rank(np.zeros(context), np.zeros(tips))


def test_scores_are_expected_rewards_and_the_best_candidate_has_the_highest_probability() -> None:
    tips = [candidate_row(version, tip) for version, tip in TIPS.items()]
    for mood, best in (("good", 0), ("low", 1)):
        ranking = LEARNED.rank({"mood": mood, "stress": 5}, tips)
        assert ranking.scores.argmax() == ranking.probabilities.argmax() == best
        assert ranking.scores[best] == pytest.approx(0.8, abs=0.1)
        assert np.delete(ranking.scores, best) == pytest.approx(0.2, abs=0.1)
        assert (ranking.probabilities >= 0.02 / 3).all()


@pytest.mark.parametrize("n", [1, 50])
def test_the_minimum_and_maximum_numbers_of_candidates_are_ranked(n: int) -> None:
    ranking = LEARNED.rank({}, [candidate_row("v1", f"Tip {number}") for number in range(n)])
    assert ranking.probabilities.shape == (n,)
    assert ranking.probabilities.sum() == pytest.approx(1, abs=1e-12)
    assert (ranking.probabilities > 0).all()


def test_concurrent_threads_get_the_same_rankings() -> None:
    contexts = [{"mood": mood, "stress": stress} for mood in ("low", "good") for stress in range(1, 11)] * 20
    tips = [candidate_row(version, text) for version, text in (("v1", "Dim."), ("v2-mentor", "Breathe."), ("v9", None))]
    alone = [LEARNED.rank(context, tips).scores.tolist() for context in contexts]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda context: LEARNED.rank(context, tips).scores.tolist(), contexts)) == alone


def test_equal_policies_have_equal_bytes() -> None:
    rng = np.random.default_rng(4)
    statistics = RegressionStatistics.from_rows("ab", "c", rng.random((9, 2)), rng.random((9, 1)), rng.random(9))
    card = PolicyCard(name="x", context=("a", "b"), candidate=("c",), versions=(), learned_from=9, trained_until=0.0)
    day = DayAdjustedStatistics.of_day(statistics)
    assert RankingPolicy(card, fit(day)).to_bytes() == RankingPolicy(card, fit(day)).to_bytes()

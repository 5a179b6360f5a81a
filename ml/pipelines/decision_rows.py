"""The rows of the table `tip_scores` as logged decisions, and the prompt versions that they use.

A block is a batch of rows in the order of time, with all rows of each instant: the candidates of a decision have the
same time. Only the columns that a decision needs are read, and JSON that many rows repeat, such as the options of a
draw, is parsed once.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ml.experiments.arrays import Bools, Integers
from ml.experiments.decisions import LoggedCandidate, LoggedDecision, PromptUse
from ml.experiments.policies import POLICIES
from ml.store.tip_dimensions import UNAVAILABLE, is_drawn_per_user

PROMPT_COLUMNS = (
    *("created_at", "shown", "fallback", "policy", "seen", "score_policy"),
    *("decision_id", "candidates", "prompt_version_asked", "prompt_version", "prompt_digest"),
)
"""The columns that `extreme_uses` needs."""
COLUMNS = (
    *PROMPT_COLUMNS,
    *("tip_id", "user_id", "signals", "segments", "options", "tip", "score_probability"),
    *("reward", "reward_in_window", "aggregates", "aggregates_at"),
)
"""The columns that `decisions_of` needs."""

MICROSECONDS = 1e6
_CACHED_TEXTS = 4_096
_DECODER = json.JSONDecoder()


def decisions_of(
    block: pa.RecordBatch, seen_only: bool, aggregates_of: Callable[[str], Mapping[str, float]]
) -> list[LoggedDecision]:
    """Return the decisions of a block, in the order of (`at`, `id`).

    `seen_only`: without tips that were not seen. `aggregates_of`: returns the aggregates for a tip id; it is called for
    a decision without logged ones.
    """
    is_ranked = _is_ranked(block)
    is_selected = _is_selected(block, seen_only)
    if not is_selected.any():
        return []
    candidates = _candidates_by_id(block.filter(pa.array(is_ranked))) if is_ranked.any() else {}
    shown = block.filter(pa.array(is_selected))
    at = times_of(block)[is_selected] / MICROSECONDS
    decisions = []
    for (
        tip_id, decision_id, user_id, time, ranked, policy, asked, version, digest, options, candidate_ids, signals,
        segments, logged_aggregates, aggregates_at, reward, reward_in_window
    ) in zip(
        *(objects_of(shown, name) for name in ("tip_id", "decision_id", "user_id")),
        at.tolist(),
        is_ranked[is_selected].tolist(),
        *(objects_of(shown, name) for name in ("policy", "prompt_version_asked", "prompt_version", "prompt_digest")),
        *(objects_of(shown, name) for name in ("options", "candidates", "signals", "segments", "aggregates")),
        shown.column("aggregates_at").is_valid().to_numpy(zero_copy_only=False).tolist(),
        *(_rewards(shown, name) for name in ("reward", "reward_in_window")),
        strict=True,
    ):  # fmt: skip
        if ranked:
            ids = _read_json(candidate_ids)
            logged = tuple([candidates[each] for each in ids if each in candidates])
            if len(logged) < len(ids):  # one of them is being purged
                continue
            chosen = ids.index(tip_id)
        else:
            logged, chosen = _versions(options, version if asked is None else asked, version, digest)
        known = _parsed(logged_aggregates) if logged_aggregates else {}
        decisions.append(
            LoggedDecision(
                decision_id if ranked else tip_id,
                user_id,
                time,
                _read_json(signals),
                known if known or aggregates_at else aggregates_of(tip_id),
                logged,
                chosen,
                reward,
                reward_in_window,
                ranked,
                not ranked and is_drawn_per_user(policy),
                _segments(segments),
            )
        )
    if at.size > 1 and (np.diff(at) == 0).any():
        decisions.sort(key=lambda decision: (decision.at, decision.id))
    return decisions


def _candidates_by_id(rows: pa.RecordBatch) -> dict[str, LoggedCandidate]:
    """Return the candidates that a ranking policy ranked, by the id of their tip."""
    return {
        tip_id: LoggedCandidate(version, probability, tip, digest)
        for tip_id, version, probability, tip, digest in zip(
            objects_of(rows, "tip_id"),
            objects_of(rows, "prompt_version"),
            rows.column("score_probability").to_numpy(zero_copy_only=False).tolist(),
            objects_of(rows, "tip"),
            objects_of(rows, "prompt_digest"),
            strict=True,
        )
    }


def _read_json(text: str) -> Any:
    """Return the value of a text that begins with it; `json.loads` takes a third more time."""
    return _DECODER.raw_decode(text)[0]


@lru_cache(_CACHED_TEXTS)
def _versions(options: str, drawn_version: str, version: str, digest: str) -> tuple[tuple[LoggedCandidate, ...], int]:
    """Return the prompt versions that one was drawn from, and the index of the drawn one."""
    # The stored digest is the one of the version that wrote the tip.
    digests = {version: digest} if version == drawn_version else {}
    probabilities: dict[str, float] = json.loads(options)
    candidates = tuple(
        LoggedCandidate(name, probability, prompt_digest=digests.get(name))
        for name, probability in probabilities.items()
    )
    return candidates, [*probabilities].index(drawn_version)


@lru_cache(_CACHED_TEXTS)
def _segments(text: str) -> tuple[str, ...]:
    return tuple(json.loads(text))


_parsed = lru_cache(_CACHED_TEXTS)(_read_json)


def extreme_uses(block: pa.RecordBatch, seen_only: bool) -> list[PromptUse] | None:
    """Return the first and the last use of each digest in a block, by the time of the last one.

    None if two digests of a version were last used at the same instant, so that ids tell which one is the newest.
    """
    is_ranked, is_selected = _is_ranked(block), _is_selected(block, seen_only)
    versions = block.column("prompt_version")
    drawn = pc.coalesce(block.column("prompt_version_asked"), versions)
    is_used = is_selected & ~is_ranked & pc.equal(versions, drawn).to_numpy(zero_copy_only=False)
    if (is_selected & is_ranked).any():
        is_used |= _belongs_to_ranking(block, is_ranked, is_selected)
    is_used &= pc.not_equal(block.column("prompt_digest"), "").fill_null(False).to_numpy(zero_copy_only=False)
    rows = block.filter(pa.array(is_used)).select(["prompt_version", "prompt_digest"])
    if rows.num_rows == 0:
        return []
    times = times_of(block)[is_used]
    version_codes, digest_codes = (pc.dictionary_encode(column) for column in rows.columns)
    names, digests = version_codes.dictionary.to_pylist(), digest_codes.dictionary.to_pylist()
    codes = version_codes.indices.to_numpy().astype(np.int64) * len(digests) + digest_codes.indices.to_numpy()
    found, first = np.unique(codes, return_index=True)
    last = codes.size - 1 - np.unique(codes[::-1], return_index=True)[1]
    uses = [
        (
            int(times[end]),
            names[code // len(digests)],
            digests[code % len(digests)],
            float(times[start] / MICROSECONDS),
        )
        for code, start, end in zip(found.tolist(), first.tolist(), last.tolist(), strict=True)
    ]
    if len({(version, end) for end, version, *_ in uses}) < len(uses):
        return None
    return [(version, digest, at) for _, version, digest, at in sorted(uses)]


def _belongs_to_ranking(block: pa.RecordBatch, is_ranked: Bools, is_selected: Bools) -> Bools:
    """Return which rows are candidates of a selected ranking that has all of its candidates."""
    decisions = pc.dictionary_encode(block.column("decision_id")).indices.fill_null(-1).to_numpy()
    sizes = pc.divide(pc.count_substring(block.column("candidates"), '"'), 2).fill_null(0).to_numpy()
    n_rows = np.bincount(decisions[is_ranked], minlength=decisions.max() + 1)
    is_whole = np.zeros(n_rows.size, np.bool_)
    rows = is_selected & is_ranked
    is_whole[decisions[rows]] = n_rows[decisions[rows]] == sizes[rows]
    belongs: Bools = is_ranked & is_whole[decisions]
    return belongs


def _is_ranked(block: pa.RecordBatch) -> Bools:
    policies = block.column("score_policy")
    ranked: Bools = pc.not_equal(policies, UNAVAILABLE).fill_null(False).to_numpy(zero_copy_only=False)
    return ranked


def _is_selected(block: pa.RecordBatch, seen_only: bool) -> Bools:
    """Return which rows are tips that were shown and that can be learned from."""
    unselectable = pa.array([name for name, policy in POLICIES.items() if not policy.selectable], pa.string())
    mask = pc.and_not(block.column("shown"), block.column("fallback"))
    mask = pc.and_not(mask, pc.is_in(block.column("policy"), value_set=unselectable))
    selected: Bools = (pc.and_(mask, block.column("seen")) if seen_only else mask).to_numpy(zero_copy_only=False)
    return selected


def times_of(batch: pa.RecordBatch) -> Integers:
    """Return the times of rows in microseconds since 1970, shape (n,)."""
    times: Integers = batch.column("created_at").cast(pa.int64()).to_numpy()
    return times


def objects_of(rows: pa.RecordBatch, name: str) -> list[Any]:
    """Return a column of texts; None where it is null."""
    objects: list[Any] = rows.column(name).to_numpy(zero_copy_only=False).tolist()
    return objects


def _rewards(rows: pa.RecordBatch, name: str) -> list[float]:
    rewards: list[float] = rows.column(name).fill_null(0.0).to_numpy().tolist()
    return rewards


def sampled_rows(block: pa.RecordBatch, share: float) -> pa.RecordBatch:
    """Return the rows of a share of the decisions of a block, by a hash of their ids: always the same ones."""
    ids = pc.coalesce(block["decision_id"], block["tip_id"]).to_pylist()
    letters = np.array(ids, f"S{_ID_LENGTH}").view(np.uint8).reshape(-1, _ID_LENGTH).astype(np.uint64)
    hashes = letters @ _MULTIPLIERS  # modulo 2 to the 64
    hashes = (hashes ^ (hashes >> np.uint64(32))) * _MULTIPLIERS[0]
    return block.filter(pa.array(hashes < share * 2.0**64))


_ID_LENGTH = 36
_MULTIPLIERS = np.array(
    [int.from_bytes(hashlib.sha256(bytes([place])).digest()[:8]) | 1 for place in range(_ID_LENGTH)], np.uint64
)
"""Odd numbers that look random, one for each letter of an id."""

"""Assignment of options (prompt versions or candidates) to users or decisions, each with its propensity."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import accumulate

_SUM_TOLERANCE = 1e-12


@dataclass(frozen=True, slots=True)
class Assignment:
    """The option that was drawn, its probability (propensity), and the distribution that it was drawn from."""

    option: str
    probability: float
    distribution: Mapping[str, float]


def draw_weighted(weights: Mapping[str, float], u: float) -> Assignment:
    """Draw an option with probability proportional to its weight.

    `weights`: none below zero, at least one above; an option of weight zero is never drawn. `u`: uniform in [0, 1), the
    only source of randomness: the same `u` gives the same assignment (inverse transform sampling).
    """
    distribution = normalised(weights)
    cumulative = accumulate(distribution.values())
    # Rounding can leave the last cumulative probability below `u`.
    last = [option for option, probability in distribution.items() if probability][-1]
    drawn = next((option for option, end in zip(weights, cumulative, strict=True) if u < end), last)
    return Assignment(drawn, distribution[drawn], distribution)


def draw_systematic(weights: Mapping[str, float], ids: Sequence[str], *, salt: str) -> list[Assignment]:
    """Draw an option for each of n different ids together: each option floor(n p) or ceil(n p) times, for a share p.

    Each id by itself draws an option with the probability p, whatever its position; one id draws as in
    `draw_weighted`. The hashes of the ids are the only source of randomness, so that the draw can be repeated from the
    distribution and the set of ids, in any order. `weights`: as of `draw_weighted`.

    The n points (u + i / n) mod 1 of systematic sampling, where u is the hash of all ids, each give an option; the ids
    take the points in the order of their own hashes, which is independent of u. Source: Madow, "On the theory of
    systematic sampling, II", Annals of Mathematical Statistics 1949.
    """
    u = hash_to_unit_interval(salt, *sorted(ids))
    by_hash = sorted(ids, key=lambda id_: (hash_to_unit_interval(salt, id_), id_))
    points = dict(zip(by_hash, systematic_points(u, len(ids)), strict=True))
    return [draw_weighted(weights, points[id_]) for id_ in ids]


def systematic_points(u: float, n: int) -> list[float]:
    """Return n points in [0, 1) at distances of 1 / n, the first of which is `u`, in [0, 1)."""
    return [(u + i / n) % 1 for i in range(n)]


def draw_sticky(weights: Mapping[str, float], user_id: str, *, salt: str) -> Assignment:
    """Assign each user the same option every time, and each option a share of all users proportional to its weight.

    When weights change, or options are added or removed, the smallest possible number of users is reassigned, and only
    to options whose share grew: an added option gets users from each of the existing options, whose other users keep
    theirs. The propensity is over the hash: that of a user chosen at random. `weights`: at least one, all above zero.
    With another `salt`, assignments are independent of the previous ones.

    Weighted rendezvous hashing: each option draws an exponential time at the rate of its weight, and the option with
    the shortest time wins. Sources: Thaler & Ravishankar, "Using name-based mappings to increase hit rates", IEEE/ACM
    Transactions on Networking 1998; Schindelhauer & Schomaker, "Weighted distributed hash tables", SPAA 2005 (the
    logarithmic method).
    """

    def time(option: str) -> float:
        return -math.log(1 - hash_to_unit_interval(salt, user_id, option)) / weights[option]

    drawn, distribution = min(weights, key=time), normalised(weights)
    return Assignment(drawn, distribution[drawn], distribution)


def normalised(weights: Mapping[str, float]) -> dict[str, float]:
    """Return the weights divided by their sum: the probability of each option.

    Weights whose sum is 1 up to rounding are returned unchanged, so that a draw from a logged distribution is repeated
    exactly: another division could move the limits between options by the last bit.
    """
    total = sum(weights.values())
    if abs(total - 1) <= _SUM_TOLERANCE:
        return dict(weights)
    return {option: weight / total for option, weight in weights.items()}


def hash_to_unit_interval(*parts: str) -> float:
    """Return a number in [0, 1), uniform over the parts, so that a draw can be repeated from logged values.

    The same in every process, on every machine and in every release: 53 bits of SHA-256. Each part is hashed with its
    length, so that ("ab", "c") and ("a", "bc") differ.
    """
    hashed = sha256()
    for part in parts:
        data = part.encode()
        hashed.update(len(data).to_bytes(8) + data)
    return (int.from_bytes(hashed.digest()[:8]) >> 11) * 2**-53

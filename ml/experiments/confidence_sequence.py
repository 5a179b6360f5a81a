"""Time-uniform boundaries: how far a sum of martingale differences can be from 0 at any time, and intervals from it.

Source: Howard, Ramdas, McAuliffe & Sekhon, "Time-uniform, nonparametric, nonasymptotic confidence sequences", Annals of
Statistics 2021 (HRMS below).
"""

import math
from collections.abc import Mapping

import numpy as np
from scipy import special

from ml.experiments.arrays import Floats
from ml.experiments.statistics import Interval, Sample

TUNED_AT = 400.0
"""The sum of squares at which boundaries are narrowest for their level; it must not depend on the data."""

_BISECTIONS = 50
_TILTS = np.geomspace(5e-4, 0.98, 24)
"""The parameters of the supermartingales that `adaptive_boundary` mixes; each is best for one sum of squares."""


def boundary(squares: Floats, *, alpha: float, scale: float = 1.0, tuned_at: float = TUNED_AT) -> Floats:
    """Return the gamma-exponential mixture boundary, which a sum exceeds at any time with probability at most `alpha`.

    For terms x_t, predictable predictions y_t with x_t - y_t >= -`scale`, and their conditional means e_t:

        P(for any t: sum of (x_i - e_i) up to t >= boundary(sum of (x_i - y_i)^2 up to t)) <= alpha

    It holds for every sample size and every distribution of the terms (HRMS, Theorem 4 and Proposition 9). For the
    other side, apply it to -x_t.

    Parameters
        `squares`: any shape, at least 0, the sum of (x_i - y_i)^2.
        `alpha`: in (0, 1), of one side.
        `scale`: above 0.
        `tuned_at`: above 0, the value of `squares` at which the boundary is narrowest.
    Returns
        The boundary for each element of `squares`, above 0.
    """
    v = np.asarray(squares, np.float64) / scale**2
    rho = _mixture_precision(tuned_at / scale**2, alpha)
    low, high = np.zeros_like(v), 2 * (np.sqrt(v + rho) + 1) * math.log(2 / alpha) + 2
    while (short := _log_supermartingale(high, v, rho) < -math.log(alpha)).any():
        high = np.where(short, 2 * high, high)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        short = _log_supermartingale(middle, v, rho) < -math.log(alpha)
        low, high = np.where(short, middle, low), np.where(short, high, middle)
    return high * scale


def adaptive_boundary(squares: Floats, scales: Floats, *, alpha: float) -> Floats:
    """Return a boundary as `boundary` does, for a scale that is not known in advance and for any sum of squares.

    The terms satisfy x_t - y_t >= -c_t, and each c_t is known before its term. Then for every l in [0, 1 / c) with
    c = max(c_1, ..., c_t),

        exp(l * sum of (x_i - e_i) - psi(l, c) * sum of (x_i - y_i)^2),  psi(l, c) = (-log(1 - c l) - c l) / c^2

    is at most a supermartingale that starts at 1, since psi grows with c (HRMS, Theorem 4 for one c). The boundary is
    where the mean of 24 of them, with l from 0.0005 to 0.98, reaches 1 / `alpha` (Ville's inequality); those with
    l >= 1 / c count as 0. It needs no tuning: for the scale 1 it is 14 to 20 % higher than `boundary` with the
    best `tuned_at` if the sum of squares is from 20 to 4e7, and 27 % at 5.

    Parameters
        `squares`: shape (n,), at least 0, the sum of (x_i - y_i)^2 up to each look.
        `scales`: shape (n,), at least 0, the largest c_i up to each look.
        `alpha`: in (0, 1), of one side.
    Returns
        Shape (n,), above 0; infinite for a scale above 2,000.
    """
    v, c = np.asarray(squares, np.float64)[:, None], np.maximum(scales, 1e-6)[:, None]
    is_valid = c * _TILTS < 1
    tilts = np.where(is_valid, _TILTS, 0.0)
    penalties = np.where(is_valid, (-np.log1p(-c * tilts) - c * tilts) / c**2 * v, np.inf)
    goal = math.log(_TILTS.size / alpha)
    high: Floats
    # At the sum `high` one supermartingale of the mixture is large enough on its own.
    with np.errstate(divide="ignore"):
        high = ((goal + penalties) / tilts).min(1)
    low = np.zeros_like(high)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        exponents = np.where(is_valid, tilts * np.where(np.isfinite(middle), middle, 0.0)[:, None] - penalties, -np.inf)
        short = special.logsumexp(exponents, axis=1) < goal
        low, high = np.where(short, middle, low), np.where(short, high, middle)
    return high


def _log_supermartingale(s: Floats, v: Floats, rho: float) -> Floats:
    """Return the logarithm of the mixture supermartingale at the sum `s` and the sum of squares `v` (HRMS, (57))."""
    a, b = v + rho, s + v + rho
    normalisation = rho * math.log(rho) - special.gammaln(rho) - np.log(special.gammainc(rho, rho))
    value: Floats = normalisation + special.gammaln(a) + np.log(special.gammainc(a, b)) - a * np.log(b) + s + v
    return value


def _mixture_precision(tuned_at: float, alpha: float) -> float:
    """Return the rho with which the boundary is nearly narrowest at `tuned_at` (HRMS, Proposition 3)."""
    return tuned_at / (-float(special.lambertw(-(alpha**2) / math.e, -1).real) - 1)


def previous_means(days: Mapping[int, Sample]) -> dict[int, float]:
    """Return for each day the mean reward of the nearest earlier day, all of which have rewards; 0 for the first."""
    centres, centre = {}, 0.0
    for day in sorted(days):
        centres[day] = centre
        centre = days[day].mean
    return centres


def rate(days: Mapping[int, Sample], *, alpha: float) -> Interval:
    """Return the confidence sequence of the mean reward of tips, by day, within [0, 1]; [0, 1] without tips.

    It is about the average, over these tips, of the mean reward of each given the tips before it: so it describes this
    traffic in this time, also when rewards drift. `alpha`, in (0, 1): the probability that any interval of the sequence
    misses it, at any sample size. Each reward is centred on the mean of the previous day, which is known before it.
    """
    rewarded = {day: sample for day, sample in days.items() if sample.n}
    total = sum(rewarded.values(), Sample())
    if not total.n:
        return Interval(0.0, 0.0, 1.0)
    centres = previous_means(rewarded)
    squares = sum(sample.centred(centres[day]).squares for day, sample in rewarded.items())
    half_width = float(boundary(np.array(squares), alpha=alpha / 2)) / total.n
    return Interval(total.mean, max(total.mean - half_width, 0.0), min(total.mean + half_width, 1.0))

"""Statistics over seeds and tasks: means, interquartile means, optimality gaps, and bootstrap intervals of each.

Scores come as strata, one array [..., n seeds] for each task. The bootstrap resamples the seeds of each task on their
own, never the episodes. Definitions: Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical
Precipice" (rliable). Intervals and trimmed means are scipy's, with a generator of a fixed seed.
"""

from typing import Callable, NamedTuple, Sequence

import numpy as np
import scipy.stats

CONFIDENCE = 0.95
RESAMPLES = 9999  # of the bootstrap; scipy's default
FEWEST_SEEDS = 5  # with fewer, seeds are shown one by one and rows are not ranked
TRIMMED = 0.25  # share of the runs that the interquartile mean cuts off at either end
BOLD_SHARE = 0.95  # of the best mean: what OGBench's and FQL's tables set in bold
GENERATOR_SEED = 0
NUMBERS_AT_ONCE = 2_000_000  # resampled scores held in memory; a profile of thirty tasks would need gigabytes

Statistic = Callable[..., np.ndarray]  # (*strata, axis) -> the strata's shape without that axis


class Interval(NamedTuple):
    low: float
    high: float


def mean(*strata: np.ndarray, axis: int = -1) -> np.ndarray:
    """Mean over tasks of the means over seeds: every task has the same weight."""
    return np.mean([np.mean(scores, axis=axis) for scores in strata], axis=0)


def interquartile_mean(*strata: np.ndarray, axis: int = -1) -> np.ndarray:
    """Mean of the middle half of all runs of all tasks; scipy cuts off int(n / 4) of n runs at either end."""
    return scipy.stats.trim_mean(np.concatenate(strata, axis=axis), TRIMMED, axis=axis)


def optimality_gap(*strata: np.ndarray, axis: int = -1) -> np.ndarray:
    """How far scores fall short of 1, the normalised best, on average over tasks; what is above 1 counts as 1."""
    return 1.0 - mean(*(np.minimum(scores, 1.0) for scores in strata), axis=axis)


def improvement(*strata: np.ndarray, axis: int = -1) -> np.ndarray:
    """Probability that a run of X scores more than one of Y, ties counted half, averaged over tasks.

    strata: X's tasks, then Y's in the same order. On one task it is the Mann-Whitney U statistic over its maximum.
    """
    half = len(strata) // 2
    tasks = []
    for left, right in zip(strata[:half], strata[half:], strict=True):
        left, right = np.expand_dims(np.moveaxis(left, axis, -1), -1), np.expand_dims(np.moveaxis(right, axis, -1), -2)
        tasks.append(np.mean((left > right) + 0.5 * (left == right), axis=(-2, -1)))
    return np.mean(tasks, axis=0)


def standard_deviation(scores: np.ndarray) -> float:
    """Sample standard deviation over seeds (divisor n - 1), the ± of published tables; NaN for a single seed."""
    return float(np.std(scores, ddof=1)) if len(scores) > 1 else float("nan")


def intervals(strata: Sequence[np.ndarray], statistic: Statistic) -> tuple[np.ndarray, np.ndarray]:
    """Stratified percentile bootstrap of a statistic of strata [..., n]: arrays (low, high) of shape [...].

    Leading axes (steps of a learning curve, thresholds of a profile) share the resampled seeds. NaN where a task has
    fewer than two seeds, whose spread nothing is known of. Seeds that are all equal within each task give the statistic
    itself.
    """
    strata = [np.asarray(scores, dtype=np.float64) for scores in strata]
    point = np.asarray(statistic(*strata, axis=-1))
    if min(scores.shape[-1] for scores in strata) < 2:
        return np.full_like(point, np.nan), np.full_like(point, np.nan)
    found = scipy.stats.bootstrap(
        strata,
        statistic,
        n_resamples=RESAMPLES,
        batch=max(1, NUMBERS_AT_ONCE // sum(scores.size for scores in strata)),
        confidence_level=CONFIDENCE,
        method="percentile",  # BCa, scipy's default, is not defined where all scores are equal
        vectorized=True,
        axis=-1,
        rng=np.random.default_rng(GENERATOR_SEED),
    ).confidence_interval
    constant = np.all([np.ptp(scores, axis=-1) == 0 for scores in strata], axis=0)
    return np.where(constant, point, found.low), np.where(constant, point, found.high)


def interval(strata: Sequence[np.ndarray], statistic: Statistic = mean) -> Interval:
    """`intervals` of strata [n]: one interval."""
    low, high = intervals(strata, statistic)
    return Interval(float(low), float(high))


def paired_interval(scores_a: np.ndarray, scores_b: np.ndarray) -> Interval:
    """Interval of the mean difference a - b [n], where entry i of both is of the same episode (or the same seed).

    Two options of one agent are compared on equal episodes by this, never by whether two intervals overlap. Raises
    ValueError where the two are not pairs.
    """
    a, b = np.asarray(scores_a, dtype=np.float64), np.asarray(scores_b, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"scores of shapes {a.shape} and {b.shape} are not pairs; give one score [n] of each episode")
    return interval([a - b])


def profile(strata: Sequence[np.ndarray], thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Performance profile: share of runs that score more than each threshold [t], averaged over tasks.

    Returns it with its pointwise bootstrap interval: three arrays [t].
    """
    above = [(np.asarray(scores)[None, :] > thresholds[:, None]).astype(np.float64) for scores in strata]
    return mean(*above), *intervals(above, mean)


def near_best(means: Sequence[float]) -> list[bool]:
    """Which means are within 95% of the largest. The rule needs scores above 0: otherwise the largest alone."""
    best = np.nanmax(means) if np.isfinite(means).any() else float("nan")
    threshold = BOLD_SHARE * best if best > 0 else best
    return [bool(value >= threshold) for value in means]

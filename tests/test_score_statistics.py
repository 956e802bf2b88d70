"""The statistics of a comparison against values worked out by hand, by enumeration and by a second implementation."""

import itertools

import numpy as np
import pytest

from harness.score_statistics import (
    CONFIDENCE,
    improvement,
    interquartile_mean,
    interval,
    intervals,
    mean,
    near_best,
    optimality_gap,
    paired_interval,
    profile,
    standard_deviation,
)

EDGE = 100 * (1 - CONFIDENCE) / 2


def test_values_worked_out_by_hand():
    first, second = np.array([0.0, 0.2, 0.4, 1.5]), np.array([0.6, 0.8])
    assert mean(first, second) == pytest.approx((2.1 / 4 + 0.7) / 2)
    # Six runs, sorted 0 .2 .4 .6 .8 1.5: int(6 / 4) = 1 is cut off at either end.
    assert interquartile_mean(first, second) == pytest.approx((0.2 + 0.4 + 0.6 + 0.8) / 4)
    assert optimality_gap(first, second) == pytest.approx(1 - ((0.0 + 0.2 + 0.4 + 1.0) / 4 + 0.7) / 2)
    assert standard_deviation(np.array([1.0, 2.0, 4.0])) == pytest.approx(np.sqrt(7 / 3))
    # 3 > 1, 3 > 2, 1 = 1, 1 < 2: 2.5 of 4 on the first task; 0 of 1 on the second.
    assert improvement(np.array([3.0, 1.0]), np.array([0.0]), np.array([1.0, 2.0]), np.array([5.0])) == 2.5 / 4 / 2


def test_interval_of_one_task_is_that_of_all_possible_resamples():
    scores = np.array([0.1, 0.25, 0.5, 0.9])
    every = [np.mean(resample) for resample in itertools.product(scores, repeat=4)]
    low, high = interval([scores])
    assert (low, high) == pytest.approx(tuple(np.percentile(every, (EDGE, 100 - EDGE))), abs=1e-12)
    assert scores.min() < low < mean(scores) < high < scores.max()


def plain_iqm(tasks):
    runs = sorted(score for task in tasks for score in task)
    cut = len(runs) // 4
    return sum(runs[cut : len(runs) - cut]) / (len(runs) - 2 * cut)


def plain_gap(tasks):
    return sum(sum(max(0.0, 1.0 - score) for score in task) / len(task) for task in tasks) / len(tasks)


def plain_improvement(tasks):
    half = len(tasks) // 2
    wins = [sum(x > y for x in left for y in right) for left, right in zip(tasks[:half], tasks[half:], strict=True)]
    return sum(w / len(left) / len(right) for w, left, right in zip(wins, tasks, tasks[half:], strict=False)) / half


PAIRS = [(mean, lambda tasks: sum(sum(task) / len(task) for task in tasks) / len(tasks))]
PAIRS += [(interquartile_mean, plain_iqm), (optimality_gap, plain_gap), (improvement, plain_improvement)]


@pytest.mark.parametrize(("statistic", "plain"), PAIRS, ids=[statistic.__name__ for statistic, _ in PAIRS])
def test_stratified_interval_equals_an_independent_bootstrap(statistic, plain):
    generator = np.random.default_rng(1)
    strata = [generator.normal(level, 0.2, size) for level, size in ((0.3, 8), (0.7, 6), (0.4, 8), (0.9, 5))]
    assert float(statistic(*strata)) == pytest.approx(plain(strata))
    low, high = interval(strata, statistic)
    draws = []
    for _ in range(4000):
        draws.append(plain([scores[generator.integers(0, len(scores), len(scores))].tolist() for scores in strata]))
    width = np.ptp(draws)
    assert (low, high) == pytest.approx(tuple(np.percentile(draws, (EDGE, 100 - EDGE))), abs=0.03 * width)


def test_the_same_scores_give_the_same_interval():
    strata = [np.random.default_rng(0).normal(size=8), np.random.default_rng(1).normal(size=8)]
    assert interval(strata, interquartile_mean) == interval(strata, interquartile_mean)


def test_equal_seeds_give_the_statistic_itself():
    strata = [np.full(5, 0.1), np.full(5, 0.3)]
    assert interval(strata) == (mean(*strata), mean(*strata))
    assert interval(strata, interquartile_mean) == (interquartile_mean(*strata),) * 2


def test_a_task_with_one_seed_has_no_interval():
    assert np.isnan(interval([np.array([0.5])])).all()
    assert np.isnan(interval([np.array([0.5, 0.6, 0.7]), np.array([0.5])])).all()
    assert np.isnan(standard_deviation(np.array([0.5])))


def test_leading_axes_share_the_resampled_seeds():
    curves = np.array([[0.0, 0.5, 1.0], [10.0, 10.5, 11.0]])  # two steps, three seeds
    low, high = intervals([curves], mean)
    assert low[1] - low[0] == pytest.approx(10.0) and high[1] - high[0] == pytest.approx(10.0)
    assert (low[0], high[0]) == interval([curves[0]])


def test_profile_is_the_share_of_runs_above_each_threshold():
    share, low, high = profile([np.array([0.2, 0.4]), np.array([0.4, 0.9])], np.array([0.0, 0.3, 0.4, 1.0]))
    assert share.tolist() == [1.0, 0.75, 0.25, 0.0]
    assert (low <= share).all() and (share <= high).all()
    assert (low[0], high[0], low[3], high[3]) == (1.0, 1.0, 0.0, 0.0)


def test_near_best_is_within_five_percent_of_the_largest_mean():
    assert near_best([100.0, 95.0, 94.9]) == [True, True, False]
    assert near_best([-10.0, -9.8]) == [False, True]  # 95% of a negative score says nothing
    assert near_best([float("nan"), 1.0]) == [False, True]
    assert near_best([float("nan")]) == [False]


def test_scores_that_are_no_pairs_are_refused():
    with pytest.raises(ValueError, match="are not pairs"):
        paired_interval(np.zeros(3), np.zeros(1))  # would broadcast

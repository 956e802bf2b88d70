"""Damaged data, config and checkpoint files: each is refused in one line or read soundly, and no process dies of it."""

import pytest

from tests.fuzz import count_outcomes, make_samples

ZIPS = ("ogbench npz", "exorl npz", "checkpoint")


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    return make_samples(tmp_path_factory.mktemp("fuzz"))


def assert_no_wrong_outcome(samples, number: int, seed: int) -> None:
    """`number` damaged files for each reader, and as many zip files that were packed anew with right checksums."""
    cases = [(name, False, seed + index) for name in samples for index in range(number)]
    cases += [(name, True, seed + index) for name in ZIPS for index in range(number)]
    counts = count_outcomes(samples, cases)
    print(*(f"{name}: {dict(count)}" for name, count in counts.items()), sep="\n")
    assert sum(count.total() for count in counts.values()) == len(cases)
    assert not {name: count["wrong"] for name, count in counts.items() if count["wrong"]}
    assert all(count["refused"] for count in counts.values())


def test_damaged_files_are_refused_or_read_soundly(samples):
    assert_no_wrong_outcome(samples, 30, seed=0)


@pytest.mark.slow
def test_thousands_of_damaged_files_are_refused_or_read_soundly(samples):
    assert_no_wrong_outcome(samples, 600, seed=1_000_000)

"""Ranks are real processes: they compute together, and none of their failures hangs the run."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from specs.harness.ranks import RankError, Ranks
from specs.harness.tests.conftest import Suite


@pytest.fixture(scope="module")
def group() -> Iterator[Ranks]:
    ranks = Ranks(time_limit=30.0)
    yield ranks
    ranks.close()


def process_and_sum(rank: int, offset: int) -> tuple[int, float]:
    import torch
    import torch.distributed as distributed

    number = torch.tensor(float(rank + offset))
    distributed.all_reduce(number)
    return os.getpid(), number.item()


def raise_on_rank_1(rank: int) -> None:
    if rank == 1:
        raise ValueError("rank 1 has had enough")
    process_and_sum(rank, 0)


def die_on_rank_1(rank: int) -> None:
    if rank == 1:
        os._exit(3)
    process_and_sum(rank, 0)


def sleep_on_rank_1(rank: int) -> None:
    if rank == 1:
        time.sleep(60)


def test_ranks_compute_together_and_stay(group: Ranks) -> None:
    first = group.run(process_and_sum, 10)
    second = group.run(process_and_sum, 20)
    assert [total for _, total in first] == [10 + 11, 10 + 11]
    assert [total for _, total in second] == [20 + 21, 20 + 21]
    assert [process for process, _ in first] == [process for process, _ in second]
    assert len({process for process, _ in first} | {os.getpid()}) == 3


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (raise_on_rank_1, "ValueError: rank 1 has had enough"),
        (die_on_rank_1, "rank 1 died with exit code 3"),
    ],
)
def test_the_error_of_a_rank_is_told_and_the_next_call_finds_a_new_group(
    group: Ranks, function: object, message: str
) -> None:
    with pytest.raises(RankError) as caught:
        group.run(function)  # type: ignore[arg-type]
    assert message in str(caught.value)
    assert [total for _, total in group.run(process_and_sum, 0)] == [1, 1]


def test_a_rank_that_hangs_is_given_up(group: Ranks) -> None:
    group.run(process_and_sum, 0)
    group.time_limit = 0.5
    try:
        with pytest.raises(RankError, match="rank 1 did not answer in time"):
            group.run(sleep_on_rank_1)
    finally:
        group.time_limit = 30.0


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ranks = Ranks()
    processes = [process for process, _ in ranks.run(process_and_sum, 0)]
    ranks.close()
    for process in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)
    assert list(tmp_path.iterdir()) == []


def test_specs_get_them_as_a_fixture(suite: Suite) -> None:
    suite.write(
        """
def rank_of(rank):
    return rank

@rule("RANK-01", "Ranks are numbered from 0.", kind="contract", source=SOURCE,
      subject=double, violated_by=[triple])
def test_numbered(double, ranks):
    assert ranks.run(rank_of) == [0, 1]
    assert double(1) == 2
"""
    )
    suite.run_apart().assert_outcomes(passed=2)


def test_a_users_own_subject_is_known_to_the_ranks(suite: Suite) -> None:
    (suite.path / "mine.py").write_text("def double(x):\n    return x + x\n")
    suite.write(
        """
def doubled(rank, double):
    return double(rank)

@rule("RANK-01", "Ranks double their numbers.", kind="contract", source=SOURCE,
      subject=double, violated_by=[triple])
def test_doubled(double, ranks):
    assert ranks.run(doubled, double) == [0, 2]
"""
    )
    suite.run_apart("--subject", "mine.py").assert_outcomes(passed=2)

"""Plans and paces: what fits into a time, and how far the schedule is."""

from __future__ import annotations

import time

import pytest

from edgecls.train.fit.pace import Pace, Plan, plan


def test_a_time_for_many_passes_is_divided_into_whole_ones() -> None:
    made = plan(1000, batch_seconds=1, validation_seconds=5, n_batches=45)
    assert made == Plan(20, 45)


def test_a_time_for_few_passes_is_divided_into_shorter_epochs_that_fill_it() -> None:
    made = plan(100, batch_seconds=1, validation_seconds=2, n_batches=40)
    assert made.epochs >= 8 - 6  # fewer than eight only where validating would take the time
    assert made.batches < 40
    assert made.epochs * (made.batches + 2) == pytest.approx(100, rel=0.1)


@pytest.mark.parametrize("seconds", [30.0, 95.0, 333.0, 1801.0])
def test_a_plan_fills_its_time(seconds: float) -> None:
    made = plan(seconds, batch_seconds=0.4, validation_seconds=3.0, n_batches=50)
    assert made.epochs * (made.batches * 0.4 + 3) == pytest.approx(seconds, rel=0.09)


def test_no_time_is_a_plan_of_nothing() -> None:
    assert plan(0.5, batch_seconds=1, validation_seconds=2, n_batches=10).is_empty
    assert plan(-5, batch_seconds=1, validation_seconds=2, n_batches=10).is_empty


def test_the_schedule_takes_even_steps() -> None:
    pace = Pace(4, 10)
    assert [pace.at(step) for step in (0, 5, 10, 25, 40)] == pytest.approx([0, 0.125, 0.25, 0.625, 1])


def test_the_schedule_of_a_replayed_run_is_the_recorded_one() -> None:
    pace = Pace(3, 10, [0.5, 0.6, 1.0])
    assert [pace.at(step) for step in (0, 10, 15, 20, 25, 30)] == pytest.approx([0, 0.5, 0.55, 0.6, 0.8, 1])


def test_slower_epochs_than_planned_leave_fewer_of_them_and_the_schedule_still_ends() -> None:
    pace = Pace(10, 5, deadline=time.perf_counter() + 40)
    pace.begin(0)
    assert pace.ends == pytest.approx([0.1])
    pace.adapt(1, epoch_seconds=10.0)  # four more fit, not nine
    assert pace.epochs == 5
    for epoch in range(1, 5):
        pace.begin(epoch)
    assert pace.ends == pytest.approx([0.1, 0.325, 0.55, 0.775, 1.0])
    assert pace.is_over(5)


def test_a_time_that_has_passed_ends_the_training() -> None:
    pace = Pace(10, 5, deadline=time.perf_counter() - 1)
    pace.adapt(3, epoch_seconds=10.0)
    assert pace.is_over(3)

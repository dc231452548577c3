"""Which validation is the best, and when a run stops waiting for a better one."""

import math

from pretrain.training.best import Best


def test_the_first_of_equal_validations_is_the_best() -> None:
    best = Best("val/accuracy")
    records = {2: 0.5, 4: math.nan, 6: 0.75, 8: 0.75, 10: 0.25}
    better = [best.note(step, {"val/accuracy": value}) for step, value in records.items()]
    assert better == [True, False, True, False, False]
    assert not best.note(11, {"train/loss": 1.0})  # no validation
    assert (best.step, best.value, best.num_since) == (6, 0.75, 2)
    assert not best.is_given_up  # without patience


def test_patience_counts_validations_in_a_row() -> None:
    best = Best("val/accuracy", patience=2)
    for step, value in enumerate([0.5, 0.25, 0.75, 0.75, 0.5], start=1):
        assert not best.is_given_up
        best.note(step, {"val/accuracy": value})
    assert best.is_given_up
    assert best.why_given_up() == (
        "no better val/accuracy in 2 validations (run.patience); the best is that of step 3"
    )


def test_a_best_step_that_was_not_written_is_none() -> None:
    best = Best("val/accuracy")
    best.note(1, {"val/accuracy": 0.5})
    before = best.state()
    best.note(2, {"val/accuracy": 0.75})
    best.not_committed(2)
    assert best.state() == before
    best.not_committed(3)  # a checkpoint that is no best one
    assert best.state() == before

import itertools
import math

from jaxtrain.training.progress import Progress, Timetable, note_evaluation


def evaluations(table):
    steps, step = [], 0
    while step < table.total_steps:
        step = table.next_evaluation(step)
        steps.append(step)
    return steps


def test_evaluations_fall_on_epoch_ends_and_the_last_step():
    table = Timetable(total_steps=60, steps_per_epoch=10.9375, batch_size=128)
    assert evaluations(table) == [11, 22, 33, 44, 55, 60]


def test_evaluations_are_where_they_were_whatever_step_one_resumes_at():
    table = Timetable(total_steps=997, steps_per_epoch=7.3, batch_size=8, eval_epochs=1.7, steps_per_call=4)
    steps = evaluations(table)
    for step in range(997):
        assert table.next_evaluation(step) == next(due for due in steps if due > step)


def test_evaluations_are_at_call_borders_and_calls_never_pass_the_end():
    table = Timetable(total_steps=103, steps_per_epoch=7.3, batch_size=8, steps_per_call=16)
    assert all(step % 16 == 0 for step in evaluations(table)[:-1])
    step = 0
    lengths = []
    while step < table.total_steps:
        lengths.append(table.call_length(step))
        step += lengths[-1]
    assert step == 103
    assert [length for length, _ in itertools.groupby(lengths)] == [16, 1]


def test_an_epoch_shorter_than_a_step_is_evaluated_once_a_step():
    table = Timetable(total_steps=5, steps_per_epoch=0.4, batch_size=100)
    assert evaluations(table) == [1, 2, 3, 4, 5]


def test_an_evaluation_that_is_not_finite_is_never_the_best():
    for monitor in ("val/accuracy", "val/loss"):
        progress = Progress()
        found = [
            note_evaluation({"val/accuracy": accuracy, "val/loss": loss}, progress, monitor)
            for accuracy, loss in ((1.0, math.nan), (0.2, 2.0), (1.0, math.inf), (0.9, math.nan), (0.3, 1.9))
        ]
        assert found == [True, True, False, False, True]

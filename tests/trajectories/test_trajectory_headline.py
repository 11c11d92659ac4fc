"""The first sentence of `trajectory`: where tails and norms went, and since when values are bad."""

import msgspec

from specdiag.records import Source
from specdiag.trajectories.alerts import Alert
from specdiag.trajectories.records import DroppedStep, LogEntry, StepResult, TrackedModule, Trajectory
from specdiag.trajectories.wording import headline, watch_headline

HERE = Source(kind="dir", location="r")
MODULES = (("a.q", "attention", "q"), ("a.up", "mlp", "up"))


def course(values, statuses=()):
    """A trajectory of two modules; values by step are (exponent of q, exponent of up, norm of both)."""
    rows = [
        LogEntry(step=step, module=module, metric=metric, value=value)
        for step, (q, up, norm) in values.items()
        for module, exponent in (("a.q", q), ("a.up", up))
        for metric, value in (("square_alpha", exponent), ("frobenius_norm", norm))
    ]
    bad = dict(statuses)
    return Trajectory(
        run="r",
        out="o",
        steps=tuple(
            StepResult(step=s, source=HERE, report="", n_matrices=2, statuses={"ok": 2, "nonfinite": bad.get(s, 0)})
            for s in values
        ),
        modules=tuple(TrackedModule(key=k, family=f, role=r, layer=0, rows=64, cols=64) for k, f, r in MODULES),
        rows=tuple(rows),
    )


def test_directions_and_sizes():
    found = headline(course({0: (2.12, 2.12, 10.0), 500: (1.9, 2.0, 15.0), 1000: (1.8, 2.121, 12.0)}))
    assert found == (
        "From step 0 to 1000 attention became heavier-tailed (square_alpha 2.12 to 1.80). "
        "The MLP kept its tails (square_alpha 2.12 to 2.12). Norms grew by 20.0 % in the median."
    )


def test_bad_values_are_dated():
    found = headline(course({0: (2.0, 2.0, 1.0), 10: (2.1, 2.0, 0.5), 20: (2.1, 2.0, 0.5)}, {10: 1, 20: 2}))
    assert "attention became lighter-tailed" in found
    assert "Norms fell by 50.0 % in the median." in found
    assert found.endswith(" NaN or infinite values since step 10, in 1 matrix there.")


def test_one_step_is_no_course():
    assert headline(course({7: (2.0, 2.0, 1.0)})) == "Only step 7 was read. A comparison over time needs two steps."


def test_a_matrix_that_lost_its_number_moves_no_median():
    found = course({0: (2.0, 2.0, 1.0), 10: (2.0, 2.0, 1.0)}, {10: 1})
    rows = tuple(
        msgspec.structs.replace(r, value=None) if (r.step, r.module) == (10, "a.q") else
        msgspec.structs.replace(r, value=3.0) if (r.module, r.metric) == ("a.up", "frobenius_norm") else r
        for r in found.rows
    )  # fmt: skip
    said = headline(msgspec.structs.replace(found, rows=rows))
    assert said == (
        "From step 0 to 10 the MLP kept its tails (square_alpha 2.00 to 2.00). Norms kept their size. "
        "NaN or infinite values since step 10, in 1 matrix there."
    )


def test_a_change_smaller_than_that_of_random_matrices_is_none():
    assert "attention kept its tails (square_alpha 2.00 to 1.98)" in headline(course({0: (2.0, 2, 1), 9: (1.98, 2, 1)}))


def test_a_run_that_was_looked_at_once():
    found = course({0: (2.0, 2.0, 1.0), 10: (2.1, 2.0, 0.5)})
    assert watch_headline(found, []) == "No alert in 2 checkpoints, steps 0 to 10."
    alerts = [
        Alert(step=10, kind="norm", module=m, value=0.5, message=f"the norm of {m} fell") for m in ("a.q", "a.up")
    ]
    assert watch_headline(found, alerts) == (
        "2 alerts in 2 checkpoints, steps 0 to 10; the first at step 10: the norm of a.q fell."
    )
    dropped = DroppedStep(step=20, location="r/20", reason="it is cut off")
    (one,) = found.steps[:1]
    assert watch_headline(msgspec.structs.replace(found, steps=(one,), dropped=(dropped,)), []) == (
        "No alert in 1 checkpoint, step 0. 1 could not be read."
    )
    assert watch_headline(msgspec.structs.replace(found, steps=(), dropped=(dropped,)), []) == (
        "No alert in 0 checkpoints. 1 could not be read."
    )

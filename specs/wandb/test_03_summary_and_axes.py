"""What is left of a metric: the summary, and the axis that its curve is drawn over.

At the end you know which value of a metric the table of runs shows, how to choose another one, and
what the x axis of a curve is.

Everything is read back from the run's own file, after the run is finished.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from specs.harness import rule, spec
from specs.harness.optional import optional

runs = optional("reference.wandb_runs")
wandb = optional("wandb")

AXES = "https://docs.wandb.ai/models/track/log/customize-logging-axes"
SUMMARY = "https://docs.wandb.ai/models/track/log/log-summary"


# The summary


def init_that_shows_the_first_value(**options: Any) -> Any:
    """Puts the first value of each metric into the summary."""
    run = wandb.init(**options)
    log = run.log
    first: dict[str, float] = {}

    def log_and_remember(values: dict[str, float]) -> None:
        log(values)
        first.update({name: value for name, value in values.items() if name not in first})
        run.summary.update(first)

    run.log = log_and_remember
    return run


def init_that_shows_the_smallest_value(**options: Any) -> Any:
    """Takes the smallest value of each metric for the one that counts."""
    run = wandb.init(**options)
    log = run.log
    smallest: dict[str, float] = {}

    def log_and_compare(values: dict[str, float]) -> None:
        log(values)
        smallest.update(
            {name: min(value, smallest.get(name, value)) for name, value in values.items()}
        )
        run.summary.update(smallest)

    run.log = log_and_compare
    return run


@rule(
    "WB-09",
    "The summary shows the last value of each metric, unless define_metric or the user says which.",
    kind="contract",
    source=SUMMARY,
    subject=wandb.init,
    violated_by=[init_that_shows_the_first_value, init_that_shows_the_smallest_value],
    consequence="Of the losses 3, 1, 2 the table of runs shows 2, though the best model had 1.",
)
def test_the_summary_is_the_last_value_of_each_metric(
    init: Callable[..., Any], tmp_path: Path
) -> None:
    """Also of one that the last row does not have."""
    run = init()
    for loss in (3.0, 1.0, 2.0):
        run.log({"loss": loss})
    run.log({"accuracy": 0.5})
    run.finish()

    [saved] = runs.finished_runs(tmp_path)
    assert saved.summary == {"_step": 3, "loss": 2.0, "accuracy": 0.5}


def init_that_ignores_definitions(**options: Any) -> Any:
    """Does nothing with define_metric."""
    run = wandb.init(**options)
    run.define_metric = lambda *_, **__: None
    return run


def init_that_takes_min_for_max(**options: Any) -> Any:
    """Mixes the two up."""
    run = wandb.init(**options)
    define = run.define_metric
    other = {"min": "max", "max": "min"}
    run.define_metric = lambda name, summary: define(name, summary=other.get(summary, summary))
    return run


#: summary= of define_metric, and what the summary then holds for the values 3, 1, 2.
SUMMARIES = {
    "min": {"min": 1.0},
    "max": {"max": 3.0},
    "mean": {"mean": (3.0 + 1.0 + 2.0) / 3},
    "first": {"first": 3.0},
    "last": {"last": 2.0},
}


@spec("WB-09", violated_by=[init_that_ignores_definitions, init_that_takes_min_for_max])
def test_define_metric_chooses_the_value_of_the_summary(
    init: Callable[..., Any], tmp_path: Path, observe: Callable[[str, Any], None]
) -> None:
    """The number is one level deeper then: summary["loss"]["min"]. "none" keeps the metric out."""
    run = init()
    for summary in (*SUMMARIES, "none"):
        run.define_metric(f"loss/{summary}", summary=summary)
    for loss in (3.0, 1.0, 2.0):
        run.log({f"loss/{summary}": loss for summary in (*SUMMARIES, "none")})
    run.finish()

    [saved] = runs.finished_runs(tmp_path)
    del saved.summary["_step"]
    observe("summary", saved.summary)
    assert saved.summary == {f"loss/{name}": value for name, value in SUMMARIES.items()}


def init_whose_summary_is_read_only(**options: Any) -> Any:
    """Lets nobody but log() write the summary."""
    run = wandb.init(**options)
    object.__setattr__(run.summary, "update", lambda *_, **__: None)
    return run


@spec("WB-09", violated_by=[init_whose_summary_is_read_only])
def test_an_own_value_stays_until_the_metric_is_logged_again(
    init: Callable[..., Any], tmp_path: Path
) -> None:
    """Write own values at the end, or under names that are not logged."""
    run = init()
    run.log({"loss": 3.0, "val": 3.0})
    run.summary.update({"loss": 1.0, "val": 1.0, "best epoch": 7})
    run.log({"loss": 2.0})
    run.finish()

    [saved] = runs.finished_runs(tmp_path)
    assert saved.summary == {"_step": 1, "loss": 2.0, "val": 1.0, "best epoch": 7}


# The x axis


def init_that_forgets_axes(**options: Any) -> Any:
    """Keeps no step metric."""
    run = wandb.init(**options)
    define = run.define_metric
    run.define_metric = lambda name, **_: define(name)
    return run


@rule(
    "WB-11",
    "The x axis of a metric is W&B's own step, unless define_metric names another metric for it.",
    kind="contract",
    source=AXES,
    subject=wandb.init,
    violated_by=[init_that_forgets_axes],
)
def test_another_metric_can_be_the_x_axis(init: Callable[..., Any], tmp_path: Path) -> None:
    """Rows still have W&B's step; the axis is one more metric, which is logged with them."""
    run = init()
    run.define_metric("epoch")
    run.define_metric("val/*", step_metric="epoch")
    for epoch in (10, 20):
        run.log({"val/loss": 1 / epoch, "epoch": epoch})
    run.finish()

    [saved] = runs.finished_runs(tmp_path)
    assert saved.x_axes == {"val/*": "epoch"}
    assert saved.history == [
        {"_step": 0, "val/loss": 1 / 10, "epoch": 10},
        {"_step": 1, "val/loss": 1 / 20, "epoch": 20},
    ]

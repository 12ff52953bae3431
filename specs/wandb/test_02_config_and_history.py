"""What a run is started with, and what it logs: config and history.

At the end you know what ends up in the config and when it can change, how W&B counts steps, what
happens to a step that is smaller than the last one, and what belongs to one row of the history.

Everything is read back from the run's own file, after the run is finished.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from specs.harness import raising, rule, spec
from specs.harness.optional import optional

errors = optional("wandb.errors")
runs = optional("reference.wandb_runs")
wandb = optional("wandb")

CONFIG = "https://docs.wandb.ai/models/track/config"
LOG = "https://docs.wandb.ai/models/ref/python/experiments/run"


# Config


def replace_method(config: Any, **method: Callable[..., Any]) -> None:
    """Give an object of W&B another method; `config.update = ...` would set the key "update"."""
    for name, function in method.items():
        object.__setattr__(config, name, function)


def init_that_keeps_only_its_own_config(**options: Any) -> Any:
    """Does not write down what is set after the start."""
    run = wandb.init(**options)
    replace_method(run.config, update=lambda *_, **__: None)
    return run


def init_with_flat_config(**options: Any) -> Any:
    """Writes the inner dict's keys with dots."""
    net = options["config"].pop("net")
    flat = {f"net.{name}": value for name, value in net.items()}
    return wandb.init(**{**options, "config": options["config"] | flat})


@rule(
    "WB-08",
    "The config holds what wandb.init was given and what was set later; a key that is set keeps"
    " its value unless allow_val_change=True.",
    kind="contract",
    source=CONFIG,
    subject=wandb.init,
    violated_by=[init_that_keeps_only_its_own_config, init_with_flat_config],
)
def test_config_is_what_was_given_and_what_was_set_later(
    init: Callable[..., Any], tmp_path: Path
) -> None:
    """Config is for what a run is started with: hyperparameters, names of data sets."""
    run = init(config={"lr": 0.1, "net": {"hidden": 32, "layers": [64, 10]}})
    run.config.batch_size = 64
    run.config["dropout"] = 0.5
    run.config.update({"seed": 0})
    run.finish()

    [saved] = runs.finished_runs(tmp_path)
    assert saved.config == {
        "lr": 0.1,
        "net": {"hidden": 32, "layers": [64, 10]},
        "batch_size": 64,
        "dropout": 0.5,
        "seed": 0,
    }


def init_with_config_that_changes(**options: Any) -> Any:
    """Lets every key be set again."""
    run = wandb.init(**options)
    update = run.config.update
    replace_method(run.config, update=lambda values, **_: update(values, allow_val_change=True))
    return run


@spec("WB-08", violated_by=[init_with_config_that_changes])
def test_a_key_of_the_config_does_not_change_by_accident(
    init: Callable[..., Any], tmp_path: Path
) -> None:
    """A run with two learning rates in turn would be shown with one of them."""
    run = init(config={"lr": 0.1})

    with pytest.raises(wandb.sdk.lib.config_util.ConfigError, match="Attempted to change value"):
        run.config.update({"lr": 0.2})
    with pytest.raises(wandb.sdk.lib.config_util.ConfigError):
        run.config.lr = 0.2
    run.config.update({"lr": 0.1})  # the same value is no change

    run.finish()
    assert [saved.config for saved in runs.finished_runs(tmp_path)] == [{"lr": 0.1}]


def init_that_never_lets_config_change(**options: Any) -> Any:
    """Ignores allow_val_change."""
    run = wandb.init(**options)
    update = run.config.update
    replace_method(run.config, update=lambda values, **_: update(values))
    return run


def init_that_merges_config(**options: Any) -> Any:
    """Keeps the keys of an inner dict that the new one lacks."""
    run = wandb.init(**options)
    update = run.config.update

    def merged(values: dict[str, Any], **permission: Any) -> None:
        for name, value in values.items():
            old = run.config.get(name)
            update({name: {**old, **value} if isinstance(old, dict) else value}, **permission)

    replace_method(run.config, update=merged)
    return run


@spec(
    "WB-08",
    violated_by=[
        raising(errors.Error, init_that_never_lets_config_change),
        init_that_merges_config,
    ],
)
def test_a_change_that_is_meant_replaces_the_whole_value(
    init: Callable[..., Any], tmp_path: Path
) -> None:
    """Also of a dict: what the new one lacks is gone."""
    run = init(config={"lr": 0.1, "net": {"hidden": 32, "layers": 2}})
    run.config.update({"lr": 0.2, "net": {"hidden": 64}}, allow_val_change=True)
    run.finish()

    [saved] = runs.finished_runs(tmp_path)
    assert saved.config == {"lr": 0.2, "net": {"hidden": 64}}


# Steps


def init_that_counts_from_one(**options: Any) -> Any:
    """Gives the first row the step 1."""
    run = wandb.init(**options)
    log = run.log
    rows = iter(range(1, 100))
    run.log = lambda values: log(values, step=next(rows))
    return run


def init_that_flattens_rows(**options: Any) -> Any:
    """Writes an inner dict's keys with dots."""
    run = wandb.init(**options)
    log = run.log
    run.log = lambda values: log(
        {
            f"{name}.{inner}" if inner else name: number
            for name, value in values.items()
            for inner, number in (value.items() if isinstance(value, dict) else [("", value)])
        }
    )
    return run


@rule(
    "WB-06",
    "Each log() is a row of the history and the next step; steps only increase.",
    kind="contract",
    source=LOG,
    subject=wandb.init,
    violated_by=[init_that_counts_from_one, init_that_flattens_rows],
    consequence="log({...}, step=3) after step 5 is dropped: no exception, no Python warning, only"
    " a line in the terminal and in the run's debug-internal.log.",
)
def test_each_log_is_a_row_with_the_next_step(init: Callable[..., Any], tmp_path: Path) -> None:
    """A number may be a Python or a tensor's one; an inner dict stays one."""
    run = init()
    run.log({"loss": 2.0, "accuracy": 0.5})
    run.log({"loss": torch.tensor(1.5)})
    run.log({"loss": 1.25, "val": {"loss": 1.75}})
    run.finish()

    [saved] = runs.finished_runs(tmp_path)
    assert saved.history == [
        {"_step": 0, "loss": 2.0, "accuracy": 0.5},
        {"_step": 1, "loss": 1.5},
        {"_step": 2, "loss": 1.25, "val": {"loss": 1.75}},
    ]


def init_that_ignores_step(**options: Any) -> Any:
    """Counts for itself, whatever step it is told."""
    run = wandb.init(**options)
    log = run.log
    run.log = lambda values, **_: log(values)
    return run


def init_that_refuses_a_smaller_step(**options: Any) -> Any:
    """Raises where W&B only drops."""
    run = wandb.init(**options)
    log = run.log

    def strict(values: dict[str, Any], step: int) -> None:
        if step < run.step:
            raise ValueError(f"step {step} is smaller than {run.step}")
        log(values, step=step)

    run.log = strict
    return run


@spec(
    "WB-06",
    violated_by=[init_that_ignores_step, raising(ValueError, init_that_refuses_a_smaller_step)],
)
def test_a_smaller_step_is_dropped_without_an_exception(
    init: Callable[..., Any], tmp_path: Path
) -> None:
    """Neither the row nor the summary knows of it, and the training goes on."""
    run = init()
    run.log({"loss": 2.0}, step=5)
    run.log({"loss": 9.0}, step=3)
    run.log({"loss": 1.0}, step=7)
    run.finish()

    [saved] = runs.finished_runs(tmp_path)
    assert saved.history == [{"_step": 5, "loss": 2.0}, {"_step": 7, "loss": 1.0}]
    assert saved.summary == {"_step": 7, "loss": 1.0}


def init_that_swallows_late_rows(**options: Any) -> Any:
    """Ignores what is logged to a finished run."""
    run = wandb.init(**options)
    run.log = lambda *_, **__: None
    return run


@spec("WB-06", violated_by=[init_that_swallows_late_rows])
def test_a_finished_run_takes_no_row(init: Callable[..., Any]) -> None:
    """Here an exception does come: by the run itself, and by wandb.log, which looks for a run."""
    run = init()
    run.finish()

    with pytest.raises(errors.UsageError, match="is finished"):
        run.log({"loss": 1.0})
    with pytest.raises(errors.Error, match=r"You must call wandb\.init\(\) before wandb\.log\(\)"):
        wandb.log({"loss": 1.0})


# Rows


def init_that_commits_always(**options: Any) -> Any:
    """Ends the row with each call."""
    run = wandb.init(**options)
    log = run.log
    run.log = lambda values, **_: log(values)
    return run


@rule(
    "WB-10",
    "commit=False, and a step that is given, leave the row open: what follows joins it.",
    kind="contract",
    source=LOG,
    subject=wandb.init,
    violated_by=[init_that_commits_always],
)
def test_commit_false_lets_the_next_log_join_the_row(
    init: Callable[..., Any], tmp_path: Path
) -> None:
    """A later value replaces an earlier one of the same name in the row."""
    run = init()
    run.log({"loss": 2.0, "lr": 0.1}, commit=False)
    run.log({"accuracy": 0.5, "lr": 0.2})
    run.log({"loss": 1.0})
    run.finish()

    [saved] = runs.finished_runs(tmp_path)
    assert saved.history == [
        {"_step": 0, "loss": 2.0, "lr": 0.2, "accuracy": 0.5},
        {"_step": 1, "loss": 1.0},
    ]


def init_that_closes_a_row_with_a_step(**options: Any) -> Any:
    """Ends the row with each call, also if it names the step."""
    run = wandb.init(**options)
    log = run.log
    run.log = lambda values, step=None: log(values, step=step, commit=True)
    return run


@spec("WB-10", violated_by=[init_that_closes_a_row_with_a_step])
def test_a_row_with_a_given_step_stays_open(init: Callable[..., Any], tmp_path: Path) -> None:
    """It ends with a larger step; a log without a step joins it, too, and ends it."""
    run = init()
    run.log({"loss": 2.0}, step=5)
    run.log({"accuracy": 0.5}, step=5)
    run.log({"loss": 1.0}, step=8)
    run.log({"accuracy": 0.75})
    run.log({"accuracy": 1.0})
    run.finish()

    [saved] = runs.finished_runs(tmp_path)
    assert saved.history == [
        {"_step": 5, "loss": 2.0, "accuracy": 0.5},
        {"_step": 8, "loss": 1.0, "accuracy": 0.75},
        {"_step": 9, "accuracy": 1.0},
    ]

"""A checkpoint is a program: what torch.load runs, what it refuses, and what you can allow.

At the end you know which values a checkpoint may hold so that everybody can load it, what a file
from a stranger can do to you, and how to let in one class of your own.
"""

from __future__ import annotations

import datetime
import io
import os
import random
from argparse import Namespace
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import OneCycleLR, StepLR
from torch.serialization import (
    add_safe_globals,
    get_unsafe_globals_in_checkpoint,
    safe_globals,
)

from specs.harness import raising, rule, spec
from specs.harness.observations import Observe

NOTES = "https://docs.pytorch.org/docs/stable/notes/serialization.html"
LOAD = "https://docs.pytorch.org/docs/stable/generated/torch.load.html"

Function = Callable[..., Any]


@dataclass
class Settings:
    """The hyperparameters of a run, as a program of one's own would keep them."""

    lr: float
    layers: list[int]


MODEL = nn.Linear(2, 1)
ADAM = Adam(MODEL.parameters(), lr=0.1)
ADAM_AFTER_A_STEP = Adam(MODEL.parameters(), lr=0.1)
MODEL(torch.ones(1, 2)).sum().backward()
ADAM_AFTER_A_STEP.step()
ONE_CYCLE = OneCycleLR(SGD(MODEL.parameters(), lr=0.1, momentum=0.9), max_lr=1.0, total_steps=5)

#: What loads by default: states, tensors, and the plain values of Python.
LOADS: dict[str, Any] = {
    "the state of a model": MODEL.state_dict(),
    "the state of an optimizer": ADAM_AFTER_A_STEP.state_dict(),
    "the state of a scheduler": StepLR(ADAM, step_size=3).state_dict(),
    "the state of OneCycleLR": ONE_CYCLE.state_dict(),
    "the state of torch's generator": torch.get_rng_state(),
    "the state of Python's generator": random.getstate(),
    "a parameter": nn.Parameter(torch.ones(2)),
    "a bfloat16 tensor": torch.ones(2, dtype=torch.bfloat16),
    "None, truth and numbers": [None, True, 3, 10**30, 0.5, float("-inf"), 2j],
    "text and bytes": ["epoch", b"\x00", bytearray(b"\x01")],
    "containers": {"a": (1, [2, {3}], {"b": {4: 5}})},
    "OrderedDict and Counter": [OrderedDict(b=1, a=2), Counter("loss")],
    "torch's own words": [torch.Size([2, 3]), torch.float16, torch.device("cpu"), torch.strided],
}

#: What does not, since making one of these means to call something that the file names.
REFUSED: dict[str, Any] = {
    "a model": MODEL,
    "an optimizer": ADAM,
    "a scheduler": StepLR(ADAM, step_size=3),
    "a generator": torch.Generator(),
    "a class": nn.Linear,
    "a function": torch.relu,
    "a number of NumPy, such as a metric of scikit-learn": np.float64(0.5),
    "an array of NumPy": np.ones(2),
    "the state of NumPy's generator": np.random.get_state(),
    "a path": Path("run") / "best.pt",
    "the arguments of a program": Namespace(lr=0.1),
    "a time": datetime.datetime(2025, 1, 1),
    "a decimal": Decimal("0.1"),
    "a defaultdict": defaultdict(int, loss=1),
    "a deque": deque([1]),
    "a frozenset": frozenset([1]),
    "a range": range(3),
    "a dataclass of one's own": Settings(lr=0.1, layers=[2, 1]),
}


def saved(value: Any) -> io.BytesIO:
    """A file, in memory, with that value in it."""
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return file


def unpickles_everything(file: Any, weights_only: bool = False, **options: Any) -> Any:
    """Loads as torch did before 2.6, when the file was trusted unless you said otherwise."""
    return torch.load(file, weights_only=weights_only, **options)


def loses_types(file: Any, **options: Any) -> Any:
    """Gives dictionaries and lists, as a text format would."""
    value = torch.load(file, **options)
    if isinstance(value, dict):
        return dict(value)
    return list(value) if isinstance(value, tuple | list) else value


def refuses_optimizers(file: Any, **options: Any) -> Any:
    """Loads weights and nothing else."""
    value = torch.load(file, **options)
    if not isinstance(value, torch.Tensor | OrderedDict):
        raise UnpicklingError("only weights")
    return value


@rule(
    "CKPT-01",
    "torch.load makes tensors, states of models, optimizers and schedulers, and Python's plain"
    " values; every other object is refused unless weights_only=False.",
    kind="contract",
    source=f"{NOTES}#torch-load-with-weights-only-true",
    subject=torch.load,
    violated_by=[loses_types, raising(UnpicklingError, refuses_optimizers)],
)
def test_states_and_plain_values_load_as_they_were(load: Function) -> None:
    """Compared as printed, with the type: a printed tensor names its values and its dtype."""
    for what, value in LOADS.items():
        loaded = load(saved(value))
        assert type(loaded) is type(value), what
        assert repr(loaded) == repr(value), what


@spec("CKPT-01", violated_by=[unpickles_everything])
def test_objects_do_not_load_unless_asked_for(load: Function) -> None:
    """Before you save: float(metric), str(path), vars(args), array.tolist() or torch.tensor."""
    for what, value in REFUSED.items():
        with pytest.raises(UnpicklingError):
            load(saved(value))
        with pytest.raises(UnpicklingError):
            load(saved({"epoch": 3, "something": value}))
        assert type(load(saved(value), weights_only=False)) is type(value), what


def refuses_without_advice(file: Any, **options: Any) -> Any:
    """Says only that it failed."""
    try:
        return torch.load(file, **options)
    except UnpicklingError:
        raise UnpicklingError("invalid load key") from None


@spec("CKPT-01", violated_by=[refuses_without_advice])
def test_the_refusal_says_what_failed_and_names_the_class(load: Function, observe: Observe) -> None:
    """People search for this message: it stands in many upgrade reports since torch 2.6."""
    with pytest.raises(UnpicklingError, match=r"Weights only load failed") as refusal:
        load(saved(Settings(lr=0.1, layers=[])))
    observe("refusal", refusal.value)
    assert f"{Settings.__module__}.Settings" in str(refusal.value)


# --- What a file can do ---------------------------------------------------------------------------


def leave_a_footprint(path: str) -> str:
    """Stands for what a stranger's file may do: anything that your account may do."""
    os.mkdir(path)
    return "weights"


class Trap:
    """Is saved as a call: to load it is to make that call."""

    def __init__(self, call: Function, path: Path) -> None:
        self.call, self.path = call, path

    def __reduce__(self) -> tuple[Function, tuple[str]]:
        return self.call, (str(self.path),)


@rule(
    "CKPT-02",
    "Never load a file that you do not trust with weights_only=False: it runs what the file says.",
    kind="practice",
    source=LOAD,
    subject=torch.load,
    violated_by=[unpickles_everything],
    consequence="a file of 2 kB with right weights, which load without a word, has also made a"
    " directory on the disk: one call of its choice, before torch.load returns",
)
def test_by_default_nothing_that_a_file_names_is_called(load: Function, tmp_path: Path) -> None:
    """The weights look right in both cases: only the directory tells that code has run."""
    footprint = tmp_path / "a stranger was here"
    file = saved({"weight": torch.ones(2), "trap": Trap(leave_a_footprint, footprint)})

    with pytest.raises(UnpicklingError):
        load(file)
    assert not footprint.exists()

    file.seek(0)
    weights = load(file, weights_only=False)["weight"]
    assert weights.tolist() == [1.0, 1.0]
    assert footprint.exists()


def obeys_the_environment(file: Any, **_: Any) -> Any:
    """Reads the variable also where the caller has said weights_only=True."""
    forced = os.environ.get("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD") == "1"
    return torch.load(file, weights_only=not forced)


@spec("CKPT-02", violated_by=[obeys_the_environment])
def test_a_variable_lifts_the_default_but_not_an_argument(
    load: Function, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found in many start scripts: with it, a program is safe only where it says True itself."""
    footprint = tmp_path / "a stranger was here"
    file = saved(Trap(leave_a_footprint, footprint))
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")

    with pytest.raises(UnpicklingError):
        load(file, weights_only=True)
    assert not footprint.exists()

    file.seek(0)
    with pytest.warns(UserWarning, match="Environment variable TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"):
        load(file)
    assert footprint.exists()


# --- Letting in a class of your own ---------------------------------------------------------------


@contextmanager
def for_good(allowed: list[Any]) -> Iterator[None]:
    """Leaves the classes on the list when the block ends."""
    add_safe_globals(allowed)
    yield


@contextmanager
def their_whole_module(allowed: list[Any]) -> Iterator[None]:
    """Also allows what else their module defines."""
    with safe_globals([*allowed, Trap, leave_a_footprint]):
        yield


@rule(
    "CKPT-03",
    "Let in a class that you know by safe_globals, after get_unsafe_globals_in_checkpoint has"
    " shown which ones the file asks for: what you allow, the file may call.",
    kind="contract",
    source=f"{NOTES}#torch-load-with-weights-only-true",
    subject=safe_globals,
    violated_by=[for_good, their_whole_module],
)
def test_only_what_is_allowed_loads_and_only_inside_the_block(
    safe_globals: Function, tmp_path: Path
) -> None:
    """add_safe_globals(...) allows it until the program ends; the block takes it back."""
    settings = Settings(lr=0.1, layers=[2, 1])
    trap = Trap(leave_a_footprint, tmp_path / "footprint")
    with safe_globals([Settings]):
        assert torch.load(saved({"settings": settings})) == {"settings": settings}
        with pytest.raises(UnpicklingError):
            torch.load(saved([settings, trap]))
    with pytest.raises(UnpicklingError):
        torch.load(saved(settings))


@contextmanager
def classes_only(allowed: list[Any]) -> Iterator[None]:
    """Allows no functions."""
    with safe_globals([one for one in allowed if isinstance(one, type)]):
        yield


@spec("CKPT-03", violated_by=[raising(UnpicklingError, classes_only)])
def test_what_is_allowed_runs(safe_globals: Function, tmp_path: Path) -> None:
    """The list is about names. It does not look at what the named function does."""
    footprint = tmp_path / "a stranger was here"
    with safe_globals([leave_a_footprint]):
        assert torch.load(saved(Trap(leave_a_footprint, footprint))) == "weights"
    assert footprint.exists()


@contextmanager
def anything(allowed: list[Any]) -> Iterator[None]:  # noqa: ARG001
    """Makes weights_only=False the default while the block lasts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
        yield


@spec("CKPT-03", violated_by=[anything])
@pytest.mark.filterwarnings("ignore:Environment variable TORCH_FORCE")
def test_the_functions_of_os_are_refused_even_if_allowed(
    safe_globals: Function, tmp_path: Path
) -> None:
    """A last line of defence: names from the modules os, sys, posix and nt never load."""
    footprint = tmp_path / "a stranger was here"
    with safe_globals([os.mkdir]), pytest.raises(UnpicklingError):
        torch.load(saved(Trap(os.mkdir, footprint)))
    assert not footprint.exists()


def looks_by_loading(file: Any) -> list[str]:
    """Finds out what is in the file by making it."""
    torch.load(file, weights_only=False)
    file.seek(0)
    return get_unsafe_globals_in_checkpoint(file)


def lists_every_name(file: Any) -> list[str]:
    """Does not know which names torch.load takes by default."""
    return [*get_unsafe_globals_in_checkpoint(file), "collections.OrderedDict"]


def the_first_name(file: Any) -> Iterable[str]:
    """Stops where torch.load would stop."""
    return get_unsafe_globals_in_checkpoint(file)[:1]


@spec(
    "CKPT-03",
    subject=get_unsafe_globals_in_checkpoint,
    violated_by=[looks_by_loading, lists_every_name, the_first_name],
)
def test_a_look_at_a_file_lists_what_it_asks_for_and_runs_nothing(
    get_unsafe_globals_in_checkpoint: Function, tmp_path: Path
) -> None:
    """Two names for two objects; what torch.load takes by default is not among them."""
    footprint = tmp_path / "a stranger was here"
    trap, settings = Trap(leave_a_footprint, footprint), Settings(lr=0.1, layers=[])
    file = saved([MODEL.state_dict(), trap, settings, settings])

    asked_for = get_unsafe_globals_in_checkpoint(file)

    here = Settings.__module__
    assert sorted(asked_for) == [f"{here}.Settings", f"{here}.leave_a_footprint"]
    assert not footprint.exists()
    assert get_unsafe_globals_in_checkpoint(saved(MODEL.state_dict())) == []

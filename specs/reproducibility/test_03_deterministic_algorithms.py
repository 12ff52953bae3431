"""Deterministic algorithms: the same bits for the same input, or an error.

At the end you know what torch.use_deterministic_algorithms switches, what it leaves to you, and
why memory that nobody has written suddenly holds NaN.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reference.seeds import be_deterministic
from specs.harness import raising, rule, spec
from specs.harness.observations import Observe

ALGORITHMS = (
    "https://docs.pytorch.org/docs/stable/generated/torch.use_deterministic_algorithms.html"
)
NOTES = "https://docs.pytorch.org/docs/stable/notes/randomness.html"

Function = Callable[..., Any]


def put_twice() -> Tensor:
    """Writes two numbers to one place: which of them stays is a matter of chance."""
    return torch.zeros(2).put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))


def max_unpool() -> Tensor:
    """The same with the places that a max-pooling had chosen."""
    return nn.functional.max_unpool1d(torch.ones(1, 1, 2), torch.tensor([[[0, 2]]]), [2])


def put_and_add() -> Tensor:
    """Adds both numbers: on the CPU the order is fixed."""
    place = torch.tensor([0, 0])
    return torch.zeros(2).put_(place, torch.tensor([1.0, 2.0]), accumulate=True)


#: Operations that have no deterministic algorithm, on any device.
WITHOUT = [put_twice, max_unpool]


def sets_cudnn_only(mode: bool, *, warn_only: bool = False) -> None:  # noqa: ARG001
    """Sets the flag that old recipes name: it is about convolutions on CUDA."""
    torch.backends.cudnn.deterministic = mode


def warns_and_goes_on(mode: bool, *, warn_only: bool = False) -> None:  # noqa: ARG001
    """Is content with a warning."""
    torch.use_deterministic_algorithms(mode, warn_only=True)


def cannot_be_switched_off(mode: bool, *, warn_only: bool = False) -> None:  # noqa: ARG001
    """Stays on for the rest of the program."""
    torch.use_deterministic_algorithms(True, warn_only=warn_only)


@rule(
    "SEED-03",
    "torch.use_deterministic_algorithms(True) makes an operation that has no deterministic"
    " algorithm raise, and fills new memory with NaN, so that reading it shows.",
    kind="contract",
    source=ALGORITHMS,
    subject=torch.use_deterministic_algorithms,
    violated_by=[sets_cudnn_only, warns_and_goes_on, raising(RuntimeError, cannot_be_switched_off)],
)
@pytest.mark.filterwarnings("ignore:.*does not have a deterministic implementation")
def test_an_operation_without_a_deterministic_algorithm_raises(
    use_deterministic_algorithms: Function,
) -> None:
    """It is the operation that raises, not the result: also where this one would be the same."""
    use_deterministic_algorithms(True)
    for operation in WITHOUT:
        with pytest.raises(RuntimeError):
            operation()
    assert put_and_add().tolist() == [1.0 + 2.0, 0.0]

    use_deterministic_algorithms(False)
    assert put_twice()[1] == 0.0
    assert max_unpool().tolist() == [[[1.0, 0.0, 1.0, 0.0]]]


def never_says_a_word(mode: bool, *, warn_only: bool = False) -> None:
    """Takes warn_only for a wish to hear nothing."""
    torch.use_deterministic_algorithms(mode and not warn_only)


def always_raises(mode: bool, *, warn_only: bool = False) -> None:  # noqa: ARG001
    """Ignores warn_only."""
    torch.use_deterministic_algorithms(mode)


@spec("SEED-03", violated_by=[never_says_a_word, raising(RuntimeError, always_raises)])
def test_with_warn_only_it_warns_and_goes_on(
    use_deterministic_algorithms: Function, observe: Observe
) -> None:
    """A way to find out, in one run, which operations of a model stand in the way."""
    use_deterministic_algorithms(True, warn_only=True)
    for operation in WITHOUT:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            operation()
        assert [warning.category for warning in caught] == [UserWarning]
        observe(operation.__name__, caught[0])


@spec("SEED-03", violated_by=[sets_cudnn_only, warns_and_goes_on])
@pytest.mark.filterwarnings("ignore:.*does not have a deterministic implementation")
def test_the_error_names_the_operation_and_the_switch(
    use_deterministic_algorithms: Function, observe: Observe
) -> None:
    """In a backward pass it is the gradient's operation, whose name may be new to you."""
    use_deterministic_algorithms(True)
    with pytest.raises(RuntimeError, match="does not have a deterministic implementation") as error:
        put_twice()
    observe("error", error.value)
    assert str(error.value).startswith("put_ ")
    assert "torch.use_deterministic_algorithms(True)" in str(error.value)


#: What new memory holds, as far as a dtype has NaN; otherwise its largest value.
FILLED_WITH = [
    (torch.float32, float("nan")),
    (torch.float64, float("nan")),
    (torch.bfloat16, float("nan")),
    (torch.int64, 2**63 - 1),
    (torch.int32, 2**31 - 1),
    (torch.uint8, 255),
    (torch.bool, True),
]


def without_the_fill(mode: bool, *, warn_only: bool = False) -> None:
    """Saves the time that the fill takes."""
    torch.use_deterministic_algorithms(mode, warn_only=warn_only)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


@spec("SEED-03", violated_by=[sets_cudnn_only, without_the_fill])
def test_new_memory_is_filled(use_deterministic_algorithms: Function) -> None:
    """Otherwise it holds what was there before: often zeros, so that a mistake looks right."""
    for dtype, filling in FILLED_WITH:
        # Memory that is given back is likely to be given out again: leave zeros in it.
        used_before = [torch.zeros(100, dtype=dtype) for _ in range(5)]
        del used_before

        use_deterministic_algorithms(True)
        like = torch.zeros(100, dtype=dtype)
        new = [torch.empty(100, dtype=dtype), torch.empty_like(like), like.new_empty(100)]
        use_deterministic_algorithms(False)

        expected = torch.full((100,), filling, dtype=dtype)
        for memory in new:
            assert torch.allclose(memory, expected, equal_nan=True), dtype


def without_cudnn() -> None:
    """Lets cuDNN try its algorithms, and take the one that happens to be fastest."""
    benchmark = torch.backends.cudnn.benchmark
    be_deterministic()
    torch.backends.cudnn.benchmark = benchmark


def without_cublas() -> None:
    """Leaves out the variable: on CUDA, a matrix product then raises."""
    before = dict(os.environ)
    be_deterministic()
    os.environ.clear()
    os.environ.update(before)


def overrules_the_environment() -> None:
    """Sets the variable also where somebody has set it with care."""
    be_deterministic()
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"


def seeds_too() -> None:
    """Moves the random streams of a program that only asked for determinism."""
    torch.manual_seed(0)
    be_deterministic()


def only_warns() -> None:
    """Lets operations pass that have no deterministic algorithm."""
    be_deterministic()
    torch.use_deterministic_algorithms(True, warn_only=True)


@rule(
    "SEED-08",
    "Determinism is three switches beside the seeds: torch's algorithms, cuDNN's benchmark, and the"
    " workspace of cuBLAS.",
    kind="contract",
    source=NOTES,
    subject=be_deterministic,
    violated_by=[without_cudnn, without_cublas, overrules_the_environment, seeds_too, only_warns],
)
def test_all_three_are_set_and_nothing_is_seeded(
    be_deterministic: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch.use_deterministic_algorithms(True) alone sets only the first."""
    torch.backends.cudnn.benchmark = True
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    torch.manual_seed(5)
    stream = torch.get_rng_state()

    torch.use_deterministic_algorithms(True)
    assert torch.backends.cudnn.benchmark
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    torch.use_deterministic_algorithms(False)

    be_deterministic()
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.backends.cudnn.benchmark
    assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") in (":4096:8", ":16:8")
    assert torch.equal(torch.get_rng_state(), stream)

    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")  # slower, and takes less memory
    be_deterministic()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"

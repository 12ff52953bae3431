"""Where the tensors of a file go, and how much of them is in it.

At the end you can load a file from a machine with a GPU on one without, you know why a file of one
number may have 400 kB, and what tied weights become.

Read before: lesson 1 (views share memory).
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from specs.harness import raising, rule, spec
from specs.harness.observations import Observe

LOAD = "https://docs.pytorch.org/docs/stable/generated/torch.load.html"
NOTES = "https://docs.pytorch.org/docs/stable/notes/serialization.html"

Function = Callable[..., Any]

#: A device that no machine has: its tensors cannot be put back where they were.
ELSEWHERE = "cuda:99"


def saved(value: Any) -> io.BytesIO:
    """A file, in memory, with that value in it."""
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return file


@pytest.fixture
def file_from_elsewhere(monkeypatch: pytest.MonkeyPatch) -> Callable[[], io.BytesIO]:
    """Files with the tensor [0, 1, 2], as a machine with a hundred GPUs would write them.

    A file says for each piece of memory where it was. torch.save asks `location_tag` for that.
    """
    monkeypatch.setattr("torch.serialization.location_tag", lambda _: ELSEWHERE)
    return lambda: saved({"weight": torch.arange(3.0), "epoch": 7})


def ignores_map_location(file: Any, map_location: Any = None) -> Any:  # noqa: ARG001
    """Puts every tensor back where it was."""
    return torch.load(file)


def knows_names_only(file: Any, map_location: Any = None) -> Any:
    """Takes the name of a device, and neither a mapping nor a function."""
    simple = map_location if isinstance(map_location, str | torch.device) else None
    return torch.load(file, map_location=simple)


def always_to_the_cpu(file: Any, map_location: Any = None) -> Any:  # noqa: ARG001
    """Is kind: loads everywhere, and hides where the file came from."""
    return torch.load(file, map_location="cpu")


#: Ways to say: to the CPU.
TO_THE_CPU: list[Any] = [
    "cpu",
    torch.device("cpu"),
    {ELSEWHERE: "cpu"},
    lambda storage, _: storage,  # what was read is on the CPU, and stays there
    lambda storage, location: storage if location == ELSEWHERE else None,
]


@rule(
    "CKPT-06",
    'Give map_location="cpu" to torch.load: without it every tensor goes back to the device that it'
    " was on, and a machine that lacks this device raises.",
    kind="contract",
    source=LOAD,
    subject=torch.load,
    violated_by=[
        raising(RuntimeError, ignores_map_location),
        raising(RuntimeError, knows_names_only),
    ],
)
def test_map_location_says_where_tensors_go(
    load: Function, file_from_elsewhere: Callable[[], io.BytesIO]
) -> None:
    """A name, a device, a mapping of devices, or a function of what was read and where it was."""
    for to_the_cpu in TO_THE_CPU:
        loaded = load(file_from_elsewhere(), map_location=to_the_cpu)
        assert loaded["weight"].device == torch.device("cpu")
        assert loaded["weight"].tolist() == [0.0, 1.0, 2.0]
        assert loaded["epoch"] == 7


@spec("CKPT-06", violated_by=[always_to_the_cpu])
def test_a_device_that_is_not_there_raises(
    load: Function, file_from_elsewhere: Callable[[], io.BytesIO]
) -> None:
    """Also where map_location speaks of another device, or where its function answers None."""
    for not_for_this_file in (None, {"cuda:0": "cpu"}, ELSEWHERE, lambda *_: None):
        with pytest.raises(RuntimeError):
            load(file_from_elsewhere(), map_location=not_for_this_file)


def follows_the_default_device(file: Any, map_location: Any = None) -> Any:
    """Takes torch.device(...) around it for a map_location."""
    return torch.load(file, map_location=map_location or torch.get_default_device())


@spec("CKPT-06", violated_by=[follows_the_default_device])
def test_the_default_device_has_no_say(
    load: Function, file_from_elsewhere: Callable[[], io.BytesIO]
) -> None:
    """Unlike torch.zeros, torch.load does not ask for it."""
    with torch.device("cpu"), pytest.raises(RuntimeError):
        load(file_from_elsewhere())


def reads_the_numbers(file: Any, map_location: Any = None) -> Any:
    """Is asked for shapes, and gives the values too."""
    return torch.load(file, map_location="cpu" if map_location == "meta" else map_location)


@spec("CKPT-06", violated_by=[reads_the_numbers])
def test_meta_gives_the_shapes_without_the_numbers(load: Function) -> None:
    """What is in a file of 100 GB? Asked this way, the answer fits any machine."""
    shapes = load(saved(nn.Linear(3, 2).state_dict()), map_location="meta")
    assert {name: (tensor.shape, tensor.device.type) for name, tensor in shapes.items()} == {
        "weight": ((2, 3), "meta"),
        "bias": ((2,), "meta"),
    }


def says_less(file: Any, **options: Any) -> Any:
    """Fails without saying how not to."""
    try:
        return torch.load(file, **options)
    except RuntimeError:
        raise RuntimeError("invalid device ordinal") from None


@pytest.mark.skipif(torch.cuda.is_available(), reason="this message is for machines without CUDA")
@spec("CKPT-06", violated_by=[says_less])
def test_the_error_says_how_to_load_it(
    load: Function, file_from_elsewhere: Callable[[], io.BytesIO], observe: Observe
) -> None:
    """It names the cure."""
    beginning = "Attempting to deserialize object on a CUDA device but torch.cuda.is_available"
    with pytest.raises(RuntimeError, match=beginning) as failure:
        load(file_from_elsewhere())
    observe("error", failure.value)
    assert "map_location=torch.device('cpu')" in str(failure.value)


# --- Storage --------------------------------------------------------------------------------------


def size_of(save: Function, value: Any) -> int:
    """How many bytes a file with that value has."""
    file = io.BytesIO()
    save(value, file)
    return len(file.getvalue())


def loaded_again(save: Function, value: Any) -> Any:
    """What comes back from a file with that value."""
    file = io.BytesIO()
    save(value, file)
    file.seek(0)
    return torch.load(file)


def each_for_itself(value: Any, file: Any) -> None:
    """Writes the numbers that each tensor shows, and no others."""
    if isinstance(value, Tensor):
        torch.save(value.clone(), file)
    else:
        torch.save({name: tensor.clone() for name, tensor in value.items()}, file)


@rule(
    "CKPT-07",
    "torch.save writes the whole memory that a tensor looks at, once for all tensors that look at"
    " it: save a clone of a small view.",
    kind="contract",
    source=f"{NOTES}#preserve-storage-sharing",
    consequence="one row of a table of 1,000 rows takes 400 kB in the file, its clone 2 kB",
    subject=torch.save,
    violated_by=[each_for_itself],
)
def test_a_view_is_as_large_as_what_it_looks_at(save: Function, observe: Observe) -> None:
    """Around the numbers, a file has less than 2 kB of its own."""
    table = torch.zeros(1000, 100)  # of 4 bytes each
    row = table[0]

    sizes = [size_of(save, row), size_of(save, row.clone())]

    observe("bytes of a row and of its clone", sizes)
    assert 400_000 < sizes[0] < 402_000
    assert 400 < sizes[1] < 2_400


@spec("CKPT-07", violated_by=[each_for_itself])
def test_what_shares_memory_shares_it_again(save: Function) -> None:
    """And takes its place only once: two views of one table add 400 kB, not 800."""
    table = torch.zeros(1000, 100)
    views = {"all": table, "first row": table[0]}

    again = loaded_again(save, views)
    again["all"][0, 0] = 5.0

    assert again["first row"][0] == 5.0
    assert size_of(save, views) < 402_000
    assert table[0, 0] == 0.0  # the file has its own copy


@spec("CKPT-07", violated_by=[each_for_itself])
def test_tied_weights_are_written_once(save: Function) -> None:
    """An output layer that uses the embedding's weights: two names, one tensor."""
    model = nn.Sequential(nn.Embedding(1000, 100), nn.Linear(100, 1000, bias=False))
    model[1].weight = model[0].weight

    state = loaded_again(save, model.state_dict())

    assert size_of(save, model.state_dict()) < 402_000
    assert list(state) == ["0.weight", "1.weight"]
    assert state["0.weight"].data_ptr() == state["1.weight"].data_ptr()

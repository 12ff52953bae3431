"""The streams of random numbers: fixed by a seed within a release, and by nothing beyond it.

At the end you know what a seed promises, and why a training gives other numbers after an upgrade.
Each stream is written into the ledger: compare two releases to see which of them moved.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Gamma
from torch.nn import init
from torch.utils.data import DataLoader, RandomSampler, WeightedRandomSampler, random_split

from specs.harness import rule, spec
from specs.harness.observations import Observe

NOTES = "https://docs.pytorch.org/docs/stable/notes/randomness.html"

Function = Callable[..., Any]
Streams = dict[str, Callable[[], Tensor]]

#: Below 16 numbers, some streams are drawn one by one, from 16 on in blocks; 1000 is no multiple.
SIZES = (1, 15, 16, 1000)

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

#: Streams of n numbers of a dtype.
NUMBERS: dict[str, Callable[[int, torch.dtype], Tensor]] = {
    "rand": lambda n, dtype: torch.rand(n, dtype=dtype),
    "randn": lambda n, dtype: torch.randn(n, dtype=dtype),
    "uniform_": lambda n, dtype: torch.empty(n, dtype=dtype).uniform_(-1, 2),
    "normal_": lambda n, dtype: torch.empty(n, dtype=dtype).normal_(1, 2),
    "bernoulli_": lambda n, dtype: torch.empty(n, dtype=dtype).bernoulli_(0.3),
    "bernoulli of a tensor": lambda n, dtype: torch.full((n,), 0.3, dtype=dtype).bernoulli(),
    "dropout": lambda n, dtype: nn.functional.dropout(torch.ones(n, dtype=dtype), 0.3),
    "exponential_": lambda n, dtype: torch.empty(n, dtype=dtype).exponential_(2.0),
}

#: Streams that are asked for in float32 or float64 only.
WIDE_NUMBERS: dict[str, Callable[[int, torch.dtype], Tensor]] = {
    "trunc_normal_": lambda n, dtype: init.trunc_normal_(torch.empty(n, dtype=dtype), std=0.02),
    "normal of tensors": lambda n, dtype: torch.normal(torch.zeros(n, dtype=dtype), 1.0),
    "log_normal_": lambda n, dtype: torch.empty(n, dtype=dtype).log_normal_(),
    "cauchy_": lambda n, dtype: torch.empty(n, dtype=dtype).cauchy_(),
    "geometric_": lambda n, dtype: torch.empty(n, dtype=dtype).geometric_(0.3),
    "poisson": lambda n, dtype: torch.poisson(torch.full((n,), 3.0, dtype=dtype)),
    "gamma": lambda n, dtype: Gamma(torch.full((n,), 3.0, dtype=dtype), 1.0).sample(),
    "gumbel_softmax": lambda n, dtype: nn.functional.gumbel_softmax(torch.zeros(n, dtype=dtype)),
    "multinomial": lambda n, dtype: torch.arange(1, n + 1).to(dtype).multinomial(n),
    "multinomial, repeated": lambda n, dtype: torch.ones(n, dtype=dtype).multinomial(n, True),
}

#: Streams of n indices.
INDICES: dict[str, Callable[[int], Any]] = {
    "randint": lambda n: torch.randint(10, (n,)),
    "randint above 32 bits": lambda n: torch.randint(2**40, (n,)),
    "random_": lambda n: torch.empty(n, dtype=torch.int64).random_(),
    "randperm": torch.randperm,
    "random_split": lambda n: random_split(range(n), [n // 3, n - n // 3])[1].indices,  # type: ignore[arg-type]
    "RandomSampler": lambda n: list(RandomSampler(range(n))),
    "RandomSampler, replacing": lambda n: list(RandomSampler(range(n), replacement=True)),
    "WeightedRandomSampler": lambda n: list(WeightedRandomSampler([1.0, 2.0, 3.0], n)),
    "DataLoader": lambda n: torch.cat(list(DataLoader(range(n), 10, shuffle=True))),  # type: ignore[arg-type]
}

#: Layers whose first weights are observed, and functions that initialise a matrix.
LAYERS: dict[str, Callable[[torch.dtype], nn.Module]] = {
    "Linear": lambda dtype: nn.Linear(3, 2, dtype=dtype),
    "Linear, wide": lambda dtype: nn.Linear(64, 32, dtype=dtype),
    "Bilinear": lambda dtype: nn.Bilinear(3, 4, 2, dtype=dtype),
    "Conv1d": lambda dtype: nn.Conv1d(3, 4, 3, dtype=dtype),
    "Conv2d": lambda dtype: nn.Conv2d(3, 4, 3, dtype=dtype),
    "ConvTranspose2d": lambda dtype: nn.ConvTranspose2d(3, 4, 3, dtype=dtype),
    "RNN": lambda dtype: nn.RNN(3, 4, dtype=dtype),
    "GRU": lambda dtype: nn.GRU(3, 4, dtype=dtype),
    "LSTM": lambda dtype: nn.LSTM(3, 4, num_layers=2, dtype=dtype),
    "Embedding": lambda dtype: nn.Embedding(5, 3, dtype=dtype),
    "Embedding, wide": lambda dtype: nn.Embedding(50, 20, dtype=dtype),
    "MultiheadAttention": lambda dtype: nn.MultiheadAttention(8, 2, dtype=dtype),
    "TransformerEncoderLayer": lambda dtype: nn.TransformerEncoderLayer(8, 2, 16, dtype=dtype),
}
INITIALISERS: list[Function] = [
    init.uniform_,
    init.normal_,
    init.xavier_uniform_,
    init.xavier_normal_,
    init.kaiming_uniform_,
    init.kaiming_normal_,
    init.orthogonal_,
    init.trunc_normal_,
]


def indices(draw: Callable[[int], Any], n: int) -> Tensor:
    """What a permutation, a sampler or a loader gives, as one tensor."""
    return torch.as_tensor(draw(n))


def first_weights(build: Callable[[torch.dtype], nn.Module], dtype: torch.dtype) -> Tensor:
    """All parameters of a new layer, one after the other."""
    return torch.cat([parameter.detach().flatten() for parameter in build(dtype).parameters()])


def filled(fill: Function, dtype: torch.dtype) -> Tensor:
    """A matrix by one of the functions of torch.nn.init."""
    matrix = torch.empty(16, 20, dtype=dtype)
    fill(matrix)
    return matrix


def number_streams() -> Streams:
    """Every stream of numbers in every dtype and size, by a name that says all three."""
    streams: Streams = {}
    for dtype in DTYPES:
        kinds = NUMBERS | WIDE_NUMBERS if dtype in (torch.float32, torch.float64) else NUMBERS
        for name, draw in kinds.items():
            for n in SIZES:
                streams[f"{name}, {dtype}, {n}"] = partial(draw, n, dtype)
    return streams


def index_streams() -> Streams:
    """Every stream of indices in every size."""
    return {
        f"{name}, {n}": partial(indices, draw, n)
        for name, draw in INDICES.items()
        for n in (15, 16, 1000)
    }


def weight_streams() -> Streams:
    """The first weights of every layer and by every initialiser, in two dtypes."""
    streams: Streams = {}
    for dtype in (torch.float32, torch.float64):
        for name, build in LAYERS.items():
            streams[f"{name}, {dtype}"] = partial(first_weights, build, dtype)
        for fill in INITIALISERS:
            streams[f"{fill.__name__}, {dtype}"] = partial(filled, fill, dtype)
    return streams


def leaves_the_stream_as_it_is(seed: int) -> None:
    """Ignores the call: the stream goes on."""


def adds_the_clock(seed: int) -> None:
    """Gives another stream each time."""
    torch.manual_seed(seed + time.perf_counter_ns())


def one_stream_for_all(seed: int) -> None:  # noqa: ARG001
    """Ignores its seed."""
    torch.manual_seed(0)


@rule(
    "SEED-02",
    "A seed fixes every stream of torch within one release, on one kind of device, for the same"
    " calls; between releases, platforms or devices nothing is promised.",
    kind="contract",
    source=NOTES,
    consequence="From torch 2.6 to 2.9, dropout, bernoulli_, exponential_, gumbel_softmax and"
    " multinomial gave other numbers for the same seed, from 2.9 to 2.13 trunc_normal_ and all"
    " float16 and bfloat16 numbers; the first weights of layers stayed.",
    subject=torch.manual_seed,
    violated_by=[leaves_the_stream_as_it_is, adds_the_clock, one_stream_for_all],
)
@pytest.mark.parametrize("streams", [number_streams, index_streams, weight_streams])
def test_a_seed_gives_the_same_numbers_again(
    manual_seed: Function, streams: Callable[[], Streams], observe: Observe
) -> None:
    """Bit for bit. The number drawn next is observed too: it tells how many were used up."""

    def seeded(seed: int, draw: Callable[[], Tensor]) -> tuple[Tensor, float]:
        manual_seed(seed)
        return draw(), torch.rand(()).item()

    assert seeded(0, lambda: torch.rand(()))[0] != seeded(1, lambda: torch.rand(()))[0]
    for name, draw in streams().items():
        first, next_number = seeded(0, draw)
        again, next_again = seeded(0, draw)
        assert torch.equal(first, again), name
        assert next_number == next_again, name
        observe(name, {"drawn": first, "next": next_number})


def one_by_one(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Draws every number by itself, in float64, and rounds: independent of size and dtype."""
    numbers = [torch.randn((), dtype=torch.float64) for _ in range(torch.Size(size).numel())]
    return torch.stack(numbers).reshape(size).to(dtype)


@spec("SEED-02", subject=torch.randn, violated_by=[one_by_one])
def test_the_same_calls_means_the_same_sizes_and_dtypes(randn: Function) -> None:
    """Two calls for 8 numbers are not one for 16, and float64 is not a finer float32."""

    def seeded(draw: Callable[[], Tensor]) -> Tensor:
        torch.manual_seed(0)
        return draw()

    sixteen = seeded(lambda: randn(16))
    eight_and_eight = seeded(lambda: torch.cat([randn(8), randn(8)]))
    in_float64 = seeded(lambda: randn(16, dtype=torch.float64))

    assert not torch.allclose(sixteen, eight_and_eight, atol=0.1)
    assert not torch.allclose(sixteen, in_float64.float(), atol=0.1)
    # The shape does not matter, only how many there are.
    assert torch.equal(seeded(lambda: randn(2, 8)).flatten(), sixteen)


def reads_a_byte(seed: int) -> None:
    """Has 256 streams in all."""
    torch.manual_seed(seed % 256)


def reads_all_bits(seed: int) -> None:
    """Mixes the upper 32 bits into the lower ones."""
    torch.manual_seed((seed ^ seed >> 32) % 2**32)


@rule(
    "SEED-09",
    "torch takes seeds of 64 bits, of which the generator of the CPU uses the lowest 32: keep seeds"
    " below 2**32.",
    kind="contract",
    source="https://github.com/pytorch/pytorch/issues/87509",
    consequence="a seed made as run * 2**32, or from the upper half of a hash, gives every run the"
    " same random numbers: 1 stream for 50 seeds",
    subject=torch.manual_seed,
    violated_by=[reads_a_byte, reads_all_bits],
)
def test_seeds_that_differ_above_32_bits_give_the_same_stream(manual_seed: Function) -> None:
    """Below 2**32 each seed has a stream of its own. A negative seed counts from 2**64 down."""

    def streams(seeds: list[int]) -> set[tuple[float, ...]]:
        found = set()
        for seed in seeds:
            manual_seed(seed)
            found.add(tuple(torch.rand(2).tolist()))
        return found

    assert len(streams(list(range(50)))) == 50
    assert len(streams([2**bit for bit in range(32)])) == 32
    assert len(streams([run * 2**32 for run in range(50)])) == 1
    assert streams([-1]) == streams([2**64 - 1]) == streams([2**32 - 1])

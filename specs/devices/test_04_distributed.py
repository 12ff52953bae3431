"""Data parallel training: one process for each device, one model in all of them.

At the end you know what DistributedDataParallel broadcasts and what it averages, and when that
equals a training in one process.

Each spec runs in two real processes that exchange tensors through gloo, the backend for CPUs. A
rank is one of these processes. `ranks.run(function, ...)` calls `function(rank, ...)` in both and
returns what they return, rank 0 first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DistributedSampler

from reference import data
from reference.distributed import DataParallel
from specs.harness import rule, spec
from specs.harness.agreement import agree
from specs.harness.ranks import Ranks

Wrapper = Callable[..., Any]
Shard = tuple[Tensor, Tensor]

SOURCE = (
    "https://docs.pytorch.org/docs/stable/generated/torch.nn.parallel.DistributedDataParallel.html"
)


class LeavesTheWeightsApart(DataParallel):
    """Does not broadcast: every rank starts from weights of its own."""

    def start_equal(self) -> None:
        pass


class LeavesTheBuffersApart(DataParallel):
    """Broadcasts the parameters, but not the buffers."""

    def start_equal(self) -> None:
        for parameter in self.module.parameters():
            distributed.broadcast(parameter.data, src=0)


class StartsFromTheLastRank(DataParallel):
    """Takes the weights of rank 1."""

    def start_equal(self) -> None:
        for value in self.module.state_dict().values():
            distributed.broadcast(value, src=1)


def start_of_training(
    rank: int, DistributedDataParallel: Wrapper
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A model's state before and after it is wrapped; each rank initialises its own."""
    torch.manual_seed(rank)
    batch_norm = nn.BatchNorm1d(3)
    batch_norm.running_mean = torch.full((3,), float(rank))
    model = nn.Sequential(nn.Linear(2, 3), batch_norm)
    own = {name: value.clone() for name, value in model.state_dict().items()}
    DistributedDataParallel(model)
    return own, model.state_dict()


@rule(
    "DDP-01",
    "DistributedDataParallel gives every rank the parameters and buffers of rank 0.",
    kind="contract",
    source=SOURCE,
    subject=[DistributedDataParallel, DataParallel],
    violated_by=[LeavesTheWeightsApart, LeavesTheBuffersApart, StartsFromTheLastRank],
)
def test_every_rank_starts_with_the_state_of_rank_0(
    DistributedDataParallel: Wrapper, ranks: Ranks
) -> None:
    """Ranks may initialise as they like, but replicas that start apart stay apart."""
    (own_0, start_0), (own_1, start_1) = ranks.run(start_of_training, DistributedDataParallel)

    assert not torch.equal(own_0["0.weight"], own_1["0.weight"])
    for name, value in own_0.items():
        assert torch.equal(start_0[name], value)
        assert torch.equal(start_1[name], value)


class SumsGradients(DataParallel):
    """Adds the ranks' gradients up and does not divide."""

    def combine(self, gradient: Tensor) -> None:
        distributed.all_reduce(gradient)


class KeepsGradientsLocal(DataParallel):
    """Averages nothing: each rank trains on its own."""

    def combine(self, gradient: Tensor) -> None:
        pass


class TakesTheGradientOfRank0(DataParallel):
    """Broadcasts a gradient in place of averaging."""

    def combine(self, gradient: Tensor) -> None:
        distributed.broadcast(gradient, src=0)


def gradient_of_a_shard(
    rank: int, DistributedDataParallel: Wrapper, shards: list[Shard], reduction: str
) -> tuple[Tensor, Tensor]:
    """The weight's gradient on each rank, after a backward pass over the rank's own samples."""
    model = DistributedDataParallel(nn.Linear(2, 1, bias=False).double())
    inputs, targets = shards[rank]
    mse_loss(model(inputs), targets, reduction=reduction).backward()
    return model.module.weight.grad, model.module.weight.detach()


def gradient_by_hand(weight: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
    """d/dw of the mean of (w x - y)^2 over the samples: the mean of 2 (w x - y) x."""
    return (2 * (inputs @ weight.T - targets) * inputs).mean(dim=0, keepdim=True)


INPUTS = torch.linspace(-1, 2, 16, dtype=torch.float64).reshape(8, 2) ** 2
TARGETS = torch.linspace(0, 1, 8, dtype=torch.float64)[:, None]
#: Samples 0 to 3 on rank 0, 4 to 7 on rank 1.
EQUAL_SHARDS = [(INPUTS[:4], TARGETS[:4]), (INPUTS[4:], TARGETS[4:])]
#: Five samples on rank 0, three on rank 1.
UNEQUAL_SHARDS = [(INPUTS[:5], TARGETS[:5]), (INPUTS[5:], TARGETS[5:])]


@rule(
    "DDP-02",
    "DistributedDataParallel averages the ranks' gradients: with equal shards and a mean loss, the"
    " gradient is that of the whole batch.",
    kind="contract",
    source=SOURCE,
    subject=[DistributedDataParallel, DataParallel],
    violated_by=[SumsGradients, KeepsGradientsLocal, TakesTheGradientOfRank0],
)
def test_equal_shards_give_the_gradient_of_the_whole_batch(
    DistributedDataParallel: Wrapper, ranks: Ranks
) -> None:
    """So R ranks with B samples each train like one process with a batch of R * B."""
    results = ranks.run(gradient_of_a_shard, DistributedDataParallel, EQUAL_SHARDS, "mean")

    for gradient, weight in results:
        whole_batch = gradient_by_hand(weight, INPUTS, TARGETS)
        assert agree(gradient, whole_batch)


@spec("DDP-02", violated_by=[SumsGradients, KeepsGradientsLocal])
def test_a_sum_loss_is_divided_by_the_number_of_ranks(
    DistributedDataParallel: Wrapper, ranks: Ranks
) -> None:
    """What is averaged are gradients, whatever the loss: a sum over 8 samples comes out halved."""
    results = ranks.run(gradient_of_a_shard, DistributedDataParallel, EQUAL_SHARDS, "sum")

    for gradient, weight in results:
        whole_batch = gradient_by_hand(weight, INPUTS, TARGETS) * 8
        assert agree(gradient, whole_batch / 2)


@spec("DDP-02", violated_by=[SumsGradients, KeepsGradientsLocal])
def test_unequal_shards_give_a_mean_of_means(
    DistributedDataParallel: Wrapper, ranks: Ranks
) -> None:
    """With 5 and 3 samples each rank still counts one half, so a sample on rank 1 weighs more."""
    results = ranks.run(gradient_of_a_shard, DistributedDataParallel, UNEQUAL_SHARDS, "mean")

    for gradient, weight in results:
        of_ranks = [gradient_by_hand(weight, *shard) for shard in UNEQUAL_SHARDS]
        whole_batch = gradient_by_hand(weight, INPUTS, TARGETS)
        assert agree(gradient, (of_ranks[0] + of_ranks[1]) / 2)
        assert not agree(gradient, whole_batch, ulps=2**40)


class UsesHalf(nn.Module):
    """Two layers, of which a forward pass uses one."""

    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Linear(1, 1)
        self.unused = nn.Linear(1, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.used(inputs)


class WaitsForNobody(DataParallel):
    """Does not notice a parameter without a gradient."""

    def __init__(self, module: nn.Module, find_unused_parameters: bool) -> None:  # noqa: ARG002
        super().__init__(module)


class NeverLooks(nn.parallel.DistributedDataParallel):
    """Ignores find_unused_parameters."""

    def __init__(self, module: nn.Module, find_unused_parameters: bool) -> None:  # noqa: ARG002
        super().__init__(module)


def errors_of_two_steps(
    rank: int,  # noqa: ARG001
    DistributedDataParallel: Wrapper,
    find_unused_parameters: bool,
) -> list[str | None]:
    """The type and the beginning of what each of two training steps raises, None where nothing."""
    model = DistributedDataParallel(UsesHalf(), find_unused_parameters=find_unused_parameters)
    errors: list[str | None] = []
    for _ in range(2):
        try:
            model(torch.ones(1, 1)).sum().backward()
        except RuntimeError as error:
            errors.append(str(error)[:60])
        else:
            errors.append(None)
    return errors


@rule(
    "DDP-03",
    "Every parameter takes part in every step, or find_unused_parameters=True says that not.",
    kind="contract",
    source=SOURCE,
    subject=DistributedDataParallel,
    violated_by=[WaitsForNobody],
)
def test_a_parameter_without_gradient_fails_the_next_step(
    DistributedDataParallel: Wrapper, ranks: Ranks
) -> None:
    """The averaging waits for a gradient that does not come; the second forward finds it out."""
    for first, second in ranks.run(errors_of_two_steps, DistributedDataParallel, False):
        assert first is None
        assert second is not None


@spec("DDP-03", violated_by=[NeverLooks])
def test_unused_parameters_can_be_looked_for(
    DistributedDataParallel: Wrapper, ranks: Ranks
) -> None:
    """The search costs a walk through the graph in each step."""
    for errors in ranks.run(errors_of_two_steps, DistributedDataParallel, True):
        assert errors == [None, None]


@spec("DDP-03", violated_by=[WaitsForNobody])
def test_the_error_speaks_of_an_unfinished_reduction(
    DistributedDataParallel: Wrapper, ranks: Ranks
) -> None:
    """What to look for in a log."""
    for _, second in ranks.run(errors_of_two_steps, DistributedDataParallel, False):
        assert (second or "").startswith(
            "Expected to have finished reduction in the prior iteration"
        )


class AlwaysSynchronises(DataParallel):
    """Takes no notice of no_sync."""

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        yield


class NeverSynchronisesAgain(DataParallel):
    """Stays silent after no_sync."""

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        self._synchronises = False
        yield


def accumulated_gradients(
    rank: int, DistributedDataParallel: Wrapper
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient after a step inside no_sync, and after one more outside it."""
    model = DistributedDataParallel(nn.Linear(2, 1, bias=False).double())
    inputs, targets = EQUAL_SHARDS[rank]
    with model.no_sync():
        mse_loss(model(inputs[:2]), targets[:2]).backward()
        inside = model.module.weight.grad.clone()
    mse_loss(model(inputs[2:]), targets[2:]).backward()
    return inside, model.module.weight.grad, model.module.weight.detach()


@rule(
    "DDP-04",
    "Inside no_sync gradients accumulate on their rank; the next backward outside averages them.",
    kind="contract",
    source=SOURCE,
    subject=[DistributedDataParallel, DataParallel],
    violated_by=[AlwaysSynchronises, NeverSynchronisesAgain],
)
def test_no_sync_postpones_the_averaging(DistributedDataParallel: Wrapper, ranks: Ranks) -> None:
    """Accumulation over k batches then costs one exchange between the ranks, not k."""
    results = ranks.run(accumulated_gradients, DistributedDataParallel)

    for (inside, after, weight), (inputs, targets) in zip(results, EQUAL_SHARDS, strict=True):
        own = gradient_by_hand(weight, inputs[:2], targets[:2])
        # Each of the four batches has 2 of the 8 samples; two are added up, two ranks averaged.
        assert agree(inside, own)
        assert agree(after, 2 * gradient_by_hand(weight, INPUTS, TARGETS))


def weights_trained_by_ranks(
    rank: int, DistributedDataParallel: Wrapper, inputs: Tensor, targets: Tensor
) -> Tensor:
    """The weight after 12 steps, with 16 of the 32 samples of each step on this rank."""
    sampler: DistributedSampler[int] = DistributedSampler(range(len(inputs)), shuffle=False)
    torch.manual_seed(rank)
    model = DistributedDataParallel(nn.Linear(64, 10).double())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    for batch in torch.tensor(list(sampler)).split(16):
        optimizer.zero_grad()
        cross_entropy(model(inputs[batch]), targets[batch]).backward()
        optimizer.step()
    return model.module.weight.detach()


@rule(
    "DDP-09",
    "Ranks that share a batch train the model that one process trains with the whole batch.",
    kind="contract",
    source=SOURCE,
    subject=[DistributedDataParallel, DataParallel],
    violated_by=[LeavesTheWeightsApart, SumsGradients, KeepsGradientsLocal],
)
def test_two_processes_train_the_model_of_one(
    DistributedDataParallel: Wrapper, ranks: Ranks
) -> None:
    """Up to rounding, and as long as no sample looks at the others in its batch."""
    split = data.digits()
    inputs, targets = split.train_inputs[:384].double(), split.train_targets[:384]

    weights = ranks.run(weights_trained_by_ranks, DistributedDataParallel, inputs, targets)

    torch.manual_seed(0)
    alone = nn.Linear(64, 10).double()
    optimizer = torch.optim.SGD(alone.parameters(), lr=0.5, momentum=0.9)
    for batch in torch.arange(384).split(32):
        optimizer.zero_grad()
        cross_entropy(alone(inputs[batch]), targets[batch]).backward()
        optimizer.step()
    # Sums over 32 samples are taken in another order, 12 times in a row.
    assert agree(weights[0], alone.weight.detach(), ulps=1024)
    assert torch.equal(weights[0], weights[1])

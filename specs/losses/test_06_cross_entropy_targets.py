"""What cross entropy takes as a target.

At the end you know the two kinds of targets, which mistakes are refused and which one is not, and
what ignore_index leaves out. Logits have shape (N, C) or (N, C, d1, ...): N samples, C classes. A
target is either a class index for each sample, shape (N) or (N, d1, ...), or a probability q for
each class, of the logits' shape.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from reference.losses import classification
from specs.harness import raising, rule, spec
from specs.harness.agreement import agree
from specs.harness.observations import Observe
from specs.losses.gradients import Loss, value_and_gradient

CROSS_ENTROPY_PAGE = "https://docs.pytorch.org/docs/stable/generated/torch.nn.CrossEntropyLoss.html"

CROSS_ENTROPIES = [F.cross_entropy, classification.cross_entropy]

# Probabilities of three classes for two samples, and the logits that give them.
P = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.6, 0.3]], dtype=torch.float64)
LOGITS = P.log()


# ---------------------------------------------------------------------------------------------
# Two kinds of targets


def classes_last(input: Tensor, target: Tensor, **options: Any) -> Tensor:
    """Looks for the classes in the last dimension instead of dimension 1."""
    return F.cross_entropy(input.movedim(-1, 1) if input.dim() > 2 else input, target, **options)


def log_of_the_mixture(input: Tensor, target: Tensor, **options: Any) -> Tensor:
    """Mixes the probabilities first, and takes the logarithm of the mixture."""
    if not target.is_floating_point():
        return F.cross_entropy(input, target, **options)
    return -(F.softmax(input, dim=1) * target).sum(dim=1).log()


def rounds_probabilities(input: Tensor, target: Tensor, **options: Any) -> Tensor:
    """Makes a class index of probabilities."""
    index = target.argmax(dim=1) if target.is_floating_point() else target
    return F.cross_entropy(input, index.long(), **options)


@rule(
    "LOSS-08",
    "A target of cross entropy is either class indices, int64 or uint8 of the logits' shape without"
    " dimension 1, or class probabilities, floating point of the logits' shape.",
    kind="contract",
    source=CROSS_ENTROPY_PAGE,
    subject=CROSS_ENTROPIES,
    violated_by=[raising(RuntimeError, classes_last), rounds_probabilities, log_of_the_mixture],
    consequence="(N, L, C) logits in place of (N, C, L) are refused, but not if L equals C: then"
    " the loss is normalised over the wrong dimension",
)
def test_indices_pick_a_class_and_probabilities_mix_them(cross_entropy: Loss) -> None:
    """The loss of a sample is -sum_c q_c log p_c; a class index is q = 1 for that class."""
    index = torch.tensor([0, 2])
    of_index = [-math.log(0.5), -math.log(0.3)]
    q = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    of_q = [-0.5 * math.log(0.5) - 0.5 * math.log(0.3), -math.log(0.3)]

    assert agree(cross_entropy(LOGITS, index, reduction="none"), of_index)
    assert agree(cross_entropy(LOGITS, index.to(torch.uint8), reduction="none"), of_index)
    assert agree(cross_entropy(LOGITS, q, reduction="none"), of_q)
    # One sample without N; and one sample with two places, the classes along dimension 1.
    assert agree(cross_entropy(LOGITS[0], index[0]), of_index[0])
    assert agree(cross_entropy(LOGITS.T[None], index[None], reduction="none"), [of_index])


def finds_the_classes(input: Tensor, target: Tensor, **options: Any) -> Tensor:
    """Guesses from the shape of the target that the classes lie last."""
    if input.dim() == 3 and input.shape[:2] == target.shape:
        input = input.movedim(-1, 1)
    return F.cross_entropy(input, target, **options)


@spec("LOSS-08", violated_by=[finds_the_classes])
def test_with_as_many_places_as_classes_a_wrong_layout_goes_unnoticed(cross_entropy: Loss) -> None:
    """Each of 3 places is sure of its right class, but the sums run over the places."""
    target = torch.tensor([[0, 0, 0]])
    places_then_classes = 100.0 * F.one_hot(target, 3).double()  # (1, 3, 3), all in column 0

    right = cross_entropy(places_then_classes.movedim(-1, 1), target)
    wrong = cross_entropy(places_then_classes, target)

    assert agree(right, 0.0)
    # Class scores are read down the columns: 100, 100, 100 in one, 0, 0, 0 in the others.
    assert agree(wrong, math.log(3))


def casts_to_int64(input: Tensor, target: Tensor, **options: Any) -> Tensor:
    """Makes indices of whatever it is given."""
    return F.cross_entropy(input, target.long(), **options)


def drops_a_column(input: Tensor, target: Tensor, **options: Any) -> Tensor:
    """Accepts indices of shape (N, 1)."""
    return F.cross_entropy(input, target.squeeze(-1) if target.dim() == 2 else target, **options)


def clips_to_the_classes(input: Tensor, target: Tensor, **options: Any) -> Tensor:
    """Takes the nearest class for an index outside of them."""
    return F.cross_entropy(input, target.clamp(0, input.shape[1] - 1), **options)


def one_hot_of_integers(input: Tensor, target: Tensor, **options: Any) -> Tensor:
    """Accepts integers as probabilities."""
    return F.cross_entropy(
        input, target.double() if target.shape == input.shape else target, **options
    )


# Targets that logits of 2 samples and 3 classes refuse.
REFUSED: list[tuple[str, Tensor, type[Exception]]] = [
    ("int32 indices", torch.tensor([0, 2], dtype=torch.int32), RuntimeError),
    ("float indices", torch.tensor([0.0, 2.0]), RuntimeError),
    ("indices in a column", torch.tensor([[0], [2]]), RuntimeError),
    ("integers as probabilities", torch.tensor([[1, 0, 0], [0, 0, 1]]), RuntimeError),
    ("class 3 of 0, 1, 2", torch.tensor([0, 3]), IndexError),
    ("class -1", torch.tensor([0, -1]), IndexError),
    ("one index too few", torch.tensor([0]), ValueError),
]


@spec(
    "LOSS-08",
    subject=F.cross_entropy,
    violated_by=[casts_to_int64, drops_a_column, clips_to_the_classes, one_hot_of_integers],
)
def test_other_targets_are_refused(cross_entropy: Loss, observe: Observe) -> None:
    for name, target, exception in REFUSED:
        with pytest.raises(exception) as caught:
            cross_entropy(LOGITS, target)
        observe(name, caught.value)


def refuses_without_a_word(input: Tensor, target: Tensor, **options: Any) -> Tensor:
    """Refuses the same targets, and does not say why."""
    try:
        return F.cross_entropy(input, target, **options)
    except (RuntimeError, IndexError) as error:
        raise type(error) from None


@spec("LOSS-08", subject=F.cross_entropy, violated_by=[refuses_without_a_word])
def test_the_refusals_say_what_was_expected(cross_entropy: Loss) -> None:
    with pytest.raises(RuntimeError, match=r"^0D or 1D target tensor expected"):
        cross_entropy(LOGITS, torch.tensor([[0], [2]]))
    with pytest.raises(RuntimeError, match=r"^Expected floating point type for target"):
        cross_entropy(LOGITS, torch.tensor([[1, 0, 0], [0, 0, 1]]))
    with pytest.raises(IndexError, match=r"^Target 3 is out of bounds"):
        cross_entropy(LOGITS, torch.tensor([0, 3]))
    with pytest.raises(RuntimeError, match=r"^Expected target size"):
        cross_entropy(torch.zeros(2, 4, 3), torch.zeros(2, 4, dtype=torch.int64))


# ---------------------------------------------------------------------------------------------
# Targets that do not count


def counts_ignored_targets(input: Tensor, target: Tensor, ignore_index: int = -100) -> Tensor:
    """Divides by the number of all targets."""
    losses = F.cross_entropy(input, target, ignore_index=ignore_index, reduction="none")
    return losses.mean()


def always_minus_100(input: Tensor, target: Tensor, ignore_index: int = -100) -> Tensor:
    """Knows one ignore_index only, and takes others for class 0."""
    del ignore_index
    return F.cross_entropy(input, target.where(target < 3, 0))


def nan_is_zero(input: Tensor, target: Tensor, **options: Any) -> Tensor:
    """Calls the mean of nothing 0."""
    return F.cross_entropy(input, target, **options).nan_to_num()


@rule(
    "LOSS-09",
    "A target equal to ignore_index (default -100) leaves the sum and the denominator of the mean;"
    " if no target counts, the mean is nan.",
    kind="contract",
    source=CROSS_ENTROPY_PAGE,
    subject=CROSS_ENTROPIES,
    violated_by=[counts_ignored_targets, always_minus_100],
)
def test_ignoring_a_target_is_leaving_out_its_sample(cross_entropy: Loss) -> None:
    """Padding must not train the model. The index to ignore may be any, a class among them."""
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 3, dtype=torch.float64, generator=random)
    counts = torch.tensor([True, False, True, True, False])

    for ignore_index in (-100, 255, 0):
        target = torch.tensor([1, 2, 2, 1, 1]).where(counts, ignore_index)
        options = {} if ignore_index == -100 else {"ignore_index": ignore_index}

        loss, gradient = value_and_gradient(cross_entropy, logits, target, **options)

        expected = value_and_gradient(cross_entropy, logits[counts], target[counts])
        assert agree(loss, expected[0])
        assert agree(gradient[counts], expected[1])
        assert gradient[~counts].tolist() == [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]


@spec("LOSS-09", violated_by=[nan_is_zero])
def test_a_batch_in_which_nothing_counts_has_mean_nan_and_sum_0(cross_entropy: Loss) -> None:
    """0/0. The gradient is 0, which does no harm; but the mean loss of the epoch is nan."""
    nothing = torch.tensor([-100, -100])

    loss, gradient = value_and_gradient(cross_entropy, LOGITS, nothing)

    assert math.isnan(loss)
    assert gradient.tolist() == [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    assert cross_entropy(LOGITS, nothing, reduction="sum") == 0
    assert cross_entropy(LOGITS, nothing, reduction="none").tolist() == [0, 0]


def ignores_class_1_of_probabilities(
    input: Tensor, target: Tensor, ignore_index: int = -100
) -> Tensor:
    """Accepts an ignore_index for probabilities."""
    del ignore_index
    return F.cross_entropy(input, target)


@spec("LOSS-09", subject=F.cross_entropy, violated_by=[ignores_class_1_of_probabilities])
def test_ignore_index_is_refused_for_probabilities(cross_entropy: Loss) -> None:
    """There is no index to compare it with."""
    with pytest.raises(RuntimeError):
        cross_entropy(LOGITS, P, ignore_index=1)

"""Softmax and cross entropy: from the scores of a model to probabilities, and to a loss.

At the end you can compute both by hand, on three classes, with their derivatives. You know why the
loss takes scores ("logits") and not probabilities, how labels are written, what a first loss should
be, and what a probability of 0.99 does not mean. Two classes are lesson 6 again.

The chapter on losses goes on from here: LOSS-04, 06 and 07 take the chain from softmax to the loss
apart, LOSS-08 to LOSS-11 are about targets and weights, LOSS-05 and 18 show what a softmax too many
costs in training, and LOSS-16 along which dimension it goes.

Read before: lesson 6, logistic regression.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference import data
from reference import softmax as by_hand
from reference.losses import classification
from reference.losses.classifiers import MultiClassClassifier
from specs.harness import rule
from specs.harness.agreement import agree
from specs.harness.observations import Observe

DOCS = "https://docs.pytorch.org/docs/stable/generated/"

Function = Callable[..., Any]

SOFTMAXES = [torch.softmax, classification.softmax]
CROSS_ENTROPIES = [F.cross_entropy, classification.cross_entropy]

#: exp makes 1, 2 and 5 of these scores, together 8: the probabilities are 1/8, 2/8 and 5/8.
SCORES = [math.log(1), math.log(2), math.log(5)]
P = [1 / 8, 2 / 8, 5 / 8]
#: Gradients of their cross entropy, if the true class is the first, the second, the third.
GRADIENTS = [[-7 / 8, 2 / 8, 5 / 8], [1 / 8, -6 / 8, 5 / 8], [1 / 8, 2 / 8, -3 / 8]]


def vector(scores: list[float]) -> Tensor:
    """Scores as float64, to differentiate by."""
    return torch.tensor(scores, dtype=torch.float64, requires_grad=True)


# ---------------------------------------------------------------------------------------------
# Softmax


def shares_of_scores(input: Tensor, dim: int) -> Tensor:
    """Divides the scores by their sum, without exp."""
    return input / input.sum(dim, keepdim=True)


def powers_of_two(input: Tensor, dim: int) -> Tensor:
    """Takes 2 for e."""
    return torch.softmax(input * math.log(2), dim)


@rule(
    "SOFT-01",
    "Softmax makes scores positive with exp and divides them by their sum: the odds between two"
    " classes are exp of the difference of their scores, whatever the other scores are.",
    kind="contract",
    source=f"{DOCS}torch.nn.Softmax.html",
    subject=SOFTMAXES,
    violated_by=[shares_of_scores, powers_of_two],
)
def test_three_scores_become_three_shares_of_one(softmax: Function) -> None:
    """Scores may be any numbers, and a model is free to give any. Probabilities are not."""
    three = softmax(vector(SCORES), dim=0)
    shifted = softmax(vector([x - 40 for x in SCORES]), dim=0)
    without_the_first = softmax(vector(SCORES[1:]), dim=0)

    assert agree(three, P)
    assert agree(three, by_hand.softmax(SCORES))
    assert agree(shifted, P, ulps=64)  # the scores were rounded at 40
    # The odds of the second to the third stay 2 to 5.
    assert agree(without_the_first, [2 / 7, 5 / 7])


def multiplies(logits: Tensor, temperature: float) -> Tensor:
    """Multiplies by the temperature: a hot model gets surer."""
    return by_hand.softmax_at_temperature(logits, 1 / temperature)


@rule(
    "SOFT-02",
    "Dividing the logits by a temperature makes probabilities less sure above 1 and surer below 1;"
    " the order of the classes, and so the accuracy, stays the same.",
    kind="contract",
    source="https://arxiv.org/abs/1503.02531",
    subject=by_hand.softmax_at_temperature,
    violated_by=[multiplies],
)
def test_temperature_leads_from_certainty_to_a_tie(softmax_at_temperature: Function) -> None:
    """Odds of 5 to 2 at temperature 1 are (5/2) ** (1/T) at temperature T."""
    logits = torch.tensor(SCORES, dtype=torch.float64)

    batch = torch.stack([logits, logits + 1000])  # rounded in the size of 1000
    assert agree(softmax_at_temperature(batch, 1.0), [P, P], scale=1000)
    # At one half the odds are squared: 1, 4 and 25, together 30. At 2: their square roots.
    assert agree(softmax_at_temperature(logits, 0.5), [1 / 30, 4 / 30, 25 / 30])
    roots = [1, math.sqrt(2), math.sqrt(5)]
    assert agree(softmax_at_temperature(logits, 2.0), [root / sum(roots) for root in roots])
    assert agree(softmax_at_temperature(logits, 0.001), [0, 0, 1])
    assert softmax_at_temperature(logits, 1e6).tolist() == pytest.approx([1 / 3] * 3, abs=1e-5)
    for temperature in (0.001, 0.5, 2.0, 1e6):
        assert softmax_at_temperature(logits, temperature).argmax() == logits.argmax()


def each_for_itself(input: Tensor, dim: int) -> Tensor:
    """Has the right value, and forgets that the sum moves with each score."""
    exponentials = input.exp()
    return exponentials / exponentials.sum(dim, keepdim=True).detach()


@rule(
    "SOFT-03",
    "The derivatives of softmax are diag(p) - p p': p_i * (1 - p_i) for a class by its own score,"
    " -p_i * p_j by the score of another.",
    kind="contract",
    source=f"{DOCS}torch.nn.Softmax.html",
    subject=SOFTMAXES,
    violated_by=[each_for_itself],
)
def test_what_one_class_wins_the_others_lose(softmax: Function) -> None:
    """The sum is always 1: each column of derivatives adds up to 0."""
    jacobian = torch.autograd.functional.jacobian(lambda x: softmax(x, dim=0), vector(SCORES))

    # In 64ths: 1/8 * 7/8 = 7/64 on the diagonal, -1/8 * 2/8 = -2/64 beside it, and so on.
    in_64ths = [[7, -2, -5], [-2, 12, -10], [-5, -10, 15]]
    assert agree(jacobian, [[n / 64 for n in row] for row in in_64ths])
    assert agree(jacobian, by_hand.softmax_jacobian(SCORES))
    assert agree(jacobian.sum(dim=0), [0, 0, 0])


# ---------------------------------------------------------------------------------------------
# Cross entropy


def squared_distance(input: Tensor, target: Tensor) -> Tensor:
    """Squares the distance of the probabilities from 0 and 1."""
    is_target = F.one_hot(target, input.shape[1])
    return (torch.softmax(input, dim=1) - is_target).pow(2).sum(dim=1).mean()


def probability_missed(input: Tensor, target: Tensor) -> Tensor:
    """Counts 1 - p of the true class: what a random answer gets wrong."""
    return 1 - torch.softmax(input, dim=1).gather(1, target.unsqueeze(1)).mean()


@rule(
    "SOFT-04",
    "Cross entropy is -log p of the true class; its gradient by the scores is p, less 1 for the"
    " true class.",
    kind="contract",
    source=f"{DOCS}torch.nn.CrossEntropyLoss.html",
    subject=CROSS_ENTROPIES,
    violated_by=[squared_distance, probability_missed],
    consequence="with the squared distance in its place, a mistake with 20 between the scores pulls"
    " at the true class with 0.00000001 instead of 1",
)
def test_the_loss_is_the_surprise_at_the_true_class(cross_entropy: Function) -> None:
    """The derivative of -log p by p is -1/p, and the row of SOFT-03 for the true class has a
    factor p: the two cancel. The more wrong a model is, the more it learns."""
    for target, p in enumerate(P):
        scores = vector(SCORES)

        loss = cross_entropy(scores.unsqueeze(0), torch.tensor([target]))
        (gradient,) = torch.autograd.grad(loss, scores)

        assert agree(loss, -math.log(p))
        assert agree(loss, by_hand.cross_entropy(SCORES, target))
        assert agree(gradient, GRADIENTS[target])
        assert agree(gradient, by_hand.cross_entropy_gradient(SCORES, target))
    # exp(-200) is 0 in float32, and the loss is 200 all the same; see SOFT-07.
    assert agree(cross_entropy(torch.tensor([[200.0, 0.0]]), torch.tensor([1])), 200.0)


def mean_of_perplexities(logits: Tensor, targets: Tensor) -> float:
    """Averages after exp: one surprise outweighs everything else."""
    pairs = zip(logits, targets, strict=True)
    each = [by_hand.perplexity(row.unsqueeze(0), y.unsqueeze(0)) for row, y in pairs]
    return sum(each) / len(each)


@rule(
    "SOFT-05",
    "exp of the mean cross entropy is the perplexity: a model with perplexity k is as unsure as one"
    " that chooses among k equally likely classes.",
    kind="contract",
    source="https://en.wikipedia.org/wiki/Perplexity",
    subject=by_hand.perplexity,
    violated_by=[mean_of_perplexities],
    consequence="an untrained classifier of ten digits starts at 10, which is a loss of log(10) ="
    " 2.303 (LOSS-12); after 50 steps it is at 1.2",
)
def test_perplexity_counts_the_classes_a_model_wavers_between(perplexity: Function) -> None:
    """A loss in nats says little to a reader; a number of classes does."""
    equal_scores = torch.zeros(3, 10)
    p = torch.tensor([[1 / 2, 1 / 4, 1 / 4], [1 / 2, 1 / 4, 1 / 4], [1 / 8, 3 / 8, 1 / 2]])

    assert perplexity(equal_scores, torch.tensor([0, 4, 9])) == pytest.approx(10)
    # p of the true classes is 1/2, 1/4 and 1/8: the mean of log(2), log(4) and log(8) is log(4).
    assert perplexity(p.log(), torch.tensor([0, 1, 0])) == pytest.approx(4)


def classes_seen(tensor: Tensor, num_classes: int = -1) -> Tensor:
    """Counts the classes that are in the batch, whatever it is told."""
    del num_classes
    return F.one_hot(tensor)


@rule(
    "SOFT-06",
    "A label is a class index or one probability for each class; to write an index as"
    " probabilities, give one_hot the number of classes, and make its integers floats.",
    kind="practice",
    source=f"{DOCS}torch.nn.functional.one_hot.html",
    subject=F.one_hot,
    violated_by=[classes_seen],
    consequence="without num_classes, 1 in 40 batches of 32 digits has no 9 in it, and gives nine"
    " columns instead of ten",
)
def test_the_columns_of_one_hot_do_not_depend_on_the_batch(one_hot: Function) -> None:
    """Index and probabilities are two spellings of one label, with one loss; see LOSS-08."""
    index = torch.tensor([2, 0, 1])
    logits = torch.tensor([[*SCORES, 0.5, -0.5]] * 3)

    labels = one_hot(index, num_classes=5)

    assert labels.dtype == torch.int64
    assert labels.tolist() == [[0, 0, 1, 0, 0], [1, 0, 0, 0, 0], [0, 1, 0, 0, 0]]
    assert agree(F.cross_entropy(logits, labels.float()), F.cross_entropy(logits, index))


# ---------------------------------------------------------------------------------------------
# Large and infinite scores


def log_of_sum_of_exp(input: Tensor, dim: int) -> Tensor:
    """Takes the formula as it is written."""
    return input.exp().sum(dim).log()


@rule(
    "SOFT-07",
    "log-sum-exp takes the largest score out first, and is right where exp overflows or vanishes:"
    " it lies between the largest score and log(K) more.",
    kind="contract",
    source=f"{DOCS}torch.logsumexp.html",
    subject=[torch.logsumexp, classification.log_sum_exp],
    violated_by=[log_of_sum_of_exp],
    consequence="exp is infinite from 88.8 on in float32, from 709.8 in float64, from 11.1 in"
    " float16: a loss by the formula as it is written is infinite or nan there",
)
def test_log_sum_exp_is_right_at_every_height(logsumexp: Function) -> None:
    """m + log(sum exp(x - m)) for every m; with the largest score for m no exp is above 1. The
    derivative is softmax: cross entropy is log-sum-exp less the score of the true class."""
    for scores in ([0.0], SCORES, [-3.0, 2.0], [7.0] * 4):
        for height in (0.0, 100.0, -1000.0, 1e4):
            x = [score + height for score in scores]
            inputs = vector(x)

            total = logsumexp(inputs, dim=0)
            (gradient,) = torch.autograd.grad(total, inputs)

            assert agree(total, by_hand.log_sum_exp(x))
            # exp(x - total), where the difference is rounded in the size of x.
            assert agree(gradient, by_hand.softmax(x), scale=max(1, abs(height)))
            assert max(x) <= total <= max(x) + math.log(len(x)) + 1e-9
    nothing = [-math.inf, -math.inf]
    assert logsumexp(torch.tensor(nothing), dim=0) == by_hand.log_sum_exp(nothing) == -math.inf


def very_negative_is_enough(input: Tensor, dim: int) -> Tensor:
    """Takes -10 for minus infinity: the masked class keeps a share."""
    return torch.softmax(input.clamp(min=-10.0), dim)


def nan_is_zero(input: Tensor, dim: int) -> Tensor:
    """Calls the probabilities of no class 0."""
    return torch.softmax(input, dim).nan_to_num()


@rule(
    "SOFT-08",
    "A class whose score is set to minus infinity has probability 0 and gradient 0; if every class"
    " is masked so, all probabilities are nan.",
    kind="contract",
    source=f"{DOCS}torch.nn.Softmax.html",
    subject=SOFTMAXES,
    violated_by=[very_negative_is_enough, nan_is_zero],
    consequence="one sequence of nothing but padding turns the loss of its batch into nan",
)
def test_masked_classes_are_out_but_not_all_may_be(softmax: Function) -> None:
    """What is left shares 1 as if the masked class had never been there. 0/0 has no share."""
    scores = vector([SCORES[0], -math.inf, SCORES[2]])

    p = softmax(scores, dim=0)
    (gradient,) = torch.autograd.grad(p[2], scores)

    assert agree(p, [1 / 6, 0, 5 / 6])
    assert agree(gradient, [-5 / 36, 0, 5 / 36])
    assert softmax(vector([-math.inf, -math.inf]), dim=0).isnan().all()


# ---------------------------------------------------------------------------------------------
# Two classes, and no class at all


def sum_of_both(input: Tensor, target: Tensor) -> Tensor:
    """Asks both outputs: a binary loss for each class."""
    return F.binary_cross_entropy_with_logits(input, F.one_hot(target, 2).to(input)) * 2


@rule(
    "SOFT-09",
    "Softmax of two scores is the sigmoid of their difference: two outputs with cross entropy are"
    " one output with binary cross entropy, at half the learning rate.",
    kind="contract",
    source=f"{DOCS}torch.nn.CrossEntropyLoss.html",
    subject=CROSS_ENTROPIES,
    violated_by=[sum_of_both],
)
def test_one_output_and_two_outputs_learn_the_same(cross_entropy: Function) -> None:
    """Both outputs move, apart from each other: their difference takes twice the step."""
    inputs, targets, _, _ = data.breast_cancer()
    one, two = nn.Linear(30, 1), nn.Linear(30, 2)
    with torch.no_grad():
        two.weight[1] = two.weight[0] + one.weight[0]
        two.bias[1] = two.bias[0] + one.bias[0]
    step_one = torch.optim.SGD(one.parameters(), lr=0.2)
    step_two = torch.optim.SGD(two.parameters(), lr=0.1)

    for _ in range(20):
        step_one.zero_grad()
        step_two.zero_grad()
        loss_of_one = F.binary_cross_entropy_with_logits(one(inputs).squeeze(1), targets)
        loss_of_two = cross_entropy(two(inputs), targets.long())
        assert loss_of_two.item() == pytest.approx(loss_of_one.item(), rel=1e-4)  # in float32
        loss_of_one.backward()
        loss_of_two.backward()
        step_one.step()
        step_two.step()

    scores = two(inputs)
    p = torch.softmax(scores, dim=1)[:, 1]
    assert agree(p, torch.sigmoid(scores[:, 1] - scores[:, 0]))
    assert p.tolist() == pytest.approx(torch.sigmoid(one(inputs)).flatten().tolist(), abs=1e-4)


class OneSigmoidForEachClass(MultiClassClassifier):
    """Asks for each class by itself whether the image is of it: all may say no."""

    def training_loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(self(inputs), F.one_hot(targets, 10).float())

    @torch.no_grad()
    def probabilities(self, inputs: Tensor) -> Tensor:
        return torch.sigmoid(self(inputs))


@rule(
    "SOFT-10",
    "A softmax probability near 1 means that the image is of a class the model has learned.",
    kind="claim",
    verdict="false",
    source="https://arxiv.org/abs/1812.05720",
    subject=MultiClassClassifier,
    violated_by=[OneSigmoidForEachClass],
    consequence="negatives of digits, white on black turned around, are given a digit with 0.92 on"
    " average, where real ones get 0.93 (five seeds)",
)
def test_negatives_of_digits_are_digits_with_the_same_certainty(
    MultiClassClassifier: Callable[..., MultiClassClassifier], observe: Observe
) -> None:
    """Softmax shares out all of 1: there is no answer "none of these"."""
    images = data.digits()
    torch.manual_seed(0)
    classifier = MultiClassClassifier(features=64, classes=10)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=0.1)
    for _ in range(50):
        optimizer.zero_grad()
        classifier.training_loss(images.train_inputs, images.train_targets).backward()
        optimizer.step()

    of_digits = classifier.probabilities(images.test_inputs).amax(dim=1).mean().item()
    of_negatives = classifier.probabilities(1 - images.test_inputs).amax(dim=1).mean().item()
    observe("certainty", [of_digits, of_negatives])

    assert of_negatives > of_digits - 0.05  # seen: 0.915 to 0.920, and 0.928 to 0.936
    assert of_digits > 0.88

"""Training a binary classifier: raw logits into the loss, sigmoid at inference.

At the end you know what a sigmoid too many costs, and that it costs more than accuracy shows. The
data are the 569 tumours of scikit-learn's breast cancer data, 1 for malignant; the model is one
linear layer, trained on all 455 tumours of the training part at once. A logit is any real number;
sigmoid turns it into the probability of class 1.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference import data
from reference.losses import binary
from reference.losses.classifiers import BinaryClassifier
from specs.harness import rule, spec
from specs.harness.agreement import agree
from specs.harness.observations import Observe
from specs.losses.gradients import Loss

LOGITS_PAGE = "https://docs.pytorch.org/docs/stable/generated/torch.nn.BCEWithLogitsLoss.html"

ON_LOGITS = [F.binary_cross_entropy_with_logits, binary.binary_cross_entropy_with_logits]


# ---------------------------------------------------------------------------------------------
# No sigmoid before the loss


def sigmoid_twice(input: Tensor, target: Tensor, **options: Any) -> Tensor:
    """Applies a sigmoid to the logits, and then the loss that applies its own."""
    return F.binary_cross_entropy_with_logits(torch.sigmoid(input), target, **options)


def takes_probabilities(input: Tensor, target: Tensor, **options: Any) -> Tensor:
    """Takes the sigmoid before it for granted: the loss on probabilities."""
    return F.binary_cross_entropy(input.clamp(0, 1), target, **options)


@rule(
    "LOSS-03",
    "Give binary cross entropy with logits the raw logits: no sigmoid before it.",
    kind="practice",
    source=LOGITS_PAGE,
    subject=ON_LOGITS,
    violated_by=[sigmoid_twice],
    consequence="with a sigmoid before it, a perfect answer for class 1 still costs"
    " log(1 + exp(-1)) = 0.3133, and one for class 0 log(2) = 0.6931",
)
def test_a_sure_and_right_answer_costs_nothing(binary_cross_entropy_with_logits: Loss) -> None:
    """The loss of a perfect model is 0, so that what is left of a loss is left to learn."""
    logits, targets = torch.tensor([20.0, -20.0]), torch.tensor([1.0, 0.0])

    losses = binary_cross_entropy_with_logits(logits, targets, reduction="none")

    assert agree(losses, [math.log1p(math.exp(-20)), math.log1p(math.exp(-20))], scale=20)


@spec("LOSS-03", violated_by=[takes_probabilities])
def test_a_sigmoid_before_it_leaves_a_floor_that_no_training_gets_under(
    binary_cross_entropy_with_logits: Loss, observe: Observe
) -> None:
    """The first sigmoid gives 1 and 0 at best; to the second one these are two weak logits."""
    perfect = torch.sigmoid(torch.tensor([1000.0, -1000.0]))

    floors = binary_cross_entropy_with_logits(perfect, torch.tensor([1.0, 0.0]), reduction="none")
    observe("floors", floors)

    assert agree(floors, [math.log(1 + math.exp(-1)), math.log(2)])


# ---------------------------------------------------------------------------------------------
# In training and at inference

Classifier = type[BinaryClassifier]


def train(classifier: BinaryClassifier, steps: int, lr: float) -> None:
    """Train on all 455 tumours of the training part at once, with Adam."""
    tumours = data.breast_cancer()
    optimizer = torch.optim.Adam(classifier.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        classifier.training_loss(tumours.train_inputs, tumours.train_targets).backward()
        optimizer.step()


def share_of_right_answers(probabilities: Tensor, targets: Tensor) -> float:
    """Accuracy, if class 1 is answered where its probability is above one half."""
    return ((probabilities > 0.5) == (targets == 1)).double().mean().item()


class SigmoidInTheModel(BinaryClassifier):
    """Ends in a sigmoid: training and inference both apply a second one."""

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.sigmoid(super().forward(inputs))


class SigmoidBeforeTheLoss(BinaryClassifier):
    """Trains on two sigmoids, but is used with one."""

    def training_loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(torch.sigmoid(self(inputs)), targets)


class LossOnProbabilities(BinaryClassifier):
    """Trains with a sigmoid and the loss on probabilities."""

    def training_loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return F.binary_cross_entropy(torch.sigmoid(self(inputs)), targets)


class NoSigmoidAtInference(BinaryClassifier):
    """Gives out logits as if they were probabilities."""

    def probabilities(self, inputs: Tensor) -> Tensor:
        return self(inputs).detach()


@rule(
    "LOSS-17",
    "Train a binary classifier on its raw logits with binary cross entropy with logits; apply the"
    " sigmoid only at inference.",
    kind="practice",
    source=LOGITS_PAGE,
    subject=BinaryClassifier,
    violated_by=[SigmoidInTheModel, NoSigmoidAtInference],
    consequence="on breast cancer a model that ends in a sigmoid gives no tumour less than 0.5 and"
    " is right for 41 of 100; one trained on probabilities never unlearns a confident mistake",
)
def test_it_separates_held_out_tumours_at_a_probability_of_one_half(
    BinaryClassifier: Classifier, observe: Observe
) -> None:
    """The loss contains a sigmoid of its own; at inference one turns logits into probabilities."""
    torch.manual_seed(0)
    tumours = data.breast_cancer()
    classifier = BinaryClassifier(features=30)

    train(classifier, steps=100, lr=0.05)

    probabilities = classifier.probabilities(tumours.test_inputs)
    right = share_of_right_answers(probabilities, tumours.test_targets)
    observe("accuracy", right)
    assert right > 0.9
    assert 0 <= probabilities.min() <= probabilities.max() <= 1


class ExpectsASigmoidInTheModel(BinaryClassifier):
    """Takes the output of the model for probabilities, in training and at inference."""

    def training_loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return F.binary_cross_entropy(self(inputs).clamp(0, 1), targets)

    def probabilities(self, inputs: Tensor) -> Tensor:
        return self(inputs).detach()


@spec("LOSS-17", violated_by=[ExpectsASigmoidInTheModel])
def test_with_a_sigmoid_at_its_end_the_model_gives_no_tumour_less_than_one_half(
    BinaryClassifier: Classifier, observe: Observe
) -> None:
    """The second sigmoid gets numbers from 0 to 1, and gives 0.5 to 1 / (1 + exp(-1)) = 0.731."""
    torch.manual_seed(0)
    tumours = data.breast_cancer()
    classifier = BinaryClassifier(features=30)
    classifier.linear = nn.Sequential(classifier.linear, nn.Sigmoid())  # type: ignore[assignment]

    train(classifier, steps=100, lr=0.05)

    probabilities = classifier.probabilities(tumours.test_inputs)
    right = share_of_right_answers(probabilities, tumours.test_targets)
    observe("accuracy", right)
    assert probabilities.min() >= 0.5
    assert probabilities.max() <= 0.7311
    assert right < 0.5


@spec("LOSS-17", violated_by=[SigmoidBeforeTheLoss, NoSigmoidAtInference])
def test_what_it_minimises_is_the_cross_entropy_of_the_probabilities_it_gives(
    BinaryClassifier: Classifier,
) -> None:
    """Both sides apply one sigmoid. With two in training, what is learned is not what is used."""
    torch.manual_seed(0)
    tumours = data.breast_cancer()
    inputs, targets = tumours.train_inputs, tumours.train_targets
    classifier = BinaryClassifier(features=30)

    trained_on = classifier.training_loss(inputs, targets)

    p = classifier.probabilities(inputs).clamp(0, 1)
    # A sum of 455 terms, each rounded.
    assert agree(trained_on, binary.binary_cross_entropy(p, targets), ulps=455)


@spec("LOSS-17", violated_by=[SigmoidInTheModel, SigmoidBeforeTheLoss, LossOnProbabilities])
def test_it_unlearns_a_confident_mistake(BinaryClassifier: Classifier) -> None:
    """A start that calls every tumour malignant with a logit near 30 is a long way off, no more.

    Each of the three others has a gradient of exactly 0 there: after 40 steps it still calls every
    tumour malignant, which is right for 37 of 100.
    """
    torch.manual_seed(0)
    tumours = data.breast_cancer()
    classifier = BinaryClassifier(features=30)
    nn.init.constant_(classifier.linear.bias, 30.0)

    train(classifier, steps=40, lr=2.0)

    probabilities = classifier.probabilities(tumours.test_inputs)
    assert share_of_right_answers(probabilities, tumours.test_targets) > 0.8

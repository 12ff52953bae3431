"""Training a classifier with several classes: raw logits into the loss, softmax at inference.

At the end you know what a softmax too many costs, why accuracy does not betray it, and which loss
an untrained model starts with. The data are the 1,797 digits of scikit-learn, K = 10 classes; the
model is one linear layer, trained on all 1,437 training images at once.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference import data
from reference.losses import classification
from reference.losses.classifiers import MultiClassClassifier
from reference.training import accuracy
from specs.harness import rule, spec
from specs.harness.agreement import agree
from specs.harness.observations import Observe
from specs.losses.gradients import Loss, value_and_gradient

CROSS_ENTROPY_PAGE = "https://docs.pytorch.org/docs/stable/generated/torch.nn.CrossEntropyLoss.html"

CROSS_ENTROPIES = [F.cross_entropy, classification.cross_entropy]
CLASSES = [2, 5, 10, 1000]

Classifier = type[MultiClassClassifier]


def train(classifier: MultiClassClassifier, steps: int, lr: float) -> None:
    """Train on the training images with Adam."""
    images = data.digits()
    optimizer = torch.optim.Adam(classifier.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        classifier.training_loss(images.train_inputs, images.train_targets).backward()
        optimizer.step()


def accuracy_on_test_images(classifier: MultiClassClassifier) -> float:
    """Share of the 360 test images whose most probable class is the right one."""
    images = data.digits()
    predicted = classifier.probabilities(images.test_inputs).argmax(dim=1)
    return (predicted == images.test_targets).double().mean().item()


# ---------------------------------------------------------------------------------------------
# Before training


class StartsSureOfItself(MultiClassClassifier):
    """Draws its weights from N(0, 1): its first logits are large, and wrong."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__(features, classes)
        nn.init.normal_(self.linear.weight)


class SumsItsLoss(MultiClassClassifier):
    """Sums the loss over the batch instead of averaging it."""

    def training_loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(self(inputs), targets, reduction="sum")


@rule(
    "LOSS-12",
    "An untrained classifier of K classes starts with a loss near log(K): check it first.",
    kind="practice",
    source="https://karpathy.github.io/2019/04/25/recipe/",
    subject=MultiClassClassifier,
    violated_by=[StartsSureOfItself, SumsItsLoss],
    consequence="weights drawn from N(0, 1) start the digits at 4.8 to 6.4 (five seeds), further"
    " from the goal than the log(10) = 2.303 of knowing nothing",
)
def test_the_first_loss_on_digits_is_near_log_10(
    MultiClassClassifier: Classifier, observe: Observe
) -> None:
    """Another first loss points at the initialisation, the reduction or the number of classes."""
    images = data.digits()
    first_losses = []
    for seed in range(5):
        torch.manual_seed(seed)
        classifier = MultiClassClassifier(features=64, classes=10)
        loss = classifier.training_loss(images.train_inputs, images.train_targets)
        first_losses.append(loss.item())
    observe("first losses", first_losses)

    assert all(abs(loss - math.log(10)) < 0.1 for loss in first_losses)


def in_bits(input: Tensor, target: Tensor, **options: Any) -> Tensor:
    """Takes logarithms to base 2."""
    return F.cross_entropy(input, target, **options) / math.log(2)


def mean_over_logits(input: Tensor, target: Tensor, **options: Any) -> Tensor:
    """Divides by the number of logits instead of the number of samples."""
    return F.cross_entropy(input, target, **options) / input.shape[1]


@spec("LOSS-12", subject=CROSS_ENTROPIES, violated_by=[in_bits, mean_over_logits])
def test_equal_logits_cost_exactly_log_k(cross_entropy: Loss) -> None:
    """Each class has probability 1/K, whichever the target is."""
    for k in CLASSES:
        logits = torch.full((3, k), 0.25, dtype=torch.float64)

        assert agree(cross_entropy(logits, torch.tensor([0, 1, k - 1])), math.log(k))


# ---------------------------------------------------------------------------------------------
# No softmax before the loss


def softmax_first(input: Tensor, target: Tensor, **options: Any) -> Tensor:
    """Applies softmax to the logits, and then the loss that applies its own."""
    return F.cross_entropy(F.softmax(input, dim=1), target, **options)


def takes_probabilities(input: Tensor, target: Tensor, **options: Any) -> Tensor:
    """Takes the softmax before it for granted: -log(p) of the true class."""
    return F.nll_loss((input + 1e-30).log(), target, **options)


@rule(
    "LOSS-05",
    "Give cross entropy the raw logits: no softmax before it.",
    kind="practice",
    source=CROSS_ENTROPY_PAGE,
    subject=CROSS_ENTROPIES,
    violated_by=[softmax_first],
    consequence="with a softmax before it, the best loss is log(e + K - 1) - 1 (0.313 for 2"
    " classes, 1.461 for 10, 5.909 for 1000) and the worst only 1 more",
)
def test_a_sure_and_right_answer_costs_nothing_and_a_wrong_one_its_logit(
    cross_entropy: Loss,
) -> None:
    """The loss of a perfect model is 0, and there is no limit on the other side."""
    for k in CLASSES:
        logits = torch.zeros(2, k)
        logits[:, 0] = 100.0  # sure of class 0

        losses = cross_entropy(logits, torch.tensor([0, 1]), reduction="none")

        assert agree(losses, [0.0, 100.0])


@spec("LOSS-05", violated_by=[takes_probabilities])
def test_after_a_softmax_all_losses_lie_between_a_floor_and_1_more(
    cross_entropy: Loss, observe: Observe
) -> None:
    """Probabilities are weak logits: 1 for the true class and 0 for K - 1 others, at best."""
    floors = []
    for k in CLASSES:
        sure_of_class_0 = F.one_hot(torch.tensor([0, 0]), k).double()
        right, wrong = cross_entropy(sure_of_class_0, torch.tensor([0, 1]), reduction="none")
        floors.append(right.item())

        assert agree(right, math.log(math.e + k - 1) - 1)
        assert agree(wrong, math.log(math.e + k - 1))
    observe("floors", floors)


# ---------------------------------------------------------------------------------------------
# A claim on trial

FLOOR = math.log(math.e + 9) - 1  # 1.461, of ten classes


def behind_a_softmax(loss_function: Loss) -> Loss:
    """The loss that a model minimises if it ends in a softmax."""
    return lambda logits, target: loss_function(F.softmax(logits, dim=1), target)


def loss_and_accuracy_after_training_with(loss_function: Loss) -> tuple[float, float]:
    """Final training loss, and accuracy on the test images, after 50 steps from one start."""
    torch.manual_seed(0)
    images = data.digits()
    model = nn.Linear(64, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(50):
        optimizer.zero_grad()
        loss = loss_function(model(images.train_inputs), images.train_targets)
        loss.backward()
        optimizer.step()
    return loss.item(), accuracy(model, images.test_inputs, images.test_targets)


@rule(
    "CLAIM-16",
    "CrossEntropyLoss on softmax outputs merely trains slower.",
    kind="claim",
    verdict="false",
    source=CROSS_ENTROPY_PAGE,
    subject=F.cross_entropy,
    violated_by=[takes_probabilities],
    consequence="on digits the loss stays above 1.461, however right the answers; the accuracy"
    " does follow, which hides it",
)
def test_with_a_softmax_in_front_the_loss_stays_above_a_floor_while_the_accuracy_rises(
    cross_entropy: Loss, observe: Observe
) -> None:
    """Slower is not the word: the same 50 steps reach the same accuracy, and another loss."""
    loss, right = loss_and_accuracy_after_training_with(behind_a_softmax(cross_entropy))
    observe("loss behind a softmax", loss)
    observe("accuracy behind a softmax", right)
    assert loss > FLOOR
    assert right > 0.9

    loss_of_raw, right_of_raw = loss_and_accuracy_after_training_with(cross_entropy)
    assert loss_of_raw < 0.2
    assert abs(right - right_of_raw) < 0.05


@spec("CLAIM-16", violated_by=[takes_probabilities])
def test_with_a_softmax_in_front_a_confident_mistake_has_no_gradient_at_all(
    cross_entropy: Loss,
) -> None:
    """A saturated softmax does not move, whatever the loss behind it says."""
    logits = torch.tensor([[200.0, 0.0, 0.0]])
    target = torch.tensor([1])

    _, gradient = value_and_gradient(behind_a_softmax(cross_entropy), logits, target)
    _, gradient_of_raw_logits = value_and_gradient(cross_entropy, logits, target)

    assert gradient.tolist() == [[0.0, 0.0, 0.0]]
    assert agree(gradient_of_raw_logits, [[1.0, -1.0, 0.0]])


# ---------------------------------------------------------------------------------------------
# In training and at inference


class SoftmaxInTheModel(MultiClassClassifier):
    """Ends in a softmax: training and inference both apply a second one."""

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.softmax(super().forward(inputs), dim=1)


class SoftmaxBeforeTheLoss(MultiClassClassifier):
    """Trains on two softmaxes, but is used with one."""

    def training_loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(torch.softmax(self(inputs), dim=1), targets)


class LogOfSoftmax(MultiClassClassifier):
    """Trains on the logarithm of rounded probabilities."""

    def training_loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return F.nll_loss(torch.softmax(self(inputs), dim=1).log(), targets)


class NoSoftmaxAtInference(MultiClassClassifier):
    """Gives out logits as if they were probabilities."""

    def probabilities(self, inputs: Tensor) -> Tensor:
        return self(inputs).detach()


@rule(
    "LOSS-18",
    "Train a classifier of several classes on its raw logits with cross entropy; apply softmax only"
    " at inference.",
    kind="practice",
    source=CROSS_ENTROPY_PAGE,
    subject=MultiClassClassifier,
    violated_by=[SoftmaxInTheModel, NoSoftmaxAtInference],
    consequence="on digits a model that ends in a softmax gives the true class 0.22 on average,"
    " where one on raw logits gives 0.91; and it never gets away from a confident mistake",
)
def test_it_gives_the_true_class_of_held_out_digits_most_of_the_probability(
    MultiClassClassifier: Classifier, observe: Observe
) -> None:
    """The loss contains a softmax of its own; at inference one turns logits into probabilities."""
    torch.manual_seed(0)
    images = data.digits()
    classifier = MultiClassClassifier(features=64, classes=10)

    train(classifier, steps=50, lr=0.1)

    p = classifier.probabilities(images.test_inputs)
    of_true_class = p.gather(1, images.test_targets.unsqueeze(1)).mean()
    observe("probability of the true class", of_true_class.item())
    assert agree(p.sum(dim=1), torch.ones(360))
    assert of_true_class > 0.8
    assert accuracy_on_test_images(classifier) > 0.9


class ExpectsASoftmaxInTheModel(MultiClassClassifier):
    """Takes the output of the model for probabilities, in training and at inference."""

    def training_loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return F.nll_loss((self(inputs) + 1e-30).log(), targets)

    def probabilities(self, inputs: Tensor) -> Tensor:
        return self(inputs).detach()


@spec("LOSS-18", violated_by=[ExpectsASoftmaxInTheModel])
def test_with_a_softmax_at_its_end_the_model_gives_no_class_more_than_a_quarter(
    MultiClassClassifier: Classifier, observe: Observe
) -> None:
    """The second softmax gets 1 and nine zeros at best, and gives e / (e + 9) = 0.232."""
    torch.manual_seed(0)
    images = data.digits()
    classifier = MultiClassClassifier(features=64, classes=10)
    classifier.linear = nn.Sequential(classifier.linear, nn.Softmax(dim=1))  # type: ignore[assignment]

    train(classifier, steps=50, lr=0.1)

    p = classifier.probabilities(images.test_inputs)
    observe("largest probability", p.max().item())
    assert p.max() < 0.2321
    assert accuracy_on_test_images(classifier) > 0.9  # its answers are right all the same


@spec("LOSS-18", violated_by=[SoftmaxBeforeTheLoss, SoftmaxInTheModel, LogOfSoftmax])
def test_it_unlearns_a_confident_mistake(MultiClassClassifier: Classifier) -> None:
    """A start that takes every image for a 0, with a logit of 200, is a long way off, no more.

    With a second softmax the gradient there is exactly 0, with a logarithm of probabilities it is
    nan: both still call every image a 0 at the end, which is right for 1 of 10.
    """
    torch.manual_seed(0)
    classifier = MultiClassClassifier(features=64, classes=10)
    nn.init.zeros_(classifier.linear.bias)
    nn.init.constant_(classifier.linear.bias[:1], 200.0)

    train(classifier, steps=30, lr=10.0)

    assert accuracy_on_test_images(classifier) > 0.8


@spec("LOSS-18", violated_by=[SoftmaxBeforeTheLoss, NoSoftmaxAtInference])
def test_what_it_minimises_is_the_cross_entropy_of_the_probabilities_it_gives(
    MultiClassClassifier: Classifier,
) -> None:
    """With two softmaxes in training and one at inference, what is learned is not what is used."""
    torch.manual_seed(0)
    images = data.digits()
    inputs, targets = images.train_inputs, images.train_targets
    classifier = MultiClassClassifier(features=64, classes=10)

    trained_on = classifier.training_loss(inputs, targets)

    log_p = classifier.probabilities(inputs).double().clamp(min=1e-30).log()
    # A mean of 1,437 terms, each rounded.
    assert agree(trained_on, classification.nll_loss(log_p, targets), ulps=1437)

"""Logistic regression, and what is done around it: splitting, predicting, counting.

Everywhere: a sample is a row, a target is 1 for the class that is looked for ("positive") and 0
for the other one, in floating point. A logit is any real number, log(p / (1 - p)) for the
probability p of class 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference.losses.binary import sigmoid, softplus


class Line(NamedTuple):
    """What logistic regression learns: logit = inputs @ weights + bias, both float64."""

    weights: Tensor  # (features,)
    bias: Tensor  # ()

    def logits(self, inputs: Tensor) -> Tensor:
        """(samples, features) -> (samples,)"""
        return inputs.double() @ self.weights + self.bias


def raw_breast_cancer() -> tuple[Tensor, Tensor]:
    """All 569 tumours as they were measured: float64 (569, 30), and targets (569,), 1 malignant.

    Source:
    https://scikit-learn.org/stable/modules/generated/sklearn.datasets.load_breast_cancer.html
    """
    from sklearn.datasets import load_breast_cancer

    measurements, benign = load_breast_cancer(return_X_y=True)
    return torch.as_tensor(measurements), torch.as_tensor(1.0 - benign)


def stratified_split(
    targets: Tensor, test_share: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Indices of the training part and of the test part, which has its share of every class.

    Each class is shuffled by the generator; round(test_share * n) of its n samples go to the test
    part. Shapes: targets (samples,), indices int64. Raises ValueError unless 0 < test_share < 1.

    Source: https://scikit-learn.org/stable/modules/cross_validation.html#stratification
    """
    if not 0 < test_share < 1:
        raise ValueError(f"test_share must lie between 0 and 1, got {test_share}")
    train, test = [], []
    for one_class in targets.unique():
        members = (targets == one_class).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        in_test = round(test_share * len(members))
        test.append(members[:in_test])
        train.append(members[in_test:])
    return torch.cat(train), torch.cat(test)


def penalty_groups(line: nn.Linear, C: float, samples: int) -> list[dict[str, Any]]:
    """Parameter groups for SGD: weight_decay 1 / (C * samples) on the weights, 0 on the bias.

    SGD's weight_decay d adds d * w to the gradient of the mean loss, and so d / 2 * |w|^2 to the
    mean loss. scikit-learn minimises C * (summed loss) + |w|^2 / 2, without the bias; divided by
    C * samples that is the mean loss + |w|^2 / (2 * C * samples). C = math.inf is no penalty.

    Source: https://scikit-learn.org/stable/modules/linear_model.html#logistic-regression
    """
    return [
        {"params": [line.weight], "weight_decay": 1 / (C * samples)},
        {"params": [line.bias], "weight_decay": 0.0},
    ]


def fit_logistic_regression(
    inputs: Tensor,
    targets: Tensor,
    C: float = 1.0,
    groups: Callable[[nn.Linear, float, int], list[dict[str, Any]]] = penalty_groups,
) -> Line:
    """Minimise the mean loss and its penalty as PyTorch is used to: by SGD on the whole set.

    400 steps from zeros with learning rate 1 and Nesterov momentum 0.9, in float64: enough for
    standardised inputs and C up to 1. Shapes: inputs (n, features), targets (n,).

    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.SGD.html
    """
    inputs, targets = inputs.double(), targets.double()
    line = nn.Linear(inputs.shape[1], 1, dtype=torch.float64)
    nn.init.zeros_(line.weight)
    nn.init.zeros_(line.bias)
    optimizer = torch.optim.SGD(groups(line, C, len(inputs)), lr=1.0, momentum=0.9, nesterov=True)
    for _ in range(400):
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(line(inputs).squeeze(1), targets).backward()
        optimizer.step()
    return Line(line.weight.detach().squeeze(0), line.bias.detach().squeeze(0))


def fit_by_newton(inputs: Tensor, targets: Tensor, C: float = 1.0, *, steps: int = 20) -> Line:
    """Minimise C * (summed loss) + |weights|^2 / 2 by Newton's method, without a learning rate.

    With a column of ones for the bias, gradient g = C X'(p - y) + D w and Hessian
    H = C X' diag(p (1 - p)) X + D, where D is 1 on the diagonal and 0 for the bias. A step is
    -H^-1 g, halved until the objective does not rise. Shapes: inputs (n, features), targets (n,).

    Source: https://hastie.su.domains/ElemStatLearn/ (section 4.4.1, with the penalty added)
    """
    x = torch.cat([inputs.double(), torch.ones(len(inputs), 1, dtype=torch.float64)], dim=1)
    y = targets.double()
    penalised = torch.ones(x.shape[1], dtype=torch.float64)
    penalised[-1] = 0.0

    def objective(w: Tensor) -> Tensor:
        losses = softplus(x @ w) - y * (x @ w)
        return C * losses.sum() + (penalised * w * w).sum() / 2

    w = torch.zeros(x.shape[1], dtype=torch.float64)
    for _ in range(steps):
        p = sigmoid(x @ w)
        gradient = C * x.T @ (p - y) + penalised * w
        hessian = C * x.T @ (x * (p * (1 - p)).unsqueeze(1)) + torch.diag(penalised)
        step = torch.linalg.solve(hessian, gradient)
        while objective(w - step) > objective(w) and step.abs().max() > 1e-12:
            step = step / 2
        w = w - step
    return Line(w[:-1], w[-1])


def fit_by_scikit_learn(inputs: Tensor, targets: Tensor, C: float = 1.0) -> Line:
    """What scikit-learn's LogisticRegression finds with the same C.

    Source:
    https://scikit-learn.org/stable/modules/generated/sklearn.linear_model.LogisticRegression.html
    """
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=C, tol=1e-10, max_iter=1000, solver="newton-cholesky")
    model.fit(inputs.double().numpy(), targets.numpy())
    return Line(torch.as_tensor(model.coef_[0]), torch.as_tensor(model.intercept_[0]))


def predicted_classes(logits: Tensor, threshold: float = 0.5) -> Tensor:
    """1 where the probability of class 1 is above the threshold, else 0; same shape as the logits.

    No probability is formed: p > t is the same as logit > log(t / (1 - t)), which is 0 for one
    half. Raises ValueError unless 0 < threshold < 1.

    Source: https://scikit-learn.org/stable/modules/classification_threshold.html
    """
    if not 0 < threshold < 1:
        raise ValueError(f"threshold must lie between 0 and 1, got {threshold}")
    return (logits > math.log(threshold / (1 - threshold))).to(logits.dtype)


def recall_and_precision(predicted: Tensor, targets: Tensor) -> tuple[float, float]:
    """Share of the positives that are found, and share of the alarms that are right.

    Both are true positives over something: over all positives, and over all alarms. Shapes:
    (samples,) each, 0 or 1. A share of nothing is nan.

    Source: https://en.wikipedia.org/wiki/Precision_and_recall
    """
    found = float(((predicted == 1) & (targets == 1)).sum())
    positives, alarms = float((targets == 1).sum()), float((predicted == 1).sum())
    return (
        found / positives if positives else math.nan,
        found / alarms if alarms else math.nan,
    )


def majority_accuracy(train_targets: Tensor, test_targets: Tensor) -> float:
    """Accuracy of the answer that is most frequent in training, given to every test sample.

    Of equally frequent classes the smallest is taken. Shapes: (samples,) each.

    Source: https://scikit-learn.org/stable/modules/generated/sklearn.dummy.DummyClassifier.html
    """
    classes, counts = train_targets.unique(return_counts=True)
    return float((test_targets == classes[counts.argmax()]).double().mean())


def most_telling_features(inputs: Tensor, targets: Tensor, train: Tensor, count: int) -> Tensor:
    """The `count` features whose class means differ most, in standard deviations.

    Only the samples at the indices `train` are looked at. Shapes: inputs (samples, features),
    targets (samples,), indices int64; the result (count,), int64.

    Source: https://hastie.su.domains/ElemStatLearn/ (section 7.10.2, the right way to select)
    """
    x, y = inputs[train], targets[train]
    difference = (x[y == 1].mean(dim=0) - x[y == 0].mean(dim=0)) / x.std(dim=0)
    return difference.abs().topk(count).indices

"""Linear regression: a real data set, the closed form, and what to measure.

The model is y = x @ weights + bias, and the best one has the smallest mean squared error.

Source: https://hastie.su.domains/ElemStatLearn/ (chapter 3) and
https://scikit-learn.org/stable/modules/linear_model.html
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from reference.data import SPLIT_SEED, TEST_SHARE, Split

#: What was measured in each patient; the last six in the blood.
DIABETES_FEATURES = (
    *("age", "sex", "body mass index", "blood pressure"),
    *("cholesterol", "LDL", "HDL", "cholesterol / HDL", "log triglycerides", "glucose"),
)


class Line(NamedTuple):
    """A linear model: weights (d,), and a bias with one element."""

    weights: Tensor
    bias: Tensor

    def predict(self, inputs: Tensor) -> Tensor:
        """x @ weights + bias for inputs (n, d): shape (n,)."""
        return inputs @ self.weights + self.bias


class Scaled(NamedTuple):
    """Features with mean 0 and standard deviation 1, and what they were: z = (x - mean) / std."""

    inputs: Tensor
    mean: Tensor
    std: Tensor


def diabetes() -> Split:
    """Diabetes: 442 patients with 10 measurements and the progression of the disease in a year.

    Inputs are float64 of shape (n, 10), in the units they were measured in (years, kg/m^2, mmHg,
    ...) and in the order of DIABETES_FEATURES. Targets are float64 of shape (n,), from 25 to 346.
    353 patients are for training, the others are held out.

    Source: https://scikit-learn.org/stable/modules/generated/sklearn.datasets.load_diabetes.html
    """
    return Split(*(part.clone() for part in _diabetes()))


@lru_cache(maxsize=1)
def _diabetes() -> Split:
    from sklearn.datasets import load_diabetes
    from sklearn.model_selection import train_test_split

    measured, progression = load_diabetes(return_X_y=True, scaled=False)
    train_inputs, test_inputs, train_targets, test_targets = (
        torch.as_tensor(part, dtype=torch.float64)
        for part in train_test_split(
            measured, progression, test_size=TEST_SHARE, random_state=SPLIT_SEED
        )
    )
    return Split(train_inputs, train_targets, test_inputs, test_targets)


def standardise(inputs: Tensor) -> Scaled:
    """Each feature with mean 0 and standard deviation 1, the mean of the squares divided by n.

    inputs: (n, d). A held-out part is to be scaled with the same mean and std, not by itself.
    Raises ValueError if a feature is constant: its standard deviation is 0.

    Source: https://scikit-learn.org/stable/modules/generated/sklearn.preprocessing.StandardScaler.html
    """
    mean = inputs.mean(dim=0)
    std = ((inputs - mean) ** 2).mean(dim=0).sqrt()
    if (std == 0).any():
        raise ValueError("a constant feature cannot be standardised")
    return Scaled((inputs - mean) / std, mean, std)


def in_original_units(line: Line, mean: Tensor, std: Tensor) -> Line:
    """The model of x that gives what `line` gives for z = (x - mean) / std.

    weights / std, and bias - sum(weights * mean / std). mean and std: (d,).

    Source: https://scikit-learn.org/stable/modules/generated/sklearn.preprocessing.StandardScaler.html
    """
    weights = line.weights / std
    return Line(weights, line.bias - (weights * mean).sum())


def normal_equations(inputs: Tensor, targets: Tensor, alpha: float = 0.0) -> Line:
    """The weights and the bias that minimise sum((x @ w + b - y)**2) + alpha * sum(w**2).

    They solve (xc.T @ xc + alpha * I) @ w = xc.T @ yc, where xc and yc are x and y less their
    means, and b = mean(y) - mean(x) @ w: the bias is not penalised. In float64.

    inputs: (n, d), targets: (n,). Raises torch.linalg.LinAlgError if the features are exactly
    dependent and alpha is 0: then many weights are best.

    Source: https://hastie.su.domains/ElemStatLearn/ (equations 3.6 and 3.44)
    """
    x, y = inputs.double(), targets.double()
    centred = x - x.mean(dim=0)
    matrix = centred.T @ centred + alpha * torch.eye(x.shape[1], dtype=x.dtype)
    weights = torch.linalg.solve(matrix, centred.T @ (y - y.mean()))
    return Line(weights, y.mean() - x.mean(dim=0) @ weights)


def r2_score(targets: Tensor, predictions: Tensor) -> float:
    """R^2 = 1 - sum((y - prediction)**2) / sum((y - mean(y))**2).

    1 for perfect predictions, 0 for those of the mean, below 0 for worse ones. Both of shape (n,).
    Raises ValueError if the shapes differ or all targets are equal.

    Source: https://scikit-learn.org/stable/modules/generated/sklearn.metrics.r2_score.html
    """
    if targets.shape != predictions.shape:
        raise ValueError(f"shapes {tuple(targets.shape)} and {tuple(predictions.shape)} differ")
    y, predicted = targets.double(), predictions.double()
    total = ((y - y.mean()) ** 2).sum()
    if total == 0:
        raise ValueError("R^2 needs targets that differ")
    return float(1 - ((y - predicted) ** 2).sum() / total)

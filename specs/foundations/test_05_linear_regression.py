"""Linear regression: a model that can be checked against its closed form.

At the end you know what a trained linear model has found, how to read its weights and its bias, how
to measure it on patients that it has not seen, and what weight decay does to it.

The model predicts how a diabetes progresses within a year, from four measurements of a patient. It
is trained on 353 patients, and 89 are held out: they show what it is worth.

Read before: lesson 4, gradient descent.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reference import linear_regression
from reference.data import Split
from reference.gradient_descent import Descent, by_hand, with_autograd, with_loss, with_torch
from reference.linear_regression import Line, diabetes, r2_score
from specs.harness import rule, spec
from specs.harness.observations import Observe

LEAST_SQUARES_PAGE = "https://scikit-learn.org/stable/modules/linear_model.html"
LINEAR_PAGE = "https://docs.pytorch.org/docs/stable/generated/torch.nn.Linear.html"
MSE_PAGE = "https://docs.pytorch.org/docs/stable/generated/torch.nn.MSELoss.html"
SGD_PAGE = "https://docs.pytorch.org/docs/stable/generated/torch.optim.SGD.html"
SCALING_PAGE = "https://scikit-learn.org/stable/modules/preprocessing.html"
R2_PAGE = "https://scikit-learn.org/stable/modules/model_evaluation.html#r2-score"

#: The features used: sex, body mass index, blood pressure, logarithm of the triglycerides.
FOUR = [1, 2, 3, 8]


def measured() -> Split:
    """The four measurements in their own units, for training (353, 4) and held out (89, 4)."""
    split = diabetes()
    return split._replace(
        train_inputs=split.train_inputs[:, FOUR], test_inputs=split.test_inputs[:, FOUR]
    )


def standardised() -> Split:
    """The same with mean 0 and standard deviation 1. The held-out part does not count for these."""
    split = measured()
    inputs, mean, std = linear_regression.standardise(split.train_inputs)
    return split._replace(train_inputs=inputs, test_inputs=(split.test_inputs - mean) / std)


def stops_early(inputs: Tensor, targets: Tensor, *, lr: float, steps: int) -> Descent:
    """Takes a tenth of the steps."""
    return by_hand(inputs, targets, lr=lr, steps=steps // 10)


@rule(
    "LIN-01",
    "A linear model that is trained on the mean squared error ends at the weights of the normal"
    " equations, (X.T @ X) @ w = X.T @ y.",
    kind="contract",
    source=LEAST_SQUARES_PAGE,
    subject=[by_hand, with_autograd, with_loss, with_torch],
    violated_by=[stops_early],
)
def test_training_ends_at_the_closed_form(gradient_descent: Any, observe: Observe) -> None:
    """There is one minimum, and three ways to it: steps, a linear system, and scikit-learn."""
    from sklearn.linear_model import LinearRegression

    x, y, *_ = standardised()

    weights, bias, _ = gradient_descent(x, y, lr=0.3, steps=100)

    observe("weights", weights)
    by_system = linear_regression.normal_equations(x, y)
    assert weights.tolist() == pytest.approx(by_system.weights.tolist(), rel=1e-9)
    assert bias.item() == pytest.approx(by_system.bias.item(), rel=1e-9)
    by_scikit_learn = LinearRegression().fit(x.numpy(), y.numpy())
    assert weights.tolist() == pytest.approx(by_scikit_learn.coef_.tolist(), rel=1e-9)
    assert bias.item() == pytest.approx(by_scikit_learn.intercept_, rel=1e-9)


def through_the_origin(inputs: Tensor, targets: Tensor, alpha: float = 0.0) -> Line:
    """Has no bias."""
    matrix = inputs.T @ inputs + alpha * torch.eye(inputs.shape[1], dtype=inputs.dtype)
    return Line(torch.linalg.solve(matrix, inputs.T @ targets), torch.zeros(()))


def penalises_the_mean(inputs: Tensor, targets: Tensor, alpha: float = 0.0) -> Line:
    """Takes alpha for a penalty on the mean squared error, and not on the sum."""
    return linear_regression.normal_equations(inputs, targets, alpha * len(inputs))


def shrinks_a_little(inputs: Tensor, targets: Tensor, alpha: float = 0.0) -> Line:
    """Penalises large weights where nothing is asked for."""
    return linear_regression.normal_equations(inputs, targets, alpha + 1.0)


@spec(
    "LIN-01",
    subject=linear_regression.normal_equations,
    violated_by=[through_the_origin, penalises_the_mean, shrinks_a_little],
)
def test_the_closed_form_is_that_of_linear_regression_and_ridge(normal_equations: Any) -> None:
    """All ten features in their own units, without and with a penalty of alpha * sum(w**2)."""
    from sklearn.linear_model import LinearRegression, Ridge

    x, y, *_ = diabetes()

    for alpha, estimator in [(0.0, LinearRegression()), (3.0, Ridge(alpha=3.0))]:
        line = normal_equations(x, y, alpha)
        estimator.fit(x.numpy(), y.numpy())
        assert line.weights.tolist() == pytest.approx(estimator.coef_.tolist(), rel=1e-6)
        assert line.bias.item() == pytest.approx(estimator.intercept_, rel=1e-6)


@rule(
    "LIN-02",
    "At the best weights the residuals sum to 0 and are orthogonal to every feature: no feature can"
    " explain any more of them.",
    kind="contract",
    source=LEAST_SQUARES_PAGE,
    subject=linear_regression.normal_equations,
    violated_by=[through_the_origin, shrinks_a_little],
)
def test_nothing_is_left_that_a_feature_could_explain(normal_equations: Any) -> None:
    """This is the gradient of the loss, -2 / n * x.T @ residuals, at 0."""
    x, y, *_ = measured()

    best = normal_equations(x, y)
    residuals = y - best.predict(x)

    size = y.norm() * x.norm()  # of the products that cancel
    assert abs(residuals.sum()) < 1e-12 * size
    assert (x.T @ residuals).abs().max() < 1e-12 * size


# ---------------------------------------------------------------------------------------------
# Bias, shapes and units


class NoBias(nn.Linear):
    """A layer without a bias."""

    def __init__(self, in_features: int, out_features: int, **options: Any) -> None:
        super().__init__(in_features, out_features, bias=False, **options)


def trained(model: nn.Module, optimizer: Any, inputs: Tensor, targets: Tensor) -> Tensor:
    """Trains for 100 steps of all samples, and returns the predictions, of shape (n,)."""
    for _ in range(100):
        optimizer.zero_grad()
        F.mse_loss(model(inputs).squeeze(1), targets).backward()
        optimizer.step()
    return model(inputs).detach().squeeze(1)


@rule(
    "LIN-03",
    "Give a linear model a bias: it is the prediction where every feature is 0, which for centred"
    " features is the mean of the targets.",
    kind="practice",
    source=LINEAR_PAGE,
    subject=nn.Linear,
    violated_by=[NoBias],
    consequence="without one, on standardised features, R^2 is -3.2 in place of 0.52: the model has"
    " nothing to say 152 with, the mean of the progressions",
)
def test_the_bias_is_the_mean_of_the_targets(Linear: Any, observe: Observe) -> None:
    """R^2 (LIN-06) is 1 at best, and 0 for a model that always predicts the mean."""
    x, y, *_ = standardised()
    model = Linear(4, 1, dtype=torch.float64)

    predictions = trained(model, torch.optim.SGD(model.parameters(), lr=0.3), x, y)

    observe("R^2", r2_score(y, predictions))
    assert r2_score(y, predictions) > 0.5
    at_zero = model(torch.zeros(1, 4, dtype=torch.float64)).item()
    assert at_zero == pytest.approx(y.mean().item())


def forgets_to_squeeze(inputs: Tensor, targets: Tensor, *, lr: float, steps: int) -> Descent:
    """Compares predictions of shape (n, 1) with targets of shape (n,)."""
    model = nn.Linear(inputs.shape[1], 1, dtype=inputs.dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        ((model(inputs) - targets) ** 2).mean().backward()
        optimizer.step()
    return Descent(model.weight.detach()[0], model.bias.detach()[0], [])


@rule(
    "LIN-04",
    "Give the loss predictions and targets of one shape: squeeze the (n, 1) that nn.Linear returns,"
    " or give the targets a second dimension.",
    kind="practice",
    source=MSE_PAGE,
    subject=with_torch,
    violated_by=[forgets_to_squeeze],
    consequence="(n, 1) and (n,) broadcast to (n, n): each prediction is compared with all targets,"
    " and the model learns their mean, with an R^2 of 0 in place of 0.52",
)
def test_the_model_learns_more_than_the_mean(gradient_descent: Any) -> None:
    """With the wrong shapes the loss falls, too, and all that PyTorch does about it is to warn."""
    x, y, *_ = standardised()

    weights, bias, _ = gradient_descent(x, y, lr=0.3, steps=100)

    assert r2_score(y, x @ weights + bias) > 0.5
    assert weights.abs().min() > 5


def multiplies_by_std(line: Line, mean: Tensor, std: Tensor) -> Line:
    """Scales the weights as the features were to be scaled back."""
    return Line(line.weights * std, line.bias - (line.weights * std * mean).sum())


def keeps_the_bias(line: Line, mean: Tensor, std: Tensor) -> Line:  # noqa: ARG001
    """Forgets that the features are not centred any more."""
    return Line(line.weights / std, line.bias)


@rule(
    "LIN-05",
    "A model of standardised features is a model of the measured ones: divide each weight by the"
    " standard deviation, and subtract sum(weights * mean / std) from the bias.",
    kind="contract",
    source=SCALING_PAGE,
    subject=linear_regression.in_original_units,
    violated_by=[multiplies_by_std, keeps_the_bias],
)
def test_the_units_change_the_weights_and_no_predictions(in_original_units: Any) -> None:
    """Standardised weights compare the features; those in units say what 1 kg / m**2 goes with."""
    split = measured()
    scaled, mean, std = linear_regression.standardise(split.train_inputs)
    weights, bias, _ = with_torch(scaled, split.train_targets, lr=0.3, steps=100)

    line = in_original_units(Line(weights, bias), mean, std)

    as_trained = (split.test_inputs - mean) / std @ weights + bias
    assert line.predict(split.test_inputs).tolist() == pytest.approx(as_trained.tolist())
    fitted = linear_regression.normal_equations(split.train_inputs, split.train_targets)
    assert line.weights.tolist() == pytest.approx(fitted.weights.tolist(), rel=1e-6)
    assert line.weights[1] == pytest.approx(6.8, abs=0.1)  # more progression for 1 kg / m**2


def squared_correlation(targets: Tensor, predictions: Tensor) -> float:
    """Forgives predictions that are too large, too small, or of the wrong sign."""
    return torch.corrcoef(torch.stack([targets, predictions]))[0, 1].item() ** 2


@rule(
    "LIN-06",
    "R^2 is 1 - sum((y - prediction)**2) / sum((y - mean(y))**2): 1 for perfect predictions, 0 for"
    " those of the mean, and negative for worse ones.",
    kind="contract",
    source=R2_PAGE,
    subject=linear_regression.r2_score,
    violated_by=[squared_correlation],
)
def test_r2_compares_a_model_with_the_mean(r2_score: Any) -> None:
    """On the data that it was fitted to, and with a bias, a line is never worse than the mean."""
    from sklearn.metrics import r2_score as by_scikit_learn

    x, y, x_new, y_new = standardised()
    line = linear_regression.normal_equations(x, y)
    predictions = line.predict(x_new)

    assert r2_score(y, line.predict(x)) == pytest.approx(0.518, abs=0.001)
    assert r2_score(y_new, predictions) == pytest.approx(0.334, abs=0.001)  # new patients
    assert r2_score(y_new, y_new) == 1
    for other in (predictions, predictions + 50, -predictions, y_new.mean() + 0 * y_new):
        expected = by_scikit_learn(y_new.numpy(), other.numpy())
        assert r2_score(y_new, other) == pytest.approx(expected, abs=1e-12)
    assert r2_score(y_new, -predictions) < 0


def first_ten_features(inputs: Tensor, targets: Tensor) -> Line:
    """Gives a weight to the first ten features only."""
    weights, bias = linear_regression.normal_equations(inputs[:, :10], targets)
    return Line(torch.cat([weights, torch.zeros(inputs.shape[1] - 10).double()]), bias)


@rule(
    "LIN-07",
    "A model with a higher R^2 is the better one.",
    kind="claim",
    source=R2_PAGE,
    subject=linear_regression.normal_equations,
    violated_by=[first_ten_features],
    consequence="a hundred columns of random numbers raise R^2 from 0.55 to 0.66 or more on the"
    " patients that the model was fitted to, and lower it from 0.33 to 0.23 or less on new ones",
    verdict="holds if R^2 is measured on data that the model was not fitted to",
)
def test_noise_raises_r2_on_known_patients_and_lowers_it_on_new_ones(normal_equations: Any) -> None:
    """Least squares uses every column that it gets. Six seeds: 0.66 to 0.70, and 0.00 to 0.23."""
    x, y, x_new, y_new = diabetes()
    line = normal_equations(x, y)
    fitted, new = r2_score(y, line.predict(x)), r2_score(y_new, line.predict(x_new))

    for seed in range(3):
        noise = torch.randn(442, 100, generator=torch.Generator().manual_seed(seed)).double()
        wide, wide_new = torch.cat([x, noise[:353]], dim=1), torch.cat([x_new, noise[353:]], dim=1)
        line = normal_equations(wide, y)
        assert r2_score(y, line.predict(wide)) > fitted + 0.05
        assert r2_score(y_new, line.predict(wide_new)) < new - 0.03


# ---------------------------------------------------------------------------------------------
# Weight decay, and features that say the same


class HalvesTheDecay(torch.optim.SGD):
    """Has half the weight decay that was asked for, as if the penalty were w**2 / 4."""

    def add_param_group(self, group: dict[str, Any]) -> None:
        super().add_param_group(self.defaults | group)
        self.param_groups[-1]["weight_decay"] /= 2


class OneDecayForAll(torch.optim.SGD):
    """Uses the weight decay of the first group for every group."""

    def add_param_group(self, group: dict[str, Any]) -> None:
        super().add_param_group(group)
        self.param_groups[-1]["weight_decay"] = self.param_groups[0]["weight_decay"]


@rule(
    "LIN-08",
    "SGD's weight decay makes linear regression a ridge regression, alpha = n * weight_decay / 2,"
    " if the bias is in a group of its own without decay.",
    kind="contract",
    source=SGD_PAGE,
    subject=torch.optim.SGD,
    violated_by=[HalvesTheDecay, OneDecayForAll],
    consequence="with weight_decay=0.1 on the bias, too, predictions are 7.2 too low on average",
)
def test_weight_decay_is_the_penalty_of_ridge(SGD: Any) -> None:
    """SGD adds weight_decay * w to the gradient: the slope of weight_decay / 2 * sum(w**2).

    Ridge regression has the sum of n squares for their mean, and so n times the penalty.
    """
    from sklearn.linear_model import Ridge

    x, y, *_ = standardised()
    for weight_decay in (0.01, 0.1, 1.0):
        model = nn.Linear(4, 1, dtype=torch.float64)
        weights = {"params": [model.weight], "weight_decay": weight_decay}
        trained(model, SGD([weights, {"params": [model.bias]}], lr=0.3), x, y)

        ridge = Ridge(alpha=353 * weight_decay / 2).fit(x.numpy(), y.numpy())
        assert model.weight[0].tolist() == pytest.approx(ridge.coef_.tolist())
        assert model.bias.item() == pytest.approx(ridge.intercept_)


@spec("LIN-08", violated_by=[HalvesTheDecay])
def test_a_decayed_bias_lowers_the_predictions(SGD: Any) -> None:
    """Of the biases b, mean / 1.05 has the smallest (b - mean)**2 + 0.1 / 2 * b**2."""
    x, y, *_ = standardised()
    model = nn.Linear(4, 1, dtype=torch.float64)
    predictions = trained(model, SGD(model.parameters(), lr=0.3, weight_decay=0.1), x, y)

    assert model.bias.item() == pytest.approx(y.mean().item() / 1.05)
    assert (y - predictions).mean() == pytest.approx(7.2, abs=0.1)


def starts_elsewhere(inputs: Tensor, targets: Tensor, *, lr: float, steps: int) -> Descent:
    """Starts with 100 for the last weight: it ends at the same predictions by other weights."""
    start = torch.zeros_like(inputs[0])
    start[-1] = 100.0
    weights, bias, losses = by_hand(inputs, targets - inputs @ start, lr=lr, steps=steps)
    return Descent(weights + start, bias, losses)


@rule(
    "LIN-09",
    "If features depend on each other, the data determine the predictions and not the weights;"
    " gradient descent from 0 finds the shortest ones.",
    kind="contract",
    source=LEAST_SQUARES_PAGE,
    subject=[by_hand, with_torch],
    violated_by=[starts_elsewhere],
)
def test_a_feature_that_is_there_twice_shares_its_weight(gradient_descent: Any) -> None:
    """So do not read a weight as the importance of a feature before you know the other features."""
    x, y, *_ = standardised()
    best = linear_regression.normal_equations(x, y)
    twice = torch.cat([x, x[:, 1:2]], dim=1)  # the body mass index once more

    weights, bias, _ = gradient_descent(twice, y, lr=0.3, steps=150)

    sex, bmi, pressure, triglycerides = best.weights.tolist()
    expected = [sex, bmi / 2, pressure, triglycerides, bmi / 2]
    assert (twice @ weights + bias).tolist() == pytest.approx(best.predict(x).tolist())
    assert weights.tolist() == pytest.approx(expected)

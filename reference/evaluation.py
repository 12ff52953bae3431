"""Evaluation: measure a model without changing it, and keep the best one.

Source: https://docs.pytorch.org/docs/stable/notes/autograd.html#locally-disabling-gradient-computation
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf

from torch import Tensor, nn

from reference.modes import evaluating


def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    metric: Callable[[Tensor, Tensor], Tensor],
) -> float:
    """Mean of a metric over all samples, in eval mode and without gradients.

    `metric(outputs, targets)` is itself a mean over the samples of a batch, as the losses are, so
    the mean over all N samples is the sum of n_i * metric_i over the batches of n_i samples,
    divided by N. Afterwards every module is in the mode that it was in before.

    Raises ValueError if there are no samples.
    """
    total, samples = 0.0, 0
    with evaluating(model):
        for inputs, targets in batches:
            total += metric(model(inputs), targets).item() * len(inputs)
            samples += len(inputs)
    if samples == 0:
        raise ValueError("there are no samples to evaluate on")
    return total / samples


class KeepBest:
    """A validation that keeps a copy of the state whenever its value is the smallest so far.

    It stands in for the `validate` that it wraps, whose value may be a loss in any unit. An equal
    value or a NaN is no improvement.

    Source: https://docs.pytorch.org/tutorials/beginner/saving_loading_models.html
    """

    def __init__(self, model: nn.Module, validate: Callable[[], float]) -> None:
        self.model = model
        self.validate = validate
        self.best = inf
        self.state = self.copied_state()

    def __call__(self) -> float:
        value = self.validate()
        if value < self.best:
            self.best = value
            self.state = self.copied_state()
        return value

    def copied_state(self) -> dict[str, Tensor]:
        """Parameters and buffers. state_dict() alone refers to tensors that go on changing."""
        return {name: value.clone() for name, value in self.model.state_dict().items()}

    def restore(self) -> None:
        """Give the model the state in which it was best."""
        self.model.load_state_dict(self.state)

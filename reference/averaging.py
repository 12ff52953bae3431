"""Averages of a model's weights over its training: the moving one (EMA), and the equal one (SWA).

Source: https://docs.pytorch.org/docs/stable/optim.html#weight-averaging-swa-and-ema
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

#: From the average so far, a new value and the number of values averaged so far: the new average.
Update = Callable[[Tensor, Tensor, int], Tensor]


def exponential_average(values: Sequence[float], decay: float) -> list[float]:
    """The moving average after each value: the first value, then d * average + (1 - d) * value.

    So after n values the first one weighs d ** (n - 1), and the one k steps before the last
    (1 - d) * d ** k. Values in any unit, averages in the same; none for no values.

    Raises ValueError for a decay outside [0, 1].
    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.swa_utils.AveragedModel.html
    """
    if not 0 <= decay <= 1:
        raise ValueError(f"decay must lie in [0, 1], got {decay}")
    averages: list[float] = []
    for value in values:
        averages.append(decay * averages[-1] + (1 - decay) * value if averages else value)
    return averages


def equal_average(values: Sequence[float]) -> list[float]:
    """The plain mean of all values so far, after each value; none for no values.

    Source: Izmailov et al., Averaging Weights Leads to Wider Optima and Better Generalization,
    https://arxiv.org/abs/1803.05407
    """
    return [math.fsum(values[: n + 1]) / (n + 1) for n in range(len(values))]


class AveragedModel(nn.Module):
    """A copy of a model whose parameters are an average of those that the model has had.

    The first `update_parameters` copies the model. Each later one sets every parameter to
    avg_fn(average, parameter, number averaged so far), by default their equal average. Buffers,
    such as BatchNorm's statistics, are copied from the model each time, or averaged in the same
    way with `use_buffers`.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.swa_utils.AveragedModel.html
    """

    def __init__(
        self, model: nn.Module, avg_fn: Update | None = None, use_buffers: bool = False
    ) -> None:
        super().__init__()
        self.module = copy.deepcopy(model)
        self.avg_fn, self.use_buffers = avg_fn or _equal, use_buffers
        self.n_averaged = 0

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.module(inputs)
        return outputs

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Take the model's present parameters into the average."""
        averaged = {name for name, _ in model.named_parameters()}
        if self.use_buffers:
            averaged |= {name for name, _ in model.named_buffers()}
        mine = self.module.state_dict()
        for name, value in model.state_dict().items():
            if name in averaged and self.n_averaged > 0:
                value = self.avg_fn(mine[name], value, self.n_averaged)
            mine[name].copy_(value)
        self.n_averaged += 1


def _equal(average: Tensor, value: Tensor, number: int) -> Tensor:
    return average + (value - average) / (number + 1)


def update_bn(loader: Iterable[Any], model: nn.Module) -> None:
    """Set the statistics of every BatchNorm to those of the activations that it gets now.

    One pass in training mode, without gradients, over batches of inputs, or of tuples that begin
    with the inputs. running_mean becomes the mean of the batch means, running_var the mean of the
    unbiased batch variances; each batch counts alike, whatever its size. Modes are put back.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.swa_utils.update_bn.html
    """
    layers = [module for module in model.modules() if isinstance(module, BATCH_NORMS)]
    seen: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {layer: [] for layer in layers}

    def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        channels = inputs[0].transpose(0, 1).flatten(start_dim=1)
        seen[layer].append((channels.mean(dim=1), channels.var(dim=1)))

    was_training = model.training
    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    model.train()
    with torch.no_grad():
        for batch in loader if layers else ():
            model(batch[0] if isinstance(batch, list | tuple) else batch)
        for layer in layers:
            means, variances = zip(*seen[layer], strict=True)
            layer.running_mean.copy_(torch.stack(means).mean(dim=0))  # type: ignore[union-attr]
            layer.running_var.copy_(torch.stack(variances).mean(dim=0))  # type: ignore[union-attr]
    for hook in hooks:
        hook.remove()
    model.train(was_training)


def swa_learning_rate(
    t: int, lr: float, swa_lr: float, anneal_epochs: int = 10, anneal_strategy: str = "cos"
) -> float:
    """The rate that SWALR gives at step t: from `lr` to `swa_lr` in `anneal_epochs` steps.

    (1 - a) * lr + a * swa_lr, where a = t / anneal_epochs, at most 1, for "linear", and
    a = (1 - cos(pi * t / anneal_epochs)) / 2 for "cos". With no steps to anneal it is swa_lr.

    Raises ValueError for another strategy and for a negative number of epochs.
    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.swa_utils.SWALR.html
    """
    if anneal_epochs < 0 or anneal_strategy not in ("cos", "linear"):
        raise ValueError(f"cannot anneal by {anneal_strategy!r} in {anneal_epochs} epochs")
    done = min(1.0, t / anneal_epochs) if anneal_epochs else 1.0
    share = done if anneal_strategy == "linear" else (1 - math.cos(math.pi * done)) / 2
    return (1 - share) * lr + share * swa_lr

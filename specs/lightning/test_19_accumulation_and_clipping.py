"""Between backward and step: accumulate_grad_batches and gradient_clip_val.

At the end you know what the Trainer divides the loss by, what it does with the batches that are
left over at the end of an epoch, and which gradient it clips. How it clips is told in
test_20_gradient_clipping.py, what the plain loop does about both in
specs/optimizers/test_05_clipping_and_accumulation.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import DataLoader

from reference.training import clip_grad_norm_
from specs.harness import known_bug, rule, spec
from specs.harness.agreement import agree
from specs.harness.observations import Observe
from specs.harness.optional import optional

pl: Any = optional("pytorch_lightning")
quiet = optional("reference.lightning_modules").quiet

TRAINER_PAGE = (
    "https://lightning.ai/docs/pytorch/stable/common/trainer.html#accumulate-grad-batches"
)
CLIPPING_PAGE = (
    "https://lightning.ai/docs/pytorch/stable/advanced/training_tricks.html#gradient-clipping"
)


class MeanOfInputs(pl.LightningModule):
    """Its loss is the mean of weight * input, so a batch's gradient is the mean of its inputs.

    `gradients` keeps what each step of the optimizer has used.
    """

    def __init__(self, inputs: list[float], batch_size: int = 1) -> None:
        super().__init__()
        self.weight: Any = nn.Parameter(torch.ones(1, dtype=torch.float64))
        self.inputs, self.batch_size = inputs, batch_size
        self.gradients: list[float] = []

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(torch.tensor(self.inputs, dtype=torch.float64), self.batch_size)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return (self.weight * batch).mean()

    def configure_optimizers(self) -> Any:
        optimizer = SGD(self.parameters(), lr=0.1)
        optimizer.register_step_post_hook(lambda *_: self.gradients.append(self.weight.grad.item()))
        return optimizer


# --- Accumulation ---------------------------------------------------------------------------------

#: Inputs, batch size, accumulate_grad_batches, and the gradient of each step of an epoch.
WINDOWS: list[tuple[list[float], int, int, list[float]]] = [
    ([1, 2, 3, 4], 1, 1, [1, 2, 3, 4]),
    ([1, 2, 3, 4], 1, 2, [(1 + 2) / 2, (3 + 4) / 2]),
    # One batch is left over. It steps alone, and is divided by 3.
    ([1, 2, 3, 4], 1, 3, [(1 + 2 + 3) / 3, 4 / 3]),
    ([1, 2, 3, 4, 5, 6], 1, 4, [(1 + 2 + 3 + 4) / 4, (5 + 6) / 4]),
    ([1, 2, 3, 4, 5, 6, 7, 8, 9], 1, 8, [36 / 8, 9 / 8]),
    # An epoch that is shorter than the window makes one step.
    ([6, 2], 1, 8, [(6 + 2) / 8]),
    # Batches of two samples, and a last batch of one: it weighs as much as a full one. The mean
    # over the five samples would be 5.
    ([1, 3, 5, 7, 9], 2, 3, [(2 + 6 + 9) / 3]),
]


def scaling_gradients(scale: Callable[[int, int], float]) -> Any:
    """A callback that multiplies the gradient before each step by scale(n, k), for n batches that
    were accumulated and k that were asked for."""

    class Scales(pl.Callback):
        def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
            k = trainer.accumulate_grad_batches
            n = trainer.fit_loop.batch_idx % k + 1
            module.weight.grad *= scale(n, k)

    return Scales()


class AddsUp(pl.Trainer):
    """Divides by nothing: the step is as many times too long as batches are accumulated."""

    def __init__(self, **options: Any) -> None:
        super().__init__(callbacks=[scaling_gradients(lambda _, k: k)], **options)


class DividesByTheBatchesThereAre(pl.Trainer):
    """Divides every window by the number of its own batches."""

    def __init__(self, **options: Any) -> None:
        super().__init__(callbacks=[scaling_gradients(lambda n, k: k / n)], **options)


class DropsWhatIsLeftOver(pl.Trainer):
    """Forgets the batches that do not fill a window."""

    def __init__(self, **options: Any) -> None:
        super().__init__(callbacks=[scaling_gradients(lambda n, k: n == k)], **options)


class StepsAfterEveryBatch(pl.Trainer):
    """Ignores accumulate_grad_batches."""

    def __init__(self, accumulate_grad_batches: int, **options: Any) -> None:
        super().__init__(**options)


@rule(
    "PL-18",
    "accumulate_grad_batches=k divides each batch's loss by k and steps after k batches and at the"
    " end of the epoch, where the batches left over are divided by k, too.",
    kind="contract",
    source=TRAINER_PAGE,
    subject=pl.Trainer,
    violated_by=[AddsUp, DividesByTheBatchesThereAre, DropsWhatIsLeftOver, StepsAfterEveryBatch],
    consequence="one batch left over with k=8 makes a step of an eighth of its gradient, at the"
    " full learning rate",
)
def test_each_window_is_divided_by_the_full_number(Trainer: Any) -> None:
    """Every epoch starts a new window: nothing is carried over."""
    for inputs, batch_size, k, gradients in WINDOWS:
        module = MeanOfInputs(inputs, batch_size)
        trainer = Trainer(**quiet(max_epochs=2, accumulate_grad_batches=k))

        trainer.fit(module)

        assert agree(module.gradients, [*gradients, *gradients], scale=10.0), (inputs, k)
        assert trainer.global_step == 2 * len(gradients)


@spec(
    "PL-18",
    subject=[
        known_bug(pl.Trainer, "https://github.com/Lightning-AI/pytorch-lightning/issues/19987"),
        DividesByTheBatchesThereAre,
    ],
    violated_by=[AddsUp, DropsWhatIsLeftOver],
)
def test_what_is_left_over_should_be_divided_by_its_own_number(Trainer: Any) -> None:
    """Then every step would follow a mean. Until it does, leave nothing over: choose k so that it
    divides the number of batches, or limit_train_batches."""
    module = MeanOfInputs([1, 2, 3, 4, 5], batch_size=1)

    Trainer(**quiet(max_epochs=1, accumulate_grad_batches=3)).fit(module)

    assert agree(module.gradients, [(1 + 2 + 3) / 3, (4 + 5) / 2], scale=10.0)


class HandsOutWholeLosses(pl.Trainer):
    """Gives hooks the loss that training_step has returned."""

    def fit(self, model: Any) -> None:
        keep = model.on_train_batch_end

        def multiplied(outputs: Any, *others: Any) -> None:
            keep({"loss": outputs["loss"] * self.accumulate_grad_batches}, *others)

        model.on_train_batch_end = multiplied
        super().fit(model)


class LogsDividedLosses(pl.Trainer):
    """Divides what is logged, too."""

    @property
    def callback_metrics(self) -> dict[str, Any]:
        metrics = super().callback_metrics
        return {name: value / self.accumulate_grad_batches for name, value in metrics.items()}


@spec("PL-18", violated_by=[HandsOutWholeLosses, LogsDividedLosses])
def test_hooks_get_the_divided_loss_and_the_log_the_whole_one(Trainer: Any) -> None:
    """A callback that adds up outputs["loss"] shows a loss that is k times too small."""

    class Compares(MeanOfInputs):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            self.log("loss", loss)
            return loss

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            self.handed_out, self.logged = outputs["loss"], self.trainer.callback_metrics["loss"]

    module = Compares([6.0])
    Trainer(**quiet(max_epochs=1, accumulate_grad_batches=3)).fit(module)

    # The weight is 1, so the loss is the input.
    assert (module.handed_out, module.logged) == (6.0 / 3, 6.0)


# --- Clipping -------------------------------------------------------------------------------------


class ClipsEachBatch(pl.Trainer):
    """Clips after every backward."""

    def __init__(self, gradient_clip_val: float, **options: Any) -> None:
        class Clips(pl.Callback):
            def on_after_backward(self, trainer: Any, module: Any) -> None:
                clip_grad_norm_(module.parameters(), gradient_clip_val)

        super().__init__(callbacks=[Clips()], **options)


class ClipsTheSum(pl.Trainer):
    """Clips what was added up, and divides it then."""

    def __init__(self, gradient_clip_val: float, accumulate_grad_batches: int, **o: Any) -> None:
        super().__init__(
            gradient_clip_val=gradient_clip_val / accumulate_grad_batches,
            accumulate_grad_batches=accumulate_grad_batches,
            **o,
        )


class Watches(MeanOfInputs):
    """Notes the gradient in two hooks, too."""

    def on_train_start(self) -> None:
        self.after_backward: list[float] = []
        self.before_the_step: list[float] = []

    def on_after_backward(self) -> None:
        self.after_backward.append(self.weight.grad.item())

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.before_the_step.append(self.weight.grad.item())


@rule(
    "PL-67",
    "Clipping comes once for each optimizer step: after the last backward of a window, on the"
    " accumulated gradient, and after on_before_optimizer_step.",
    kind="contract",
    source=CLIPPING_PAGE,
    subject=pl.Trainer,
    violated_by=[ClipsEachBatch, ClipsTheSum],
)
def test_the_accumulated_gradient_is_clipped_once(Trainer: Any, observe: Observe) -> None:
    """Batches that contradict each other cancel before clipping. on_before_optimizer_step is the
    place to log the norm in: there the gradient is whole, and not yet clipped."""
    module = Watches([10.0, -8.0, 4.0, 0.4])

    options = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.5}
    Trainer(**quiet(max_epochs=1, **options)).fit(module)

    observe("gradients used", module.gradients)
    assert agree(module.after_backward, [10 / 2, (10 - 8) / 2, 4 / 2, (4 + 0.4) / 2], scale=10.0)
    assert agree(module.before_the_step, [1.0, 2.2], scale=10.0)
    assert agree(module.gradients, [0.5 / (1.0 + 1e-6) * 1.0, 0.5 / (2.2 + 1e-6) * 2.2])

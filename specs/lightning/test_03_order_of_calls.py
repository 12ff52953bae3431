"""The order of calls: what a Trainer does in fit, batch by batch and epoch by epoch.

At the end you know when each method of a module is called, and in which of them the gradients of
the batch can be seen. The loop that a Trainer runs stands here in plain Python, and is judged
beside it: a module cannot tell the two apart.

`quiet(...)` holds the options of a Trainer on one CPU that prints and writes nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.utils.data import DataLoader, TensorDataset

from specs.harness import rule, spec
from specs.harness.agreement import agree
from specs.harness.observations import Observe
from specs.harness.optional import optional

pl = optional("pytorch_lightning")
modules = optional("reference.lightning_modules")

MODULE_PAGE = "https://lightning.ai/docs/pytorch/stable/common/lightning_module.html"

Batch = tuple[Tensor, Tensor]


class Line(pl.LightningModule):
    """Learns y = 2x with one weight, which starts at 0, from batches of x = 1 and y = 2."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        x, y = batch
        return (self(x) - y).square().mean()

    def configure_optimizers(self) -> Any:
        return SGD(self.parameters(), lr=0.1)

    def train_dataloader(self) -> Any:
        ones = torch.ones(2, 1)
        return DataLoader(TensorDataset(ones, 2 * ones), batch_size=1)


# --- The order of calls ---------------------------------------------------------------------------


HOOKS = (
    "on_fit_start",
    "on_train_start",
    "on_train_epoch_start",
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
    "on_validation_epoch_start",
    "on_validation_epoch_end",
    "on_train_epoch_end",
    "on_train_end",
    "on_fit_end",
)


class Diary(Line):
    """Writes down what is called, and which gradient the weight has at that moment."""

    def __init__(self) -> None:
        super().__init__()
        self.called: list[tuple[str, float | None]] = []
        for name in HOOKS:
            setattr(self, name, lambda *_, name=name: self.note(name))

    def note(self, name: str) -> None:
        gradient = self.layer.weight.grad
        self.called.append((name, None if gradient is None else round(gradient.item(), 4)))

    def configure_optimizers(self) -> Any:
        self.note("configure_optimizers")
        optimizer = super().configure_optimizers()
        optimizer.register_step_pre_hook(lambda *_: self.note("step pre hook"))
        optimizer.register_step_post_hook(lambda *_: self.note("the weight has moved"))
        return optimizer

    def train_dataloader(self) -> Any:
        self.note("train_dataloader")
        return super().train_dataloader()

    def val_dataloader(self) -> Any:
        return super().train_dataloader()

    def optimizer_step(self, epoch: int, batch: int, optimizer: Any, closure: Any) -> None:
        self.note("optimizer_step")
        optimizer.step(closure)

    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        self.note("training_step")
        return super().training_step(batch, batch_idx)

    def optimizer_zero_grad(self, epoch: int, batch: int, optimizer: Optimizer) -> None:
        self.note("optimizer_zero_grad")
        optimizer.zero_grad()

    def backward(self, loss: Tensor) -> None:
        self.note("backward")
        loss.backward()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.note("validation_step")


IN_A_BATCH = [
    "on_train_batch_start",
    "optimizer_step",  # calls optimizer.step with a closure, in which all the rest is done
    "step pre hook",  # of torch's optimizer: before the forward pass
    "training_step",
    "on_before_zero_grad",
    "optimizer_zero_grad",  # after the forward pass, before the backward pass
    "on_before_backward",
    "backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "the weight has moved",
    "on_train_batch_end",
]
IN_AN_EPOCH = [
    "on_train_epoch_start",
    *IN_A_BATCH * 2,
    "on_validation_epoch_start",
    *["validation_step"] * 2,
    "on_validation_epoch_end",
    "on_train_epoch_end",  # the validation is a part of the training epoch
]
IN_FIT = [
    "configure_optimizers",
    "on_fit_start",
    "train_dataloader",
    "on_train_start",
    *IN_AN_EPOCH * 2,
    "on_train_end",
    "on_fit_end",
]


class Loop:
    """What fit does, written out: without devices, callbacks and logs, for one optimizer."""

    def __init__(self, max_epochs: int, **_: Any) -> None:
        self.max_epochs = max_epochs

    def fit(self, module: Any) -> None:
        optimizer = module.configure_optimizers()
        module.on_fit_start()
        batches = module.train_dataloader()
        module.on_train_start()
        for _ in range(self.max_epochs):
            module.on_train_epoch_start()
            for number, batch in enumerate(batches):
                module.on_train_batch_start(batch, number)
                self.step(module, optimizer, batch, number)
                module.on_train_batch_end(None, batch, number)
            self.end_epoch(module)
        module.on_train_end()
        module.on_fit_end()

    def step(self, module: Any, optimizer: Any, batch: Batch, number: int) -> None:
        def closure() -> Tensor:
            loss = module.training_step(batch, number)
            self.differentiate(module, optimizer, loss)
            return loss

        module.optimizer_step(0, number, optimizer, closure)

    def differentiate(self, module: Any, optimizer: Any, loss: Tensor) -> None:
        module.on_before_zero_grad(optimizer)
        module.optimizer_zero_grad(0, 0, optimizer)
        module.on_before_backward(loss)
        module.backward(loss)
        module.on_after_backward()
        module.on_before_optimizer_step(optimizer)

    def end_epoch(self, module: Any) -> None:
        self.validate(module)
        module.on_train_epoch_end()

    def validate(self, module: Any) -> None:
        module.on_validation_epoch_start()
        for number, batch in enumerate(module.val_dataloader()):
            module.validation_step(batch, number)
        module.on_validation_epoch_end()


class StepsAfterwards(Loop):
    """Computes first and steps then, without a closure, as most loops by hand do."""

    def step(self, module: Any, optimizer: Any, batch: Batch, number: int) -> None:
        loss = module.training_step(batch, number)
        self.differentiate(module, optimizer, loss)
        module.optimizer_step(0, number, optimizer, None)


class ForgetsGradientsTooLate(Loop):
    """Calls zero_grad between backward and step: there is nothing left to step with."""

    def differentiate(self, module: Any, optimizer: Any, loss: Tensor) -> None:
        module.on_before_backward(loss)
        module.backward(loss)
        module.on_after_backward()
        module.on_before_zero_grad(optimizer)
        module.optimizer_zero_grad(0, 0, optimizer)
        module.on_before_optimizer_step(optimizer)


class NeverForgets(Loop):
    """Calls no zero_grad: the gradients of all batches add up."""

    def differentiate(self, module: Any, optimizer: Any, loss: Tensor) -> None:
        module.on_before_backward(loss)
        module.backward(loss)
        module.on_after_backward()
        module.on_before_optimizer_step(optimizer)


class ValidatesAfterTheEpoch(Loop):
    """Ends the training epoch first, and validates then."""

    def end_epoch(self, module: Any) -> None:
        module.on_train_epoch_end()
        self.validate(module)


@rule(
    "PL-43",
    "In each batch optimizer.step runs a closure, and in it training_step, zero_grad, backward, in"
    " this order, and then moves the weights; the validation comes before on_train_epoch_end.",
    kind="contract",
    source=MODULE_PAGE,
    subject=[pl.Trainer, Loop],
    violated_by=[
        StepsAfterwards,
        ForgetsGradientsTooLate,
        NeverForgets,
        ValidatesAfterTheEpoch,
    ],
)
def test_fit_calls_the_methods_of_a_module_in_one_order(Trainer: Any, observe: Observe) -> None:
    """Hooks in between are yours: each is called with nothing in it unless you write one."""
    module = Diary()

    Trainer(**modules.quiet(max_epochs=2)).fit(module)

    called = [name for name, _ in module.called]
    observe("calls of the first epoch", called[: called.index("on_train_epoch_end") + 1])
    assert called == IN_FIT


#: The gradients of the first two batches: 2 * (0 - 2), and 2 * (0.4 - 2) after one step of 0.1.
FIRST, SECOND = -4.0, -3.2

#: What the weight's gradient is in the second batch.
SEEN_IN = {
    "on_train_batch_start": FIRST,
    "optimizer_step": FIRST,
    "step pre hook": FIRST,  # too early: what is clipped here is forgotten before the step
    "training_step": FIRST,
    "on_before_zero_grad": FIRST,
    "on_before_backward": None,
    "on_after_backward": SECOND,
    "on_before_optimizer_step": SECOND,  # clipped afterwards, if the Trainer clips
    "on_train_batch_end": SECOND,
}


@spec("PL-43", violated_by=[StepsAfterwards, ForgetsGradientsTooLate, NeverForgets])
def test_gradients_can_be_seen_from_backward_to_the_next_zero_grad(Trainer: Any) -> None:
    """Look at them in on_before_optimizer_step. Before zero_grad they are of the batch before."""
    module = Diary()

    Trainer(**modules.quiet(max_epochs=1)).fit(module)

    seen = dict(module.called)  # the last entry under a name is that of the second batch
    assert {name: seen.get(name, "never called") for name in SEEN_IN} == SEEN_IN


class StepsHalf(pl.Trainer):
    """Steps after every second batch only."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, accumulate_grad_batches=2)


class StopsEarly(Loop):
    """Counts epochs from one, and stops before the last."""

    def __init__(self, max_epochs: int, **_: Any) -> None:
        super().__init__(max_epochs - 1)


@spec("PL-43", violated_by=[StepsHalf, StopsEarly, NeverForgets, ForgetsGradientsTooLate])
def test_each_batch_of_each_epoch_is_one_step(Trainer: Any) -> None:
    """Three epochs of two batches are six steps, each of which leaves 0.8 of the distance to 2."""
    module = Diary()

    Trainer(**modules.quiet(max_epochs=3)).fit(module)

    assert agree(module.layer.weight.detach(), torch.tensor([[2 * (1 - 0.8**6)]]), scale=2.0)

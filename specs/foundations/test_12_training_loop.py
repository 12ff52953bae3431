"""The training loop and evaluation.

At the end you can write the loop, tell from its traces which step is missing, measure a model
without changing it, keep its best state, and resume an interrupted run bit by bit.

Read before: lessons 2 (autograd), 7 (data loaders) and 10 (a network for digits). LOOP-01 shows the
order of the steps; specs/optimizers/test_05 shows how to clip and how to accumulate gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, TensorDataset

from reference.checkpoint import load_checkpoint, save_checkpoint
from reference.data import batches, digits
from reference.evaluation import KeepBest, evaluate
from reference.training import Batches, History, Loss, fit, train_one_epoch
from specs.harness import rule, spec
from specs.harness.agreement import agree
from specs.harness.observations import Observe
from specs.harness.trace import Forward, recorded

LOOP_PAGE = "https://docs.pytorch.org/tutorials/beginner/basics/optimization_tutorial.html"

Function = Callable[..., Any]


def network() -> nn.Sequential:
    """A small classifier of the digits; its weights come from the seed in force."""
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


# --- The steps of the loop, and what is seen without one ------------------------------------------


def without_zero_grad(model: nn.Module, batches: Batches, loss: Loss, optimizer: Optimizer) -> None:
    """Adds the gradient of each batch to those of all batches before."""
    model.train()
    for inputs, targets in batches:
        loss(model(inputs), targets).backward()
        optimizer.step()


def without_backward(model: nn.Module, batches: Batches, loss: Loss, optimizer: Optimizer) -> None:
    """Computes the loss and does nothing with it."""
    model.train()
    for inputs, targets in batches:
        optimizer.zero_grad()
        loss(model(inputs), targets)
        optimizer.step()


def without_step(model: nn.Module, batches: Batches, loss: Loss, optimizer: Optimizer) -> None:
    """Computes gradients and does not follow them."""
    model.train()
    for inputs, targets in batches:
        optimizer.zero_grad()
        loss(model(inputs), targets).backward()


def without_train(model: nn.Module, batches: Batches, loss: Loss, optimizer: Optimizer) -> None:
    """Trains in the mode that it finds."""
    for inputs, targets in batches:
        optimizer.zero_grad()
        loss(model(inputs), targets).backward()
        optimizer.step()


def traces_of(loop: Function) -> tuple[float | None, float, bool]:
    """The gradient, the weight, and whether training mode was on, after gradients of 1 and 2."""
    # The loss is the output, so that the gradient is the input. The model was evaluated before.
    model = nn.Linear(1, 1, bias=False).eval()
    nn.init.zeros_(model.weight)
    two_batches = [(torch.tensor([[gradient]]), torch.zeros(1)) for gradient in (1.0, 2.0)]
    with recorded(model=model) as events:
        loop(model, two_batches, lambda output, _: output.sum(), SGD(model.parameters(), lr=0.5))
    gradient = None if model.weight.grad is None else model.weight.grad.item()
    return gradient, model.weight.item(), Forward(True, True) in events


@rule(
    "LOOP-07",
    "Every step that a training loop leaves out is seen after two batches: in the gradients, in the"
    " weights, or in the mode of the model.",
    kind="practice",
    source=LOOP_PAGE,
    subject=train_one_epoch,
    violated_by=[without_zero_grad, without_backward, without_step, without_train],
    consequence="after gradients of 1 and 2, a loop without zero_grad holds 3, one without backward"
    " holds None, one without step has weights that did not move",
)
def test_each_missing_step_has_its_own_trace(train_one_epoch: Function) -> None:
    """None of these loops raises an error. Three readings tell them apart."""
    # The gradient is that of the last batch; the weight is 0 - 1/2 * 1 - 1/2 * 2.
    assert traces_of(train_one_epoch) == (2.0, -1.5, True)
    assert traces_of(without_zero_grad) == (1.0 + 2.0, -1 / 2 * 1 - 1 / 2 * (1 + 2), True)
    assert traces_of(without_backward) == (None, 0.0, True)
    assert traces_of(without_step) == (2.0, 0.0, True)
    assert traces_of(without_train) == (2.0, -1.5, False)


def mixes_the_labels_up(model: nn.Module, batches: Batches, *others: Any) -> None:
    """Gives the images of a batch each other's labels, and others in each step."""
    train_one_epoch(model, [(inputs, y[torch.randperm(len(y))]) for inputs, y in batches], *others)


def loss_on_one_batch(loop: Function, optimizer_class: Function, lr: float, steps: int) -> float:
    """The loss on 32 images after that many steps on these images alone; it begins at ln 10."""
    batch = (digits().train_inputs[:32], digits().train_targets[:32])
    torch.manual_seed(0)
    model = network()
    loop(model, [batch] * steps, cross_entropy, optimizer_class(model.parameters(), lr=lr))
    return evaluate(model, [batch], cross_entropy)


@rule(
    "LOOP-06",
    "Before a long run, overfit one batch with Adam: if its loss does not reach 0, find the fault.",
    kind="practice",
    source="https://lightning.ai/docs/pytorch/stable/debug/debugging_basic.html",
    subject=train_one_epoch,
    violated_by=[without_zero_grad, without_backward, without_step, mixes_the_labels_up],
    consequence="100 steps on 32 digits: a loss of 0.005 with a right loop, above 1.2 without"
    " zero_grad, and still ln 10 = 2.3 without backward or step",
)
def test_a_right_loop_learns_a_batch_by_heart(train_one_epoch: Function, observe: Observe) -> None:
    """It takes a tenth of a second, and needs neither a validation set nor a good model."""
    loss = loss_on_one_batch(train_one_epoch, Adam, lr=0.01, steps=100)
    observe("loss on one batch", loss)
    assert loss < 0.05  # six seeds: 0.003 to 0.006


@spec("LOOP-06", violated_by=[without_backward, without_step, mixes_the_labels_up])
def test_overfitting_is_blind_to_two_faults(train_one_epoch: Function) -> None:
    """Eval mode learns a batch by heart as well. And gradients that add up act on plain SGD like a
    momentum of 1, which is fast on a single batch: only Adam shows that fault."""
    for loop in (train_one_epoch, without_train, without_zero_grad):
        assert loss_on_one_batch(loop, SGD, lr=0.1, steps=200) < 0.5  # ten seeds: 0 to 0.3


# --- What is logged -------------------------------------------------------------------------------


def logs_the_last_batch(*loop: Any, epochs: int) -> History:
    """Takes the last batch for the epoch."""
    return History(losses=[train_one_epoch(*loop)[-1] for _ in range(epochs)])


def logs_tensors(*loop: Any, epochs: int) -> History:
    """Stores tensors: they go neither into a JSON file nor into a plot."""
    losses: list[Any] = [torch.tensor(loss) for loss in fit(*loop, epochs=epochs).losses]
    return History(losses=losses)


@rule(
    "LOOP-10",
    "Log plain numbers. The mean of an epoch's batch losses lags behind the model: compare the"
    " validation loss with an evaluation on the training data.",
    kind="practice",
    source=LOOP_PAGE,
    subject=fit,
    violated_by=[logs_the_last_batch, logs_tensors],
    consequence="digits, first epoch: the logged loss of 1.4 is far above the test data's 0.55; on"
    " the training data the same model has 0.5",
)
def test_the_logged_loss_lags_behind_the_model(fit: Function, observe: Observe) -> None:
    """Each loss is taken before its update: a mean over models that are gone. Rates: see LR-28."""
    data, model = digits(), network()
    shuffled = batches(data.train_inputs, data.train_targets, 32, torch.Generator().manual_seed(0))
    twin, optimizer = deepcopy(model), Adam(model.parameters(), lr=0.01)
    seen = train_one_epoch(twin, shuffled, cross_entropy, Adam(twin.parameters(), lr=0.01))

    logged = fit(model, shuffled, cross_entropy, optimizer, epochs=1).losses[0]

    on_training_data = evaluate(model, shuffled, cross_entropy)
    on_test_data = evaluate(model, [(data.test_inputs, data.test_targets)], cross_entropy)
    observe("losses", [logged, on_training_data, on_test_data])
    # Six seeds: 1.32 to 1.45 logged, 0.49 to 0.54 on training data, 0.54 to 0.58 on test data.
    assert type(logged) is float
    assert agree(logged, sum(seen) / len(seen))
    assert logged > 1.5 * on_test_data > 1.5 * on_training_data


# --- Evaluation -----------------------------------------------------------------------------------


def mean_of_the_means(model: nn.Module, batches: Batches, metric: Loss) -> float:
    """Gives a sample of a small batch more weight than a sample of a full one."""
    values = [evaluate(model, [batch], metric) for batch in batches]
    return sum(values) / len(values)


def in_training_mode(model: nn.Module, batches: Batches, metric: Loss) -> float:
    """Drops units at random, and moves the running statistics of BatchNorm."""
    inputs, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
    with torch.no_grad():
        return metric(model.train()(inputs), targets).item()


def with_gradients(model: nn.Module, batches: Batches, metric: Loss) -> float:
    """Builds a graph, as if there were a backward pass to come."""
    inputs, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return metric(model.eval()(inputs), targets).item()


def stays_in_eval(model: nn.Module, batches: Batches, metric: Loss) -> float:
    """Leaves it to the caller to switch back."""
    value = evaluate(model, batches, metric)
    model.eval()
    return value


def calls_train(model: nn.Module, batches: Batches, metric: Loss) -> float:
    """Switches every part to training mode, also a BatchNorm that is kept frozen."""
    value = evaluate(model, batches, metric)
    model.train()
    return value


@rule(
    "LOOP-04",
    "Evaluate in eval mode and under no_grad, weight the mean of each batch by its number of"
    " samples, and put every module back into the mode it was in.",
    kind="practice",
    source="https://docs.pytorch.org/docs/stable/data.html",
    subject=evaluate,
    violated_by=[mean_of_the_means, in_training_mode],
    consequence="three right samples in one batch, a wrong one in the next: the accuracy is 3/4,"
    " the mean of the batches' accuracies is 1/2",
)
def test_the_batch_size_has_no_say_in_the_result(evaluate: Function) -> None:
    """Metrics that are no means over samples, such as F1 or an AUC, need all outputs at once."""
    data, model = digits(), nn.Sequential(nn.Linear(64, 32), nn.Dropout(0.5), nn.Linear(32, 10))

    def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.argmax(dim=1) == targets).double().mean()

    expected = accuracy(model.eval()(data.test_inputs), data.test_targets)
    model.train()
    for batch_size in (360, 100, 7, 1):
        held_out = batches(data.test_inputs, data.test_targets, batch_size)
        assert agree(evaluate(model, held_out, accuracy), expected)
    with pytest.raises(ValueError, match="no samples"):
        evaluate(model, [], accuracy)


@spec("LOOP-04", violated_by=[in_training_mode, with_gradients, stays_in_eval, calls_train])
def test_an_evaluation_changes_nothing_and_records_nothing(evaluate: Function) -> None:
    """Eval mode is about Dropout and BatchNorm, no_grad about memory: two switches."""
    data, frozen = digits(), nn.BatchNorm1d(64).eval()
    model = nn.Sequential(frozen, nn.Linear(64, 10), nn.BatchNorm1d(10))
    state, modes = deepcopy(model.state_dict()), [True, False, True, True]  # whole, then its parts

    with recorded(model=model) as events:
        evaluate(model, batches(data.test_inputs, data.test_targets, 120), cross_entropy)

    assert events == [Forward(training=False, records_gradients=False)] * 3
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes


@rule(
    "LOOP-03",
    "Call train() at the start of every epoch: a validation may have left eval mode on.",
    kind="practice",
    source="https://docs.pytorch.org/docs/stable/generated/torch.nn.Module.html",
    subject=train_one_epoch,
    violated_by=[without_train],
    consequence="100 digits, Dropout and BatchNorm: in eval mode from the second of 20 epochs on,"
    " the test loss is 0.72 to 0.77 instead of 0.46 to 0.54 (five seeds)",
)
def test_a_validation_does_not_end_training_mode(train_one_epoch: Function) -> None:
    """In eval mode Dropout is off, and BatchNorm's statistics stay those of the first epoch."""
    data = digits()
    few = batches(data.train_inputs[:100], data.train_targets[:100], batch_size=20)
    layers = [nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 10)]
    model = nn.Sequential(*layers)
    optimizer, held_out = SGD(model.parameters(), lr=0.1), [(data.test_inputs, data.test_targets)]

    for _ in range(20):
        train_one_epoch(model, few, cross_entropy, optimizer)
        test_loss = stays_in_eval(model, held_out, cross_entropy)

    assert test_loss < 0.63


class KeepsAReference(KeepBest):
    """Keeps state_dict() itself, whose tensors the optimizer goes on changing."""

    def copied_state(self) -> dict[str, Tensor]:
        return self.model.state_dict()


@rule(
    "LOOP-09",
    "Keep a copy of the best state and restore it: the last epoch is rarely the best, and"
    " state_dict() is not a copy.",
    kind="practice",
    source="https://docs.pytorch.org/tutorials/beginner/saving_loading_models.html",
    subject=KeepBest,
    violated_by=[KeepsAReference],
    consequence="60 digits learned by heart: the best test loss is 0.60 to 0.63, the one after 40"
    " epochs 0.69 to 0.75 (six seeds)",
)
def test_the_model_gets_its_best_state_back(KeepBest: Function, observe: Observe) -> None:
    """Early stopping has seen the best epoch `patience` epochs before it stops (see LR-11)."""
    data, model = digits(), nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    few = batches(data.train_inputs[:60], data.train_targets[:60], batch_size=20)

    def validate() -> float:
        return evaluate(model, [(data.test_inputs, data.test_targets)], cross_entropy)

    keep, optimizer = KeepBest(model, validate), Adam(model.parameters(), lr=0.01)
    history = fit(model, few, cross_entropy, optimizer, epochs=40, validate=keep)
    keep.restore()

    observe("best and last", [min(history.validation_losses), history.validation_losses[-1]])
    assert validate() == min(history.validation_losses) < 0.9 * history.validation_losses[-1]


# --- Saving and resuming --------------------------------------------------------------------------


class Run:
    """A training in which everything has a state: Adam, a schedule, Dropout, shuffling."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Dropout(0.2), network())
        self.optimizer = Adam(self.model.parameters(), lr=0.01)
        self.scheduler = StepLR(self.optimizer, step_size=3, gamma=0.5)
        self.generator = torch.Generator().manual_seed(seed)

    def train(self, epochs: int) -> None:
        """Train on the 360 test images, which are enough here."""
        images = TensorDataset(digits().test_inputs, digits().test_targets)
        loader = DataLoader(images, 90, shuffle=True, generator=self.generator)
        model, optimizer, scheduler = self.model, self.optimizer, self.scheduler
        fit(model, loader, cross_entropy, optimizer, epochs=epochs, scheduler=scheduler)


def without_optimizer(path: Path, **parts: Any) -> int:
    """Loads its state into a copy: Adam's averages begin at zero again."""
    return load_checkpoint(path, **parts | {"optimizer": deepcopy(parts["optimizer"])})


def without_scheduler(path: Path, **parts: Any) -> int:
    """Loads its state into a copy: the schedule begins again."""
    return load_checkpoint(path, **parts | {"scheduler": deepcopy(parts["scheduler"])})


def without_shuffling(path: Path, **parts: Any) -> int:
    """Loads its state into another generator: the next epochs have other batches."""
    return load_checkpoint(path, **parts | {"generator": torch.Generator()})


def without_random_state(path: Path, **parts: Any) -> int:
    """Leaves the global generator as it is: Dropout drops other units."""
    with torch.random.fork_rng():
        return load_checkpoint(path, **parts)


@rule(
    "CKPT-05",
    "Save the states of model, optimizer, scheduler, random generators and the epoch: the resumed"
    " run then ends with the same weights, bit for bit.",
    kind="practice",
    source="https://docs.pytorch.org/tutorials/recipes/recipes/saving_and_loading_a_general_checkpoint.html",
    subject=load_checkpoint,
    violated_by=[without_optimizer, without_scheduler, without_shuffling, without_random_state],
    consequence="the largest weight is off by 0.07 without Adam's averages, by 0.03 without the"
    " schedule, by 0.02 without either random state",
)
def test_five_epochs_and_five_more_are_ten(load_checkpoint: Function, tmp_path: Path) -> None:
    """The program that resumes has other weights and another seed: all comes from the file."""
    uninterrupted = Run(seed=0)
    uninterrupted.train(epochs=10)

    interrupted = Run(seed=0)
    interrupted.train(epochs=5)
    save_checkpoint(tmp_path / "run.pt", epoch=5, **vars(interrupted))
    resumed = Run(seed=1)
    epochs_done = load_checkpoint(tmp_path / "run.pt", **vars(resumed))
    resumed.train(epochs=10 - epochs_done)

    weights = uninterrupted.model.state_dict()
    assert all(torch.equal(w, weights[name]) for name, w in resumed.model.state_dict().items())
    with pytest.raises(ValueError, match="scheduler"):
        load_checkpoint(tmp_path / "run.pt", model=resumed.model, generator=resumed.generator)

"""How an __init__ is written so that save_hyperparameters() finds the right values.

At the end you know what has to be called before what, why a parent is never called by its name,
and which arguments to leave out.
"""

from __future__ import annotations

import pickle
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from specs.harness import raising, rule, spec
from specs.harness.optional import optional

pl = optional("pytorch_lightning")
loggers = optional("pytorch_lightning.loggers")
modules = optional("reference.lightning_modules")

API = "https://lightning.ai/docs/pytorch/stable/common/lightning_module.html#save-hyperparameters"


class Notebook(loggers.Logger):
    """A logger that writes down every set of hyperparameters that it is given, and nothing else."""

    name, version = "notebook", 0

    def __init__(self) -> None:
        super().__init__()
        self.given: list[dict[str, Any]] = []

    def log_hyperparams(self, params: dict[str, Any]) -> None:
        self.given.append(dict(params))

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        pass


# In which order an __init__ does its work


class Doubles(pl.LightningModule):
    """Learns y = 2x from four points. What follows is about the __init__ of its children."""

    network: nn.Module

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        inputs, targets = batch
        return mse_loss(self.network(inputs), targets)

    def configure_optimizers(self) -> SGD:
        return SGD(self.parameters(), lr=0.01)

    def train_dataloader(self) -> DataLoader[Any]:
        inputs = torch.arange(4.0).reshape(4, 1)
        return DataLoader(TensorDataset(inputs, 2 * inputs), batch_size=4)


def fitted(module: Any, **options: Any) -> str:
    """Fit the module for one epoch; the name of the checkpoint that was written then."""
    trainer = pl.Trainer(**modules.quiet(max_epochs=1, **options))
    trainer.fit(module)
    trainer.save_checkpoint("last.ckpt")
    return "last.ckpt"


class CallsSuper(Doubles):
    def __init__(self, lr: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network = nn.Linear(1, 1)


class NamesItsBase(Doubles):
    """Calls the __init__ of its base by name; the word super appears nowhere in it."""

    def __init__(self, lr: float = 0.1) -> None:
        pl.LightningModule.__init__(self)
        self.save_hyperparameters()
        self.network = nn.Linear(1, 1)


@rule(
    "PL-02",
    "Begin __init__ with super().__init__(), in these words, and call save_hyperparameters() after"
    " it.",
    kind="practice",
    source="https://github.com/Lightning-AI/pytorch-lightning/issues/10317",
    subject=CallsSuper,
    violated_by=[NamesItsBase],
    consequence="pl.LightningModule.__init__(self) instead: nothing is kept, without a word. A"
    " module that was made with lr=0.5 comes back from its checkpoint with the default, 0.1. With"
    " save_hyperparameters() before super().__init__(), the logger gets 0 of 1 hyperparameters.",
)
def test_super_is_how_the_arguments_are_found(CallsSuper: Any) -> None:
    """Lightning looks for __class__ among the variables of __init__; it is there if super is."""
    module = CallsSuper(lr=0.5)

    assert dict(module.hparams) == {"lr": 0.5}
    assert CallsSuper.load_from_checkpoint(fitted(module)).hparams["lr"] == 0.5


class SavesBeforeSuper(Doubles):
    """Calls super().__init__() last, which forgets that the values are to be logged."""

    def __init__(self, lr: float = 0.1) -> None:
        self.save_hyperparameters()
        super().__init__()
        self.network = nn.Linear(1, 1)


@spec("PL-02", violated_by=[SavesBeforeSuper, NamesItsBase])
def test_after_super_they_reach_the_logger(CallsSuper: Any) -> None:
    """In the other order self.hparams is as it should be, and only the logger shows the fault."""
    notebook = Notebook()
    fitted(CallsSuper(lr=0.5), logger=notebook)

    assert notebook.given == [{"lr": 0.5}]


class HasMore(CallsSuper):
    def __init__(self, lr: float, note: str) -> None:
        super().__init__(lr)


class NamesItsParent(CallsSuper):
    """Calls the __init__ of its parent by name: the call in there sees only its own arguments."""

    def __init__(self, lr: float, note: str) -> None:
        CallsSuper.__init__(self, lr)


@spec("PL-02", subject=HasMore, violated_by=[NamesItsParent])
def test_the_call_in_a_parent_keeps_the_arguments_of_the_child(HasMore: Any) -> None:
    """The search goes from frame to frame up to the class that was made."""
    assert dict(HasMore(0.5, "first try").hparams) == {"lr": 0.5, "note": "first try"}


class SavesThenScales(Doubles):
    def __init__(self, lr: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        lr = 2 * lr
        self.lr, self.network = lr, nn.Linear(1, 1)


class ScalesThenSaves(Doubles):
    """Gives the argument another value before the call."""

    def __init__(self, lr: float = 0.1) -> None:
        super().__init__()
        lr = 2 * lr
        self.save_hyperparameters()
        self.lr, self.network = lr, nn.Linear(1, 1)


@rule(
    "PL-03",
    "Call save_hyperparameters() before an argument gets another value: it keeps what the arguments"
    " are at that moment.",
    kind="practice",
    source=API,
    subject=SavesThenScales,
    violated_by=[ScalesThenSaves],
    consequence="What __init__ does to an argument is done again at each load: a rate of 0.1 that"
    " is doubled before the call is 0.2 in training and 0.4 after load_from_checkpoint.",
)
def test_a_loaded_module_is_made_from_the_same_arguments(SavesThenScales: Any) -> None:
    """The values are read from the variables of __init__, and not from how it was called."""
    module = SavesThenScales(lr=0.1)
    loaded = SavesThenScales.load_from_checkpoint(fitted(module))

    assert module.lr == loaded.lr == 0.2
    assert dict(module.hparams) == dict(loaded.hparams) == {"lr": 0.1}


# What to leave out


class LeavesTheNetworkOut(Doubles):
    def __init__(self, network: nn.Module, lr: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["network"])
        self.network = network


class SavesTheNetwork(Doubles):
    """Keeps its network among the hyperparameters."""

    def __init__(self, network: nn.Module, lr: float = 0.1) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.save_hyperparameters()
        self.network = network


@rule(
    "PL-53",
    'Leave nn.Modules out, as with save_hyperparameters(ignore=["network"]), and hand them to'
    " load_from_checkpoint again: their weights are in the checkpoint anyway.",
    kind="practice",
    source=API,
    subject=LeavesTheNetworkOut,
    violated_by=[raising(pickle.UnpicklingError, SavesTheNetwork)],
    consequence="torch.load reads 0 values of a checkpoint with a module among its"
    " hyperparameters, unless it may run what the file says (weights_only=False); nor does"
    " load_from_checkpoint since Lightning 2.6. The logger gets a copy of the whole network.",
)
def test_the_checkpoint_has_plain_values_and_loads_into_a_new_network(
    LeavesTheNetworkOut: Any,
) -> None:
    """The argument that was left out has no saved value: load_from_checkpoint has to be given it.

    The new network then gets the trained weights of the file.
    """
    module = LeavesTheNetworkOut(nn.Linear(1, 1), lr=0.5)
    file = fitted(module)

    assert torch.load(file, weights_only=True)["hyper_parameters"] == {"lr": 0.5}
    loaded = LeavesTheNetworkOut.load_from_checkpoint(file, network=nn.Linear(1, 1))
    assert torch.equal(loaded.network.weight, module.network.weight)
    assert torch.equal(loaded.network.bias, module.network.bias)


@spec("PL-53", violated_by=[SavesTheNetwork])
def test_the_logger_gets_numbers_and_no_network(LeavesTheNetworkOut: Any) -> None:
    """What is saved is copied for the logger, weights and all, and stays in memory as a copy."""
    notebook = Notebook()
    fitted(LeavesTheNetworkOut(nn.Linear(1, 1), lr=0.5), logger=notebook)

    assert notebook.given == [{"lr": 0.5}]


class TakesTheNetworkAlong(Doubles):
    """Keeps its network among the hyperparameters and lets Lightning speak about it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.save_hyperparameters()


@spec("PL-53", violated_by=[raising(UserWarning, TakesTheNetworkAlong)])
def test_lightning_has_no_advice(LeavesTheNetworkOut: Any) -> None:
    """It warns when the module is made, and names the argument to ignore."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Attribute 'network' is an instance of")
        LeavesTheNetworkOut(nn.Linear(1, 1))

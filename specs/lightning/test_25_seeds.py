"""What makes a fit repeat itself: seed_everything, and Trainer(deterministic=True).

At the end you know which generators a seed reaches and which it does not, where Lightning keeps
it, what workers=True adds, and what determinism costs. Why the three generators have to be seeded,
and what PyTorch itself switches, is told in specs/reproducibility.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import DataLoader, Dataset

from specs.harness import rule, spec
from specs.harness.observations import Observe
from specs.harness.optional import optional
from specs.harness.versions import release_of

pl = optional("pytorch_lightning")
modules = optional("reference.lightning_modules")

SEEDS_PAGE = "https://lightning.ai/docs/pytorch/stable/common/trainer.html#reproducibility"
FLAG_PAGE = "https://lightning.ai/docs/pytorch/stable/common/trainer.html#deterministic"

#: No line about the seed is printed.
quietly = {"verbose": False}


def draws() -> tuple[float, float, float]:
    """One number from each global generator: Python's, NumPy's and torch's."""
    return random.random(), float(np.random.rand()), torch.rand(()).item()


# --- Which generators, and where the seed is kept -------------------------------------------------


def forgets_python(seed: int | None = None, workers: bool = False, verbose: bool = True) -> int:
    """Leaves Python's generator to chance."""
    state = random.getstate()
    used: int = pl.seed_everything(seed, workers, verbose)
    random.setstate(state)
    return used


def forgets_numpy(seed: int | None = None, workers: bool = False, verbose: bool = True) -> int:
    """Leaves NumPy's generator to chance."""
    state = np.random.get_state()
    used: int = pl.seed_everything(seed, workers, verbose)
    np.random.set_state(state)
    return used


def forgets_torch(seed: int | None = None, workers: bool = False, verbose: bool = True) -> int:
    """Leaves torch's generator to chance."""
    state = torch.get_rng_state()
    used: int = pl.seed_everything(seed, workers, verbose)
    torch.set_rng_state(state)
    return used


def tells_no_process(seed: int | None = None, workers: bool = False, verbose: bool = True) -> int:
    """Does not write the seed down for other processes."""
    used: int = pl.seed_everything(seed, workers, verbose)
    del os.environ["PL_GLOBAL_SEED"]
    return used


@rule(
    "PL-77",
    "seed_everything(seed) seeds the global generators of Python, NumPy and torch, and writes the"
    " seed into PL_GLOBAL_SEED, from where a call without a seed takes it.",
    kind="contract",
    source=SEEDS_PAGE,
    subject=pl.seed_everything,
    violated_by=[forgets_python, forgets_numpy, forgets_torch, tells_no_process],
)
def test_one_call_seeds_three_generators(seed_everything: Callable[..., int]) -> None:
    """They draw what they draw after a seed of their own. Generators that a program made itself are
    not reached: seed each where it is made."""
    mine = torch.Generator().manual_seed(1)
    stream = mine.get_state()
    random.seed(7)
    np.random.seed(7)
    torch.manual_seed(7)
    expected = draws()

    assert seed_everything(7, **quietly) == 7
    assert draws() == expected
    assert draws() != expected  # the streams go on
    assert os.environ.get("PL_GLOBAL_SEED") == "7"
    assert torch.equal(mine.get_state(), stream)


def always_zero(seed: int | None = None, workers: bool = False, verbose: bool = True) -> int:
    """Has a seed of its own where none is given."""
    used: int = pl.seed_everything(0 if seed is None else seed, workers, verbose)
    return used


@spec("PL-77", violated_by=[always_zero])
def test_without_a_seed_the_environment_is_asked(
    seed_everything: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is how the processes of one training get the same seed. Where there is none, it is 0,
    with a warning unless it is told to be quiet, and not a random one."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "9")
    assert seed_everything(**quietly) == 9
    monkeypatch.delenv("PL_GLOBAL_SEED")
    with pytest.warns(UserWarning, match="No seed found, seed set to 0"):
        assert seed_everything() == 0


def takes_any_seed(seed: int | None = None, workers: bool = False, verbose: bool = True) -> int:
    """Makes two seeds the same without a word."""
    used: int = pl.seed_everything((seed or 0) % 2**32, workers, verbose)
    return used


@spec("PL-77", violated_by=[takes_any_seed])
def test_a_seed_that_numpy_does_not_take_is_refused(
    seed_everything: Callable[..., int], observe: Observe
) -> None:
    """Since Lightning 2.5.3. Older releases warned, and seeded with 0."""
    assert seed_everything(2**32 - 1, **quietly) == 2**32 - 1
    for seed in (-1, 2**32):
        if release_of("pytorch-lightning") >= (2, 5, 3):
            with pytest.raises(ValueError, match="is not in bounds") as error:
                seed_everything(seed, **quietly)
            observe(f"seed {seed}", error.value)
        else:
            with pytest.warns(UserWarning, match="is not in bounds") as caught:
                assert seed_everything(seed, **quietly) == 0
            observe(f"seed {seed}", caught[0])


@spec("PL-77", violated_by=[forgets_torch])
def test_seed_before_the_module_is_made(
    seed_everything: Callable[..., int], observe: Observe
) -> None:
    """A module draws its first weights when it is made, and the Trainer seeds nothing: seeded
    between the two, a fit sees the same batches and starts somewhere else."""

    def weights_of(module: Any) -> Tensor:
        pl.Trainer(**modules.quiet(max_epochs=1, limit_train_batches=4)).fit(module)
        return torch.cat([weight.detach().flatten() for weight in module.parameters()])

    seed_everything(3, **quietly)
    first = weights_of(modules.DigitsClassifier())
    seed_everything(3, **quietly)
    again = weights_of(modules.DigitsClassifier())
    assert torch.equal(first, again)

    module = modules.DigitsClassifier()
    seed_everything(3, **quietly)
    difference = (weights_of(module) - first).abs().max()
    observe("largest difference", difference)
    assert difference > 0.1  # the first weights lie between -0.18 and 0.18


# --- Workers --------------------------------------------------------------------------------------


class Draws(Dataset[Tensor]):
    """Four samples, each made of three random numbers by the worker that loads it."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor(draws(), dtype=torch.float64)


class KeepsItsBatches(pl.LightningModule):
    """Trains nothing, and keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.0))
        self.numbers: list[float] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.numbers += batch.flatten().tolist()
        return self.weight * 0.0

    def configure_optimizers(self) -> Any:
        return SGD(self.parameters(), lr=0.1)


def never_for_workers(seed: int, workers: bool = False, verbose: bool = True) -> int:
    """Ignores workers=True."""
    used: int = pl.seed_everything(seed, workers and False, verbose)
    return used


def always_for_workers(seed: int, workers: bool = False, verbose: bool = True) -> int:
    """Has the workers seeded whether it is told to or not."""
    used: int = pl.seed_everything(seed, workers or True, verbose)
    return used


@rule(
    "PL-78",
    "With seed_everything(..., workers=True) the Trainer seeds every worker of a loader that has no"
    " worker_init_fn. It is not needed: without it workers draw different numbers as well, and"
    " repeat them for the same seed.",
    kind="contract",
    source=SEEDS_PAGE,
    subject=pl.seed_everything,
    violated_by=[never_for_workers, always_for_workers],
)
def test_workers_true_hands_the_trainers_loaders_a_function(
    seed_everything: Callable[..., int],
) -> None:
    """It is kept in PL_SEED_WORKERS. A function of your own stays where it is."""

    def my_own(worker: int) -> None:
        """Would seed a generator of the data set."""

    for workers, own, expected in [(False, None, False), (True, None, True), (True, my_own, True)]:
        seed_everything(1, workers=workers, **quietly)
        assert os.environ["PL_SEED_WORKERS"] == str(int(workers))
        loader: DataLoader[Any] = DataLoader(torch.zeros(1), worker_init_fn=own)
        trainer = pl.Trainer(**modules.quiet(max_epochs=1))
        trainer.fit(KeepsItsBatches(), loader)
        function = trainer.train_dataloader.worker_init_fn
        assert (function is not None) == expected
        assert own is None or function is own


@spec("PL-78", violated_by=[forgets_torch])
def test_two_workers_draw_different_numbers_with_it_and_without(
    seed_everything: Callable[..., int], observe: Observe
) -> None:
    """Four samples of three numbers from two processes: twelve different ones. DataLoader draws the
    workers' seeds from torch's generator, so they are the same again for the same seed."""

    def numbers_from_two_workers(workers: bool) -> list[float]:
        seed_everything(1, workers=workers, **quietly)
        module = KeepsItsBatches()
        trainer = pl.Trainer(**modules.quiet(max_epochs=1))
        trainer.fit(module, DataLoader(Draws(), num_workers=2))
        return module.numbers

    without = numbers_from_two_workers(False)
    assert len(set(without)) == 4 * 3
    assert numbers_from_two_workers(False) == without

    with_it = numbers_from_two_workers(True)
    observe("with workers=True", with_it)
    assert len(set(with_it)) == 4 * 3
    assert with_it != without


# --- Deterministic algorithms ---------------------------------------------------------------------


class PutsTwice(KeepsItsBatches):
    """Writes two values into one place: which of them stays is not determined."""

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        place = torch.tensor([0, 0])
        torch.zeros(2).put_(place, torch.tensor([1.0, 2.0]))
        return self.weight * 0.0


@pytest.fixture
def undetermined(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process in which nobody has asked for determinism, and cuDNN races its algorithms."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = True
    yield
    torch.use_deterministic_algorithms(False)


class IgnoresTheFlag(pl.Trainer):
    """Lets PyTorch choose."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "deterministic": None})


class OnlyWarns(pl.Trainer):
    """Goes on with what has no deterministic algorithm."""

    def __init__(self, **options: Any) -> None:
        deterministic = "warn" if options.get("deterministic") else options.get("deterministic")
        super().__init__(**{**options, "deterministic": deterministic})


class ForItselfOnly(pl.Trainer):
    """Puts everything back when the fit is over."""

    def fit(self, *arguments: Any, **options: Any) -> None:
        super().fit(*arguments, **options)
        torch.use_deterministic_algorithms(False)


class SeedsToo(pl.Trainer):
    """Seeds the generators as well."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        torch.manual_seed(0)


@rule(
    "PL-79",
    "Trainer(deterministic=True) makes PyTorch use deterministic algorithms, or raise where there"
    " is none; it holds for the process from then on, and it seeds nothing.",
    kind="contract",
    source=FLAG_PAGE,
    subject=pl.Trainer,
    violated_by=[IgnoresTheFlag, OnlyWarns, SeedsToo],
)
@pytest.mark.usefixtures("undetermined")
def test_the_flag_sets_three_switches_and_no_seed(Trainer: Any) -> None:
    """The algorithms, cuDNN's benchmark and the workspace of cuBLAS, when the Trainer is made."""
    torch.manual_seed(5)
    stream = torch.get_rng_state()
    Trainer(**modules.quiet(deterministic=True))
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert torch.equal(torch.get_rng_state(), stream)


@spec("PL-79", violated_by=[IgnoresTheFlag, OnlyWarns, ForItselfOnly])
@pytest.mark.usefixtures("undetermined")
def test_an_operation_without_a_deterministic_algorithm_ends_the_fit(Trainer: Any) -> None:
    """Also in a later Trainer that does not mention it; deterministic=False switches it off, and
    "warn" lets the training go on."""

    def fit(module: Any, **options: Any) -> None:
        Trainer(**modules.quiet(max_epochs=1, **options)).fit(module, DataLoader([0.0]))

    fit(PutsTwice())
    fit(KeepsItsBatches(), deterministic=True)
    with pytest.raises(RuntimeError, match="put_ does not have a deterministic implementation"):
        fit(PutsTwice())
    fit(PutsTwice(), deterministic=False)
    with pytest.warns(UserWarning, match="put_ does not have a deterministic implementation"):
        fit(PutsTwice(), deterministic="warn")

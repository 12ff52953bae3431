"""Where a Trainer trains, and with which numbers: accelerator, devices and precision.

At the end you know what "auto" chooses, what an absent accelerator does, who moves the batches to
the device, and which tensors a precision changes.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import DataLoader

from specs.harness import raising, rule, spec
from specs.harness.agreement import agree
from specs.harness.observations import Observe
from specs.harness.optional import optional

pl = optional("pytorch_lightning")
exceptions = optional("pytorch_lightning.utilities.exceptions")
quiet = optional("reference.lightning_modules").quiet

ACCELERATOR_PAGE = "https://lightning.ai/docs/pytorch/stable/extensions/accelerator.html"
PRECISION_PAGE = "https://lightning.ai/docs/pytorch/stable/common/precision_intermediate.html"

#: What Lightning can train on besides the CPU, by the name that it has in Trainer(accelerator=...).
PRESENT = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}

needs_no_gpu = pytest.mark.skipif(any(PRESENT.values()), reason="needs a machine without a GPU")
needs_a_gpu = pytest.mark.skipif(not any(PRESENT.values()), reason="needs a GPU (CUDA or MPS)")


# --- The accelerator ------------------------------------------------------------------------------


class TakesNothingButAGPU(pl.Trainer):
    """Looks for a GPU where it should look for whatever is there."""

    def __init__(self, **options: Any) -> None:
        chosen = options["accelerator"]
        super().__init__(**{**options, "accelerator": "gpu" if chosen == "auto" else chosen})


@rule(
    "PL-19",
    "Trainer(accelerator='auto') takes the GPU that is there, and the CPU otherwise; one that is"
    " named and absent raises. The Trainer moves the module and all batches there.",
    kind="contract",
    source=ACCELERATOR_PAGE,
    subject=pl.Trainer,
    violated_by=[raising(exceptions.MisconfigurationException, TakesNothingButAGPU)],
)
@needs_no_gpu
def test_auto_falls_back_to_the_cpu(Trainer: Any) -> None:
    """It is the default, so a script that names nothing runs everywhere. On a CPU devices="auto" is
    one process, not one for each core."""
    for options in [{"accelerator": "auto"}, {"accelerator": "auto", "devices": "auto"}]:
        trainer = Trainer(**quiet(**options))
        assert trainer.strategy.root_device == torch.device("cpu")
        assert trainer.num_devices == 1


class StaysOnTheCPU(pl.Trainer):
    """Does not look for a GPU."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "accelerator": "cpu"})


@spec("PL-19", violated_by=[StaysOnTheCPU])
@needs_a_gpu
def test_auto_takes_the_gpu_that_is_there(Trainer: Any) -> None:
    """Also where the code says nothing about devices."""
    trainer = Trainer(**quiet(accelerator="auto", devices=1))
    assert PRESENT[trainer.strategy.root_device.type]


class FallsBack(pl.Trainer):
    """Uses the CPU instead of what it does not find."""

    def __init__(self, **options: Any) -> None:
        try:
            super().__init__(**options)
        except (exceptions.MisconfigurationException, ValueError):
            super().__init__(**{**options, "accelerator": "cpu"})


@spec("PL-19", violated_by=[FallsBack])
def test_an_absent_accelerator_raises(Trainer: Any) -> None:
    """No machine has both of these. A night of training on the wrong device is worse than an error
    at its start."""
    for absent in [name for name, present in PRESENT.items() if not present]:
        with pytest.raises(
            exceptions.MisconfigurationException, match="can not run on your system"
        ):
            Trainer(**quiet(accelerator=absent))
    with pytest.raises(ValueError, match="You selected an invalid accelerator name"):
        Trainer(**quiet(accelerator="graphics card"))


class TakesOneForNone(pl.Trainer):
    """Understands no devices as one."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "devices": options["devices"] or 1})


class AlwaysTakesOne(pl.Trainer):
    """Has one device, however many are asked for."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "devices": 1})


@spec("PL-19", violated_by=[TakesOneForNone, AlwaysTakesOne])
def test_devices_of_a_cpu_are_processes(Trainer: Any) -> None:
    """Two of them train with DistributedDataParallel. A GPU is also chosen by a list of indices and
    -1 stands for all GPUs; a CPU takes a number above 0, and nothing else."""
    assert Trainer(**quiet(devices=1)).num_devices == 1
    assert Trainer(**quiet(devices="1")).num_devices == 1
    assert Trainer(**quiet(devices=2)).num_devices == 2
    with pytest.raises(exceptions.MisconfigurationException, match="is not a valid input"):
        Trainer(**quiet(devices=0))
    for gpus in (-1, [0]):
        with pytest.raises(TypeError, match="should be an int > 0"):
            Trainer(**quiet(devices=gpus))


# --- The way of a batch ---------------------------------------------------------------------------


class Parcel:
    """Anything with a method `to`; it knows where it has been sent."""

    sent_to: torch.device | None = None

    def to(self, device: torch.device) -> Parcel:
        self.sent_to = device
        return self


class Pair(NamedTuple):
    """A named tuple in a batch."""

    first: Any
    second: Any


@dataclass
class Sample:
    """A dataclass in a batch."""

    inside: Any


class MovesTheTopOnly(pl.LightningModule):
    """Looks for things to move in the batch, and not in what is in it."""

    def transfer_batch_to_device(self, batch: dict[str, Any], device: Any, index: int) -> Any:
        return {k: v.to(device) if hasattr(v, "to") else v for k, v in batch.items()}


class MovesTensorsOnly(pl.LightningModule):
    """Leaves alone what is not a tensor."""

    def transfer_batch_to_device(self, batch: Any, device: Any, index: int) -> Any:
        if isinstance(batch, Tensor):
            return super().transfer_batch_to_device(batch, device, index)
        return batch


@spec("PL-19", subject=pl.LightningModule, violated_by=[MovesTheTopOnly, MovesTensorsOnly])
def test_whatever_has_a_method_to_is_moved_however_deep(LightningModule: Any) -> None:
    """Through lists, tuples, dicts, named tuples and dataclasses, and not through sets or objects
    of your own. A loop with Lightning needs no .to(device) and no .cuda(): a tensor that you make
    yourself is made with device=self.device."""

    class Module(LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(0.0))

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.trained_on = batch["tensor"].device, self.weight.device, self.device
            return self.weight * 0.0

        def configure_optimizers(self) -> Any:
            return SGD(self.parameters(), lr=0.1)

    parcels = [Parcel() for _ in range(5)]
    in_a_set = Parcel()
    batch = {
        "itself": parcels[0],
        "in a list": [parcels[1], "not moved", 3],
        "in a tuple of a list": [(parcels[2],)],
        "in a named tuple": Pair("not moved", parcels[3]),
        "in a dataclass": Sample({"deeper": parcels[4]}),
        "in a set": {in_a_set},
        "tensor": torch.zeros(2),
    }
    module = Module()
    trainer = pl.Trainer(**quiet(max_epochs=1, accelerator="auto"))
    trainer.fit(module, DataLoader([batch], batch_size=None))
    there = trainer.strategy.root_device
    assert [parcel.sent_to for parcel in parcels] == [there] * len(parcels)
    assert in_a_set.sent_to is None
    assert module.trained_on == (there, there, there)


# --- The precision --------------------------------------------------------------------------------

# precision=, what it becomes on a CPU, the weights and the batch, what a layer gives, a new tensor
PRECISIONS = [
    (None, "32-true", torch.float32, torch.float32, torch.float32),
    ("32-true", "32-true", torch.float32, torch.float32, torch.float32),
    ("64-true", "64-true", torch.float64, torch.float64, torch.float64),
    ("bf16-true", "bf16-true", torch.bfloat16, torch.bfloat16, torch.bfloat16),
    ("bf16-mixed", "bf16-mixed", torch.float32, torch.bfloat16, torch.float32),
    # Mixed precision with float16 is for GPUs.
    ("16-mixed", "bf16-mixed", torch.float32, torch.bfloat16, torch.float32),
]


class LooksAtItsTypes(pl.LightningModule):
    """A linear layer that notes the dtypes around it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.seen: list[tuple[torch.dtype, ...]] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        outputs = self.layer(batch)
        types = self.layer.weight.dtype, batch.dtype, outputs.dtype, torch.zeros(1).dtype
        self.seen.append(types)
        return outputs.square().mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.training_step(batch, batch_idx)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        gradient = self.layer.weight.grad
        assert gradient is not None
        self.gradient = gradient.dtype

    def configure_optimizers(self) -> Any:
        return SGD(self.parameters(), lr=0.001)


class IgnoresPrecision(pl.Trainer):
    """Computes with float32, whatever it is told."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "precision": None})


class TakesMixedForTrue(pl.Trainer):
    """Rounds the weights, too."""

    def __init__(self, **options: Any) -> None:
        mixed = str(options["precision"]).endswith("-mixed")
        super().__init__(**{**options, "precision": "bf16-true" if mixed else options["precision"]})


class TakesTrueForMixed(pl.Trainer):
    """Leaves the weights at float32."""

    def __init__(self, **options: Any) -> None:
        bf16 = options["precision"] == "bf16-true"
        super().__init__(**{**options, "precision": "bf16-mixed" if bf16 else options["precision"]})


@rule(
    "PL-74",
    "A precision that ends in -true is the dtype of weights, batches and activations; one that ends"
    " in -mixed keeps weights and gradients in float32 and lets layers compute with less. On a CPU"
    " 16-mixed becomes bf16-mixed.",
    kind="contract",
    source=PRECISION_PAGE,
    subject=pl.Trainer,
    violated_by=[IgnoresPrecision, TakesMixedForTrue, TakesTrueForMixed],
)
def test_a_precision_decides_the_dtype_of_weights_and_activations(Trainer: Any) -> None:
    """Batches and new tensors of -true are converted for you: the data stay float32. Validation
    computes as training does, and the weights keep their dtype after the fit."""
    for precision, used, weights, activations, new in PRECISIONS:
        module = LooksAtItsTypes()
        data: DataLoader[Any] = DataLoader(torch.zeros(2, 4))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is said of 16-mixed is told below
            trainer = Trainer(**quiet(precision=precision, max_epochs=1))
        trainer.fit(module, data, data)
        assert trainer.precision == used
        assert set(module.seen) == {(weights, weights, activations, new)}, precision
        assert module.gradient == weights, precision
        assert module.layer.weight.dtype == weights, precision
    assert torch.get_default_dtype() == torch.float32  # only the fit had another one


class SaysNothing(pl.Trainer):
    """Changes the precision and keeps it to itself."""

    def __init__(self, **options: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            super().__init__(**options)


@spec("PL-74", violated_by=[SaysNothing])
def test_a_warning_says_that_16_mixed_was_replaced(Trainer: Any) -> None:
    """So a run on a laptop does not use the numbers that the run on the GPU will use."""
    options = quiet(precision="16-mixed")
    with pytest.warns(UserWarning, match="AMP with fp16 is not supported on CPU"):
        Trainer(**options)


class FallsByAThousandth(pl.LightningModule):
    """A weight of 1.0, whose gradient is 1 and whose rate is 0.001."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.0))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.weight * 1.0

    def configure_optimizers(self) -> Any:
        return SGD(self.parameters(), lr=0.001)


@spec("PL-74", violated_by=[TakesMixedForTrue, TakesTrueForMixed])
def test_mixed_precision_keeps_the_small_updates_that_true_bf16_loses(
    Trainer: Any, observe: Observe
) -> None:
    """The numbers of bfloat16 below 1 are 1/256 apart: 1 - 0.001 is rounded to 1, fifty times over.
    In float32 fifty updates bring the weight to 0.95."""
    weights = {}
    for precision in ("bf16-true", "bf16-mixed"):
        module = FallsByAThousandth()
        trainer = Trainer(**quiet(precision=precision, max_epochs=1))
        trainer.fit(module, DataLoader(torch.zeros(50)))
        weights[precision] = module.weight.item()
    observe("weights", weights)
    assert weights["bf16-true"] == 1.0
    # Each of the fifty updates rounds by half an ulp at most.
    assert agree(torch.tensor(weights["bf16-mixed"]), 0.95, ulps=25)

"""Muon: steps of a matrix whose singular values are all about 1.

At the end you know what the Newton-Schulz iteration does to a gradient, how exact it is, how the
shape of a matrix scales its steps, and that Muon is for matrices only.

A matrix is a rotation, a stretching along its axes by the singular values, and a rotation. Below, p
is a parameter, g its gradient, and v its momentum. torch.optim.Muon exists since torch 2.9. It
computes the step in bfloat16, with 8 bits of precision: five iterations add up to errors of 0.05.
"""

from __future__ import annotations

from math import sqrt
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from reference import optimizers
from specs.harness import known_bug, rule, spec
from specs.harness.agreement import agree
from specs.harness.observations import Observe
from specs.harness.optional import Missing
from specs.harness.versions import torch_release
from specs.optimizers.two_groups import (
    LookAlike,
    MakeOptimizer,
    Options,
    Shapes,
    expected_positions,
    positions,
)

MUON_PAGE = "https://docs.pytorch.org/docs/stable/generated/torch.optim.Muon.html"
OVERWRITTEN_MOMENTUM = "https://github.com/pytorch/pytorch/pull/194664"

TorchMuon: Any = getattr(
    torch.optim, "Muon", Missing("torch.optim.Muon", "torch.optim.Muon exists since torch 2.9")
)

#: a, b and c: one iteration turns the singular value x into a x + b x^3 + c x^5.
COEFFICIENTS = (3.4445, -4.775, 2.0315)

SHAPES: Shapes = (((2, 3), (4, 4)), ((3, 2), (1, 4)))

# Options of the first parameter group, and what the second group has instead.
OPTIONS: list[tuple[Options, Options]] = [
    ({"lr": 0.05}, {"lr": 0.02}),
    ({"lr": 0.05, "momentum": 0.5}, {"momentum": 0.9}),
    ({"lr": 0.05, "nesterov": False}, {"nesterov": True, "momentum": 0.7}),
    ({"lr": 0.05, "weight_decay": 0.0}, {"weight_decay": 1.0}),
    ({"lr": 0.05, "ns_steps": 1}, {"ns_steps": 3, "ns_coefficients": (1.5, -0.5, 0.0)}),
    (
        {"lr": 0.05, "adjust_lr_fn": "match_rms_adamw", "weight_decay": 1.0},
        {"adjust_lr_fn": "original"},
    ),
]

#: What scales lr for a matrix of A rows and B columns.
SCALES = {
    None: lambda a, b: sqrt(max(1, a / b)),
    "original": lambda a, b: sqrt(max(1, a / b)),
    "match_rms_adamw": lambda a, b: 0.2 * sqrt(max(a, b)),
}
if torch_release() >= (2, 14):
    SCALES["spectral_unclamped"] = lambda a, b: sqrt(a / b)


def driven_to_one(singular_value: float, iterations: int = 5) -> float:
    """What the iteration makes of a singular value between 0 and 1."""
    a, b, c = COEFFICIENTS
    x = singular_value
    for _ in range(iterations):
        x = a * x + b * x**3 + c * x**5
    return x


def first_step(make_optimizer: MakeOptimizer, gradient: Tensor, **options: Any) -> Tensor:
    """How far down its first gradient moves a matrix of zeros, in units of the learning rate."""
    p = torch.zeros_like(gradient, requires_grad=True)
    p.grad = gradient.clone()
    make_optimizer([p], lr=1.0, **options).step()
    return -p.detach()


class MuonLike(LookAlike):
    """Muon's step with its parts as methods, for the violations to get wrong."""

    usual: ClassVar[Options] = {
        "lr": 1e-3,
        "weight_decay": 0.1,
        "momentum": 0.95,
        "nesterov": True,
        "ns_coefficients": COEFFICIENTS,
        "eps": 1e-7,
        "ns_steps": 5,
        "adjust_lr_fn": None,
    }

    def moved(self, p: Tensor, g: Tensor, memory: dict[str, Any], o: Any) -> Tensor:
        memory["v"] = o.momentum * memory.get("v", 0) + (1 - o.momentum) * g
        update = self.orthogonal(self.ahead(g, memory["v"], o), o)
        return self.decayed(p, o) - o.lr * self.scale(p, o) * update

    def ahead(self, g: Tensor, v: Tensor, o: Any) -> Tensor:
        return (1 - o.momentum) * g + o.momentum * v if o.nesterov else v

    def orthogonal(self, v: Tensor, o: Any) -> Tensor:
        a, b, c = o.ns_coefficients
        x = v / v.norm().clamp(min=o.eps)
        for _ in range(o.ns_steps):
            gram = x @ x.T
            x = a * x + (b * gram + c * gram @ gram) @ x
        return x

    def scale(self, p: Tensor, o: Any) -> float:
        return SCALES[o.adjust_lr_fn](*p.shape)

    def decayed(self, p: Tensor, o: Any) -> Tensor:
        return p * (1 - o.lr * o.weight_decay)


class OnlyNormalises(MuonLike):
    """Divides by the norm, and leaves the proportions as they are."""

    def orthogonal(self, v: Tensor, o: Any) -> Tensor:
        return v / v.norm().clamp(min=o.eps)


class TakesTheSigns(MuonLike):
    """Divides each entry by its size, as Adam's first step does."""

    def orthogonal(self, v: Tensor, o: Any) -> Tensor:  # noqa: ARG002
        return v.sign()


class ConvergesSlowly(MuonLike):
    """Iterates 1.5 x - 0.5 x^3, the classical choice."""

    def orthogonal(self, v: Tensor, o: Any) -> Tensor:
        o.ns_coefficients = (1.5, -0.5, 0.0)
        return super().orthogonal(v, o)


class IteratesOnceMore(MuonLike):
    """Takes six iterations in place of five."""

    def orthogonal(self, v: Tensor, o: Any) -> Tensor:
        o.ns_steps += 1
        return super().orthogonal(v, o)


@rule(
    "OPT-21",
    "Muon divides the momentum by its norm and drives its singular values towards 1 by five"
    " Newton-Schulz iterations: those above a two hundredth of the norm end between 0.68 and 1.16.",
    kind="contract",
    source=MUON_PAGE,
    subject=TorchMuon,
    violated_by=[OnlyNormalises, TakesTheSigns, ConvergesSlowly, IteratesOnceMore],
    consequence="a direction a hundred times weaker than the strongest gets as long a step; one of"
    " 0.0001 of the norm gets a twentieth",
)
def test_strong_and_weak_directions_get_steps_of_about_the_same_length(
    Muon: MakeOptimizer, observe: Observe
) -> None:
    """A gradient that stretches by 100, 10 and 1 along turned axes: only the turns are left."""
    random = torch.Generator().manual_seed(0)
    turn, other_turn = (torch.linalg.qr(torch.randn(3, 3, generator=random))[0] for _ in range(2))
    stretches = torch.tensor([100.0, 10.0, 1.0])
    gradient = turn @ stretches.diag() @ other_turn.T
    for size in (1e-3, 1.0, 1e3):
        step = first_step(Muon, size * gradient)

        along_the_axes = turn.T @ step @ other_turn
        expected = [driven_to_one(x) for x in (stretches / stretches.norm()).tolist()]
        assert (along_the_axes - torch.tensor(expected).diag()).abs().max() < 0.06
        assert all(0.68 < x < 1.16 for x in expected)
    observe("singular values of the step", torch.linalg.svdvals(step))

    forgotten = first_step(Muon, torch.tensor([[1.0, 0.0], [0.0, 1e-4]]))
    assert 0 < forgotten[1, 1] < 0.05


class AddsEpsToTheNorm(MuonLike):
    """Divides by norm + eps."""

    def orthogonal(self, v: Tensor, o: Any) -> Tensor:
        o.eps, longer = 0.0, v * (v.norm() / (v.norm() + o.eps))
        return super().orthogonal(longer, o) * (longer.norm() / v.norm())


class IgnoresTheCoefficients(MuonLike):
    """Iterates with its own coefficients."""

    def orthogonal(self, v: Tensor, o: Any) -> Tensor:
        o.ns_coefficients = COEFFICIENTS
        return super().orthogonal(v, o)


class OnceForTheSquare(MuonLike):
    """Leaves the fifth power out."""

    def orthogonal(self, v: Tensor, o: Any) -> Tensor:
        o.ns_coefficients = (*o.ns_coefficients[:2], 0.0)
        return super().orthogonal(v, o)


@spec("OPT-21", violated_by=[AddsEpsToTheNorm, IgnoresTheCoefficients, OnceForTheSquare])
def test_one_iteration_is_a_polynomial_of_the_singular_values(Muon: MakeOptimizer) -> None:
    """3 and 4 along the axes have a norm of 5, and become 0.6 and 0.8."""
    gradient = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    for a, b, c in (COEFFICIENTS, (1.5, -0.5, 0.0), (2.0, -1.5, 0.5)):
        step = first_step(Muon, gradient, ns_coefficients=(a, b, c), ns_steps=1)

        first, second = (a * x + b * x**3 + c * x**5 for x in (0.6, 0.8))
        assert agree(step.bfloat16(), [[first, 0.0], [0.0, second]], ulps=2)

    # A norm below eps, which is 1e-7 by default, is divided by eps. No iterations here.
    without_memory = {"nesterov": False, "momentum": 0.0, "ns_steps": 0}
    for scale, options in ((1.0, {"eps": 10.0}), (1e-8, {})):
        tiny = first_step(Muon, scale * gradient, **without_memory, **options)
        assert agree(tiny.bfloat16(), [[0.3, 0.0], [0.0, 0.4]], ulps=1)


class IgnoresTheShape(MuonLike):
    """Steps by lr, whatever the shape is."""

    def scale(self, p: Tensor, o: Any) -> float:  # noqa: ARG002
        return 1.0


class TurnsTheShape(MuonLike):
    """Takes rows for columns."""

    def scale(self, p: Tensor, o: Any) -> float:
        return SCALES[o.adjust_lr_fn](*p.T.shape)


@spec("OPT-21", violated_by=[IgnoresTheShape, TurnsTheShape])
def test_the_shape_scales_the_rate(Muon: MakeOptimizer) -> None:
    """A matrix of one row or column has one singular value: 1, when divided by the norm.

    adjust_lr_fn "spectral_unclamped" exists since torch 2.14.
    """
    for adjust_lr_fn, scale in SCALES.items():
        for rows, columns in ((1, 4), (4, 1), (1, 1), (9, 1)):
            gradient = torch.ones(rows, columns)

            step = first_step(Muon, gradient, adjust_lr_fn=adjust_lr_fn)

            length = scale(rows, columns) * driven_to_one(1.0)
            # Five iterations of rounding to 8 bits.
            assert step.norm().item() == pytest.approx(length, rel=0.02)

    p = torch.ones(1, 1, requires_grad=True)
    p.grad = torch.ones(1, 1)
    Muon([p]).step()  # the defaults: lr = 0.001, and a weight decay of 0.1
    assert 1 - p.item() == pytest.approx(0.001 * 0.1 + 0.001 * driven_to_one(1.0), rel=0.02)


class IgnoresNesterov(MuonLike):
    """Steps along the momentum, nesterov or not."""

    def ahead(self, g: Tensor, v: Tensor, o: Any) -> Tensor:  # noqa: ARG002
        return v


class HasNoMomentum(MuonLike):
    """Steps along the gradient."""

    def ahead(self, g: Tensor, v: Tensor, o: Any) -> Tensor:  # noqa: ARG002
        return g


class DecaysByTheScaledRate(MuonLike):
    """Multiplies weight_decay by the rate that the shape has scaled."""

    def decayed(self, p: Tensor, o: Any) -> Tensor:
        return p * (1 - o.lr * self.scale(p, o) * o.weight_decay)


class AddsTheDecay(MuonLike):
    """Adds weight_decay * p to the gradient."""

    def moved(self, p: Tensor, g: Tensor, memory: dict[str, Any], o: Any) -> Tensor:
        return super().moved(p, g + o.weight_decay * p, memory, o) + p - self.decayed(p, o)


@spec(
    "OPT-21",
    violated_by=[
        OnlyNormalises,
        IgnoresTheShape,
        IgnoresNesterov,
        HasNoMomentum,
        DecaysByTheScaledRate,
        AddsTheDecay,
    ],
)
def test_every_step_of_muon_equals_the_reference_for_every_option_and_group(
    Muon: MakeOptimizer, device: torch.device
) -> None:
    """Four matrices in two groups, 12 random gradients, the rates halved on the way."""
    for first, second in OPTIONS:
        gone = positions(Muon, first, second, device, shapes=SHAPES)

        expected = expected_positions(optimizers.Muon, first, second, device, shapes=SHAPES)
        # 12 steps of lr = 0.05 with errors of 0.03, of either sign.
        assert (gone.cpu() - expected).abs().max() < 12 * 0.05 * 0.03


class NormalisesItsMomentum(MuonLike):
    """Leaves a momentum of length 1 behind."""

    def orthogonal(self, v: Tensor, o: Any) -> Tensor:
        update = super().orthogonal(v, o)
        v /= v.norm()
        return update


@spec(
    "OPT-21",
    subject=known_bug(TorchMuon, OVERWRITTEN_MOMENTUM, fixed_in="2.15"),
    violated_by=[NormalisesItsMomentum],
)
def test_the_momentum_keeps_its_length_in_bfloat16(Muon: MakeOptimizer) -> None:
    """In float32 the step is computed on a copy; in bfloat16 no copy is needed, and one was lost.

    100 and then -50 along the second axis, with a momentum of 0.9: 0.9 * 100 outweighs -50, and
    the second step goes on. A momentum of length 1 would be outweighed, and the step turn round.
    """
    p = torch.zeros(2, 2, dtype=torch.bfloat16, requires_grad=True)
    optimizer = Muon([p], lr=0.1, weight_decay=0.0, momentum=0.9, nesterov=False)
    for along in (100.0, -50.0):
        before = p.detach().clone()
        p.grad = torch.tensor([[abs(along), 0.0], [0.0, along]], dtype=torch.bfloat16)
        optimizer.step()

    assert p[1, 1] < before[1, 1] < 0


class FlattensTheRest(TorchMuon):
    """Takes a vector for a matrix of one row."""

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__([p.data.reshape(1, -1).requires_grad_() for p in params], **options)


@spec("OPT-21", violated_by=[FlattensTheRest])
def test_biases_and_kernels_of_convolutions_are_refused(
    Muon: MakeOptimizer, observe: Observe
) -> None:
    """They are for another optimizer, as embeddings and the last layer are by custom."""
    for shape in ((3,), (), (4, 3, 2, 2)):
        with pytest.raises(ValueError, match="2D") as refusal:
            Muon([torch.zeros(shape, requires_grad=True)])
    observe("refusal", refusal.value)

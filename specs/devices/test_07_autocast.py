"""Autocast: which operation computes in which dtype, and what stays float32.

At the end you know what a 16-bit region changes and what it leaves alone, where it ends, and why
a sigmoid has no place in it.

Nearly everything here runs on the CPU, where autocast takes bfloat16: numbers with the range of
float32 and 8 bits of precision. What only a GPU can show is skipped elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from math import exp, log1p
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from specs.harness import known_bug, rule, spec
from specs.harness.agreement import agree
from specs.harness.observations import Observe

SOURCE = "https://docs.pytorch.org/docs/stable/amp.html"
CACHE_BUG = "https://github.com/pytorch/pytorch/issues/158232"
f16, bf16, f32, f64 = torch.float16, torch.bfloat16, torch.float32, torch.float64

Autocast = Callable[..., Any]
Operation = Callable[[Tensor], Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
needs_mps = pytest.mark.skipif(not torch.backends.mps.is_available(), reason="needs an MPS device")

# Each operation is given one 4 x 4 matrix x with entries between 0 and 1.

PRODUCTS: dict[str, Operation] = {
    "matmul": lambda x: x @ x,
    "bmm": lambda x: torch.bmm(x[None], x[None]),
    "addmm": lambda x: torch.addmm(x, x, x),
    "linear": lambda x: F.linear(x, x),
    "conv1d": lambda x: F.conv1d(x[None], x[None]),
    "conv2d": lambda x: F.conv2d(x[None, None], x[None, None]),
}
LOSSES: dict[str, Operation] = {
    "mse_loss": lambda x: F.mse_loss(x, x.T),
    "smooth_l1_loss": lambda x: F.smooth_l1_loss(x, x.T),
    "huber_loss": lambda x: F.huber_loss(x, x.T),
    "cross_entropy": lambda x: F.cross_entropy(x, torch.arange(4, device=x.device)),
    "nll_loss": lambda x: F.nll_loss(x, torch.arange(4, device=x.device)),
    "kl_div": lambda x: F.kl_div(x, x.T, reduction="batchmean"),
    "bce_with_logits": lambda x: F.binary_cross_entropy_with_logits(x, x.T),
}
#: On a GPU these are computed in float32, whatever they are given; on a CPU they keep its dtype.
SENSITIVE: dict[str, Operation] = {
    "softmax": lambda x: x.softmax(dim=1),
    "log_softmax": lambda x: x.log_softmax(dim=1),
    "exp": torch.exp,
    "sum": torch.sum,
    "layer_norm": lambda x: F.layer_norm(x, (4,)),
}
#: These keep the dtype of what they are given everywhere.
OTHERS: dict[str, Operation] = {
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "gelu": F.gelu,
    "mean": torch.mean,
}
ALL = PRODUCTS | LOSSES | SENSITIVE | OTHERS


def matrix(dtype: torch.dtype, device: str = "cpu") -> Tensor:
    return torch.linspace(0.1, 0.9, 16).reshape(4, 4).to(device, dtype)


def result_dtypes(region: Any, given: Tensor) -> dict[str, torch.dtype]:
    """The dtype of each operation's result inside the region."""
    with region:
        results = {name: operation(given) for name, operation in ALL.items()}
    return {name: result.dtype for name, result in results.items()}


class Changing(TorchFunctionMode):
    """A region in which change(function, arguments, options) replaces each call of torch's."""

    def __init__(self, change: Callable[..., Any]) -> None:
        super().__init__()
        self.change = change

    def __torch_function__(self, f: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.change(f, args, kwargs or {})


def cast(values: Any, dtype: torch.dtype) -> list[Any]:
    """The floating point tensors among the values in this dtype, the rest as it is."""
    floating = [isinstance(value, Tensor) and value.is_floating_point() for value in values]
    return [v.to(dtype) if is_it else v for v, is_it in zip(values, floating, strict=True)]


def casting(dtype: torch.dtype, names: Collection[str]) -> Any:
    """A region in which the functions of these names get their tensors in this dtype."""
    return Changing(lambda f, x, kw: f(*(cast(x, dtype) if f.__name__ in names else x), **kw))


def casts_everything(device_type: str, **_: Any) -> Any:  # noqa: ARG001
    """Gives bfloat16 to every operation, to losses and for float64 too."""
    return Changing(lambda f, arguments, options: f(*cast(arguments, bf16), **options))


@contextmanager
def as_on_a_gpu(device_type: str, **options: Any) -> Iterator[None]:
    """Computes the sensitive operations in float32 on a CPU, too."""
    with torch.autocast(device_type, **options), casting(f32, SENSITIVE):
        yield


def casts_nothing(device_type: str, **_: Any) -> Any:  # noqa: ARG001
    """Leaves every operation as it is."""
    return nullcontext()


def takes_float16(device_type: str, **options: Any) -> Any:
    """Has float16 as its default, as on a GPU."""
    return torch.autocast(device_type, **{"dtype": f16, **options})


def takes_bfloat16(device_type: str, **_: Any) -> Any:
    """Takes bfloat16 on every device, whatever it is told."""
    return torch.autocast(device_type, dtype=bf16)


@rule(
    "AMP-01",
    "In autocast, products and convolutions run in 16 bits and losses in float32; on a CPU most"
    " others, softmax among them, keep the dtype of their input.",
    kind="contract",
    source=SOURCE + "#autocast-op-reference",
    subject=torch.autocast,
    violated_by=[casts_everything, as_on_a_gpu, casts_nothing, takes_float16, takes_bfloat16],
    consequence="softmax, exp and sum are float32 on a GPU; behind a linear layer on a CPU they are"
    " bfloat16, with 8 bits of precision.",
)
def test_on_a_cpu_the_operation_decides_about_the_dtype(
    autocast: Autocast, observe: Observe
) -> None:
    """Not the layer and not the model, but the operation; and for most what it is given."""
    for given, options, sixteen_bits in (
        (matrix(f32), {}, bf16),
        (matrix(bf16), {}, bf16),
        (matrix(f32), {"dtype": f16}, f16),
        (matrix(bf16), {"dtype": f16}, f16),
    ):
        dtypes = result_dtypes(autocast("cpu", **options), given)

        named = {name: str(dtype) for name, dtype in dtypes.items()}
        observe(f"{sixteen_bits}, given {given.dtype}", named)
        expected = dict.fromkeys(PRODUCTS, sixteen_bits) | dict.fromkeys(LOSSES, f32)
        assert dtypes == expected | dict.fromkeys(SENSITIVE | OTHERS, given.dtype)


@spec("AMP-01", violated_by=[casts_everything])
def test_float64_integers_and_in_place_operations_are_left_alone(autocast: Autocast) -> None:
    """Only numbers of float32 and below are cast, and only where the result is a new tensor."""
    x, integers = matrix(f32), torch.ones(2, 2, dtype=torch.int64)
    with autocast("cpu"):
        assert (x.double() @ x.double()).dtype == f64
        assert (integers @ integers).dtype == torch.int64
        in_place = torch.zeros(4, 4).addmm_(x, x)
        assert (x.to(bf16) + x).dtype == f32  # sums are promoted as everywhere
    assert torch.equal(in_place, x @ x)  # float32, and not rounded on the way


@contextmanager
def rounds_for_the_loss(device_type: str, **options: Any) -> Iterator[None]:
    """Has losses in float32, but of predictions and targets that it rounds to 16 bits."""
    with torch.autocast(device_type, **options), casting(bf16, LOSSES):
        yield


@spec("AMP-01", violated_by=[rounds_for_the_loss, casts_nothing])
def test_a_product_is_rounded_before_and_after_and_a_loss_is_not(autocast: Autocast) -> None:
    """After 1, the next numbers of bfloat16 are 1 + 1/128 and 1 + 2/128."""
    x = torch.tensor([[1 + 5 / 1024]])  # nearest: 1 + 1/128, since 5/1024 is more than half of it
    target = torch.tensor([[1 + 2 / 128 + 2.0**-12]])
    with autocast("cpu"):
        prediction = F.linear(x, x)
        loss = F.mse_loss(prediction, target)

    # (1 + 1/128)**2 is 1 + 2/128 + 2**-14, and the last term is rounded away.
    assert prediction.item() == 1 + 2 / 128
    assert loss.item() == (2.0**-12) ** 2


@spec("AMP-01", violated_by=[casts_everything, casts_nothing, takes_bfloat16])
@pytest.mark.parametrize(
    "gpu", [pytest.param("cuda", marks=needs_cuda), pytest.param("mps", marks=needs_mps)]
)
def test_on_a_gpu_sensitive_operations_are_float32(autocast: Autocast, gpu: str) -> None:
    """The lists differ from the CPU's: softmax, exp, sum and layer_norm are safe on a GPU only."""
    for given in (matrix(f32, gpu), matrix(f16, gpu)):
        dtypes = result_dtypes(autocast(gpu), given)
        expected = dict.fromkeys(PRODUCTS, f16) | dict.fromkeys(LOSSES | SENSITIVE, f32)
        assert dtypes == expected | dict.fromkeys(OTHERS, given.dtype)


# Where the region ends, and what it never changes


def ignores_enabled(device_type: str, **_: Any) -> Any:
    """Cannot be switched off."""
    return torch.autocast(device_type)


class stays_on(torch.autocast):
    """Leaves autocast on behind it."""

    def __exit__(self, *error: Any) -> Any:
        super().__exit__(*error)
        torch.set_autocast_enabled("cpu", True)


class stays_on_after_an_error(torch.autocast):
    """Ends properly only if nothing was raised inside."""

    def __exit__(self, *error: Any) -> Any:
        super().__exit__(*error)
        if error[0] is not None:
            torch.set_autocast_enabled("cpu", True)


@rule(
    "AMP-06",
    "Autocast ends with its region, and a region with enabled=False computes as if there were none"
    " around it.",
    kind="contract",
    source=SOURCE + "#torch.autocast",
    subject=torch.autocast,
    violated_by=[ignores_enabled, stays_on, stays_on_after_an_error, casts_nothing],
)
def test_outside_of_the_region_everything_is_as_before(autocast: Autocast) -> None:
    """Also in a disabled region inside of it, and after an error."""
    x = matrix(f32)
    with autocast("cpu"):
        product = x @ x
        with autocast("cpu", enabled=False):
            # What comes out of a region is still of 16 bits, and has to be made float32 by hand.
            with pytest.raises(RuntimeError, match="same dtype"):
                product @ x
            disabled = product.float() @ x
        inside_again = x @ x
    after = x @ x
    with pytest.raises(KeyError), autocast("cpu"):
        raise KeyError
    after_an_error = x @ x

    assert product.dtype == inside_again.dtype == bf16
    assert disabled.dtype == after.dtype == after_an_error.dtype == f32


def casts_the_weights(device_type: str, **_: Any) -> Any:  # noqa: ARG001
    """Turns the weights themselves into bfloat16."""

    def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        weight.data = weight.data.to(bf16)
        return F.linear(inputs.to(bf16), weight, bias)

    return Changing(lambda f, x, kw: linear(*x) if f is F.linear else f(*x, **kw))


@rule(
    "AMP-07",
    "Autocast works on copies: parameters, their gradients and the updates stay float32.",
    kind="contract",
    source=SOURCE + "#autocasting",
    subject=torch.autocast,
    violated_by=[casts_the_weights, casts_nothing],
)
def test_an_update_too_small_for_16_bits_reaches_the_weights(autocast: Autocast) -> None:
    """Below 1, the next number of bfloat16 is 1 - 2**-8; the update here is 2**-12."""
    layer = nn.Linear(2, 1, bias=False)
    nn.init.ones_(layer.weight)
    inputs = torch.tensor([[1.0, 3.0]])
    with autocast("cpu"):
        output = layer(inputs)
    output.sum().backward()
    torch.optim.SGD(layer.parameters(), lr=2.0**-12).step()

    assert (output.dtype, layer.weight.dtype) == (bf16, f32)
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == f32
    assert layer.weight.grad.tolist() == inputs.tolist()  # d(w . x) / dw = x
    assert layer.weight.tolist() == [[1 - 2.0**-12, 1 - 3 * 2.0**-12]]


def caches_without_history(device_type: str, **_: Any) -> Any:  # noqa: ARG001
    """Casts each weight once and keeps the copy, also one that no gradient flows through."""
    copies: dict[Tensor, Tensor] = {}

    def linear(*tensors: Tensor) -> Tensor:
        return F.linear(*(copies.setdefault(one, one.to(bf16)) for one in tensors))

    return Changing(lambda f, x, kw: linear(*x) if f is F.linear else f(*x, **kw))


def without_its_cache(device_type: str) -> Any:
    """The way out for older releases: each operation casts the weights again."""
    return torch.autocast(device_type, cache_enabled=False)


@spec(
    "AMP-07",
    subject=[known_bug(torch.autocast, CACHE_BUG, fixed_in="2.11"), without_its_cache],
    violated_by=[caches_without_history],
)
def test_a_forward_pass_under_no_grad_takes_no_gradients_away(autocast: Autocast) -> None:
    """To compute targets first, for example. Before 2.11 such layers silently learned nothing."""
    layer, inputs = nn.Linear(2, 1), torch.tensor([[1.0, 3.0]])
    with autocast("cpu"):
        with torch.no_grad():
            layer(inputs)
        output = layer(inputs)

    assert output.requires_grad
    (gradient,) = torch.autograd.grad(output.sum(), layer.weight)
    assert gradient.tolist() == inputs.tolist()  # d(w . x + b) / dw = x


# What a region cannot do


@rule(
    "AMP-08",
    "On a CPU autocast takes bfloat16 or float16; for any other dtype it warns and does nothing.",
    kind="contract",
    source=SOURCE + "#torch.autocast",
    subject=torch.autocast,
    violated_by=[casts_nothing, casts_everything],
)
def test_an_impossible_dtype_disables_the_region_with_a_warning(autocast: Autocast) -> None:
    """A warning, not an error: the training goes on in float32."""
    for dtype in (f64, f32):
        with pytest.warns(UserWarning, match="In CPU autocast, but the target dtype is not supp"):
            region = autocast("cpu", dtype=dtype)
        with region:
            assert (matrix(f32) @ matrix(f32)).dtype == f32


def sigmoid_and_bce(input: Tensor, target: Tensor) -> Tensor:
    """A sigmoid layer with BCELoss behind it."""
    return F.binary_cross_entropy(torch.sigmoid(input), target)


@rule(
    "AMP-04",
    "In autocast, take binary_cross_entropy_with_logits; a sigmoid with BCELoss is unsafe.",
    kind="practice",
    source=SOURCE + "#prefer-binary-cross-entropy-with-logits-over-binary-cross-entropy",
    subject=F.binary_cross_entropy_with_logits,
    violated_by=[sigmoid_and_bce],
    consequence="From a logit of log(511) = 6.24 on, the sigmoid is 1 in bfloat16. A mistake of"
    " that size costs 100 instead of 6.24, and its gradient is 0: it is never corrected.",
)
def test_a_confident_mistake_keeps_its_loss_and_its_gradient(
    binary_cross_entropy_with_logits: Loss,
) -> None:
    """BCELoss itself is computed in float32 on a CPU, but of a probability that is lost by then."""
    for logit in (1.0, 4.0, 6.25, 8.0, 20.0):  # all of them numbers of bfloat16
        weight = torch.ones(1, 1, requires_grad=True)
        with torch.autocast("cpu"):
            output = F.linear(torch.tensor([[logit]]), weight)
            loss = binary_cross_entropy_with_logits(output, torch.zeros(1, 1))
        (gradient,) = torch.autograd.grad(loss, weight)

        assert agree(loss, log1p(exp(logit)))
        # d loss / d w = sigmoid(logit) * logit, through two roundings to bfloat16
        assert agree(gradient[0, 0].to(bf16), logit / (1 + exp(-logit)), ulps=2)


@spec("AMP-04", subject=F.binary_cross_entropy, violated_by=[F.binary_cross_entropy_with_logits])
def test_bce_gets_a_probability_of_1_and_gives_no_gradient(binary_cross_entropy: Loss) -> None:
    """Below 1 the next number of bfloat16 is 1 - 1/256: from 1 - 1/512 on, all is rounded to 1."""
    weight = torch.ones(1, 1, requires_grad=True)
    with torch.autocast("cpu"):
        probability = torch.sigmoid(F.linear(torch.tensor([[6.25]]), weight))
        loss = binary_cross_entropy(probability, torch.zeros(1, 1))
    (gradient,) = torch.autograd.grad(loss, weight)

    assert (probability.item(), loss.item(), gradient.item()) == (1, 100, 0)


@needs_cuda
@spec("AMP-04", subject=F.binary_cross_entropy, violated_by=[F.binary_cross_entropy_with_logits])
def test_on_cuda_bce_of_probabilities_is_refused(binary_cross_entropy: Loss) -> None:
    """There autocast raises; on a CPU, and on MPS, it lets it pass."""
    probabilities = torch.tensor([0.5], device="cuda")
    with torch.autocast("cuda"), pytest.raises(RuntimeError, match="unsafe to autocast"):
        binary_cross_entropy(probabilities, torch.ones(1, device="cuda"))

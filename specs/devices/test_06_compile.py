"""torch.compile: Python once, graphs from then on.

At the end you know when a graph is compiled and when again, what breaks a graph in two, that the
numbers stay the same, and why a learning rate that changes should be a tensor.

A graph is a piece of the program without Python in it. What makes it fast is the backend that
takes the graph; most specs here give it to one that only counts graphs and runs them as they are.
"""

from __future__ import annotations

import copy
import os
import shutil
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout

from specs.harness import rule, spec
from specs.harness.agreement import agree
from specs.harness.background import in_background
from specs.harness.observations import Observe

Compile = Callable[..., Any]

SOURCE = "https://docs.pytorch.org/docs/stable/generated/torch.compile.html"
RECOMPILATION = (
    "https://docs.pytorch.org/docs/main/user_guide/torch_compiler/compile/"
    "programming_model.recompilation.html"
)


#: What inductor, the default backend, needs to make machine code for a CPU.
HAS_COMPILER = any(shutil.which(name) for name in ("g++", "clang++", "c++", "cl"))
HAS_HEADERS = Path(sysconfig.get_path("include"), "Python.h").is_file()


class Counting:
    """A backend that counts the graphs that it is given, and runs them as they are."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:  # noqa: ARG002
        self.graphs += 1
        return graph.forward


@pytest.fixture(autouse=True)
def _nothing_compiled_yet() -> Iterator[None]:
    """Compiled graphs belong to the process; each test starts and ends without any."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def double_and_add(inputs: Tensor) -> Tensor:
    return inputs * 2 + 1


def runs_python(function: Any, **_: Any) -> Any:
    """Compiles nothing."""
    return function


def compiles_every_size(function: Any, **options: Any) -> Any:
    """Never lets a size become a variable of the graph."""
    return torch.compile(function, **{**options, "dynamic": False})


def takes_sizes_for_variables(function: Any, **options: Any) -> Any:
    """Makes sizes variables of the graph from the start."""
    return torch.compile(function, **{**options, "dynamic": True})


def graphs_after_each_size(compile: Compile, sizes: range, **options: Any) -> list[int]:
    """How many graphs have been compiled after a call with each of the sizes."""
    backend = Counting()
    compiled = compile(double_and_add, backend=backend, **options)
    counts = []
    for size in sizes:
        inputs = torch.ones(size)
        assert torch.equal(compiled(inputs), double_and_add(inputs))
        counts.append(backend.graphs)
    return counts


@rule(
    "TC-01",
    "A first new input size is compiled once more, with the size as a variable; later sizes are"
    " not.",
    kind="contract",
    source=RECOMPILATION,
    subject=torch.compile,
    violated_by=[runs_python, compiles_every_size, takes_sizes_for_variables],
)
def test_a_second_size_makes_the_size_a_variable(compile: Compile, observe: Observe) -> None:
    """So the last, smaller batch of an epoch costs one more compilation, in the first epoch."""
    counts = graphs_after_each_size(compile, range(3, 7))

    observe("graphs after each size", counts)
    assert counts == [1, 2, 2, 2]


@spec("TC-01", violated_by=[runs_python, takes_sizes_for_variables])
def test_static_shapes_compile_every_size_up_to_a_limit(compile: Compile, observe: Observe) -> None:
    """With dynamic=False each size has its graph; beyond 8 of them PyTorch gives up, silently slow.

    The results stay right: what is not compiled runs as Python.
    """
    counts = graphs_after_each_size(compile, range(3, 14), dynamic=False)

    observe("graphs after each size", counts)
    assert counts == [1, 2, 3, 4, 5, 6, 7, 8, 8, 8, 8]


def branch_on_a_value(inputs: Tensor) -> Tensor:
    doubled = inputs * 2
    if doubled.sum() > 0:  # Python has to know the number before it can go on
        return doubled + 1
    return doubled - 1


def branch_on_a_shape(inputs: Tensor) -> Tensor:
    doubled = inputs * 2
    if len(doubled) > 2:
        return doubled + 1
    return doubled - 1


def multiply_by_a_number(inputs: Tensor) -> Tensor:
    return inputs * inputs.sum().item()


def graphs_of(compile: Compile, function: Any) -> int:
    """How many graphs a function is cut into; one more call shows that the results are right."""
    backend = Counting()
    compiled = compile(function, backend=backend)
    for inputs in (torch.ones(3), torch.ones(3)):
        assert torch.equal(compiled(inputs), function(inputs))
    return backend.graphs


def leaves_out_the_second_half(function: Any, backend: Any, **options: Any) -> Any:
    """Compiles up to the first break and runs the rest as Python."""
    first = torch.compile(double_and_add, backend=backend, **options)

    def run(inputs: Tensor) -> Any:
        first(inputs)
        return function(inputs)

    return run


@rule(
    "TC-02",
    "A branch on a tensor's value breaks the graph in two; fullgraph=True makes it an error.",
    kind="contract",
    source="https://docs.pytorch.org/docs/stable/torch.compiler.html",
    subject=torch.compile,
    violated_by=[runs_python, leaves_out_the_second_half],
)
def test_python_that_needs_a_value_breaks_the_graph(compile: Compile) -> None:
    """Between two graphs Python runs, and the backend cannot join what lies on both sides."""
    assert graphs_of(compile, double_and_add) == 1
    assert graphs_of(compile, branch_on_a_shape) == 1
    assert graphs_of(compile, branch_on_a_value) == 2
    assert graphs_of(compile, multiply_by_a_number) == 2


def forgives_breaks(function: Any, **options: Any) -> Any:
    """Ignores fullgraph."""
    return torch.compile(function, **{**options, "fullgraph": False})


@spec("TC-02", violated_by=[forgives_breaks, runs_python])
def test_fullgraph_refuses_a_break(compile: Compile, observe: Observe) -> None:
    """What was to be one graph, and is not, is then known before it is slow."""
    compiled = compile(branch_on_a_value, backend=Counting(), fullgraph=True)

    with pytest.raises(Exception) as refusal:  # noqa: PT011 - its class moved between releases
        compiled(torch.ones(3))

    observe("refusal", type(refusal.value).__name__)
    assert type(refusal.value).__module__ == "torch._dynamo.exc"


class Network(nn.Module):
    """A network that is random in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(8, 16)
        self.output = nn.Linear(16, 4)
        self.scale = 1.0

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = dropout(torch.relu(self.hidden(inputs)), 0.5, self.training)
        return self.output(hidden) * self.scale


def network() -> Network:
    torch.manual_seed(0)
    return Network()


INPUTS = torch.linspace(-1, 1, 40).reshape(5, 8)
TARGETS = torch.tensor([0, 1, 2, 3, 0])


def gradients_of_a_step(model: Any) -> list[Tensor]:
    """The loss and every gradient of one training step, from seed 1."""
    torch.manual_seed(1)
    loss = cross_entropy(model(INPUTS), TARGETS)
    return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]


def never_drops(model: nn.Module, **options: Any) -> Any:
    """Compiles the network without its dropout."""
    return torch.compile(copy.deepcopy(model).eval(), **options)


def rounds_to_bfloat16(model: nn.Module, **options: Any) -> Any:
    """Trades precision for speed without being asked."""
    return torch.compile(copy.deepcopy(model).bfloat16().float(), **options)


@rule(
    "TC-03",
    "A compiled model computes the same outputs and gradients as Python does.",
    kind="contract",
    source="https://docs.pytorch.org/docs/stable/torch.compiler_faq.html",
    subject=torch.compile,
    violated_by=[never_drops, rounds_to_bfloat16],
)
def test_a_compiled_training_step_has_the_same_gradients(compile: Compile) -> None:
    """The backend here compiles forward and backward, and leaves each operation to PyTorch.

    So not a bit may differ, dropout included.
    """
    model = network()

    expected = gradients_of_a_step(model)
    got = gradients_of_a_step(compile(model, backend="aot_eager"))

    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one, other)


@in_background
def step_of_the_default_backend() -> list[Tensor]:
    """Loss and gradients of a step that inductor compiled to machine code; takes many seconds.

    In a directory of its own, so that nothing compiled earlier is found.
    """
    torch.set_num_threads(1)
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # no pool of processes for two small graphs
    with tempfile.TemporaryDirectory() as directory:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = directory
        return gradients_of_a_step(torch.compile(network().eval()))


@pytest.mark.skipif(
    not (HAS_COMPILER and HAS_HEADERS), reason="needs a C++ compiler and the headers of Python"
)
@spec("TC-03", violated_by=[rounds_to_bfloat16])
def test_machine_code_gives_the_same_numbers_up_to_rounding(
    compile: Compile, step_of_the_default_backend: list[Tensor], observe: Observe
) -> None:
    """The default backend fuses operations and sums in another order, so the last bits may move.

    In eval mode, since inductor draws dropout from random numbers of its own.
    """
    model = network().eval()
    expected = gradients_of_a_step(model)

    if compile is torch.compile:
        got = step_of_the_default_backend
    else:
        got = gradients_of_a_step(compile(model, backend="eager"))

    observe("loss", got[0])
    for one, other in zip(got, expected, strict=True):
        assert agree(one, other)


class Traced:
    """Keeps the graph of the first call, whatever changes later."""

    def __init__(self, model: nn.Module, **_: Any) -> None:
        self.graph: Any = None
        self.model = model

    def __call__(self, inputs: Tensor) -> Any:
        if self.graph is None:
            self.graph = torch.fx.symbolic_trace(self.model)
        return self.graph(inputs)


@spec("TC-03", violated_by=[Traced])
def test_a_change_of_mode_or_attribute_is_noticed(compile: Compile) -> None:
    """What Python saw while a graph was made is checked at every call; a change compiles anew."""
    model = network()
    backend = Counting()
    compiled = compile(model, backend=backend)

    graphs = []
    for training, scale in [(True, 1.0), (False, 1.0), (False, 2.0), (True, 1.0)]:
        model.train(training)
        model.scale = scale
        torch.manual_seed(1)
        got = compiled(INPUTS)
        torch.manual_seed(1)
        assert torch.equal(got, model(INPUTS))
        graphs.append(backend.graphs)
    # The last one is in the first one's mode, with its scale: its graph is still there.
    assert graphs == [1, 2, 3, 3]


def compiles_at_every_call(function: Any, **options: Any) -> Any:
    """Keeps no graph."""

    def run() -> Any:
        torch._dynamo.reset()
        return torch.compile(function, **options)()

    return run


def graphs_under_a_schedule(compile: Compile, lr: float | Tensor) -> tuple[list[int], Tensor]:
    """Graphs after each of three compiled optimizer steps under a falling rate, and the weight."""
    torch._dynamo.reset()
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=lr)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5)
    backend = Counting()
    step = compile(optimizer.step, backend=backend)
    graphs = []
    for _ in range(3):
        weight.grad = torch.ones(3)
        step()
        schedule.step()
        graphs.append(backend.graphs)
    return graphs, weight.detach()


@rule(
    "TC-04",
    "Give a compiled optimizer its learning rate as a tensor, if a scheduler changes it.",
    kind="practice",
    source="https://docs.pytorch.org/tutorials/recipes/compiling_optimizer_lr_scheduler.html",
    subject=torch.compile,
    violated_by=[compiles_at_every_call, runs_python],
    consequence="With a float, the optimizer step is compiled twice; with a tensor, once.",
)
def test_a_tensor_rate_is_compiled_once(compile: Compile, observe: Observe) -> None:
    """A float is a constant of the graph, a tensor is an input of it."""
    graphs, weight = graphs_under_a_schedule(compile, torch.tensor(0.5))
    assert graphs == [1, 1, 1]

    of_float, weight_of_float = graphs_under_a_schedule(compile, 0.5)
    assert of_float == [1, 2, 2]

    observe("graphs with a tensor, with a float", [graphs, of_float])
    # 1 - 0.5 - 0.25 - 0.125
    assert torch.equal(weight, torch.full((3,), 0.125))
    assert torch.equal(weight_of_float, torch.full((3,), 0.125))

"""A failing rule says which rule it is, what was judged, and how to see it again."""

from __future__ import annotations

import subprocess
import sys

import pytest

from specs.harness.tests.conftest import ROOT, Suite

WRONG = """
import torch
import torch.nn.functional as F
from hypothesis import given, strategies as st
from specs.harness.strategies import tensors

@rule("DBL-01", "relu(x) is twice x.", kind="contract", source=SOURCE,
      subject=F.relu, violated_by=[triple])
"""


def lines_after(result: pytest.RunResult, start: str) -> list[str]:
    return [line.removeprefix(start) for line in result.outlines if line.startswith(start)]


@pytest.mark.parametrize(
    "test",
    [
        "def test(relu):\n    assert relu(torch.tensor(1.)) == 2\n",
        "@given(x=tensors(shape=(2,)))\n"
        "def test(relu, x):\n    assert torch.equal(relu(x), 2 * x)\n",
        "@given(x=st.tuples(st.just(-1.0), st.sampled_from([1, 2])))\n"
        "def test(relu, x):\n    assert relu(torch.tensor(x)).sum() < 0\n",
        "@pytest.mark.parametrize('x', [torch.tensor([1.0, float('nan'), float('inf')])])\n"
        "def test(relu, device, x, observe):\n    observe('x', x)\n    assert relu(x).sum() == 0\n",
    ],
)
def test_the_printed_line_shows_the_failure_in_a_python_prompt(suite: Suite, test: str) -> None:
    suite.write(WRONG, test)
    result = suite.run("-k", "torch")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        [
            "*- Rule DBL-01 -*",
            "relu(x) is twice x.",
            "judged:    relu (torch)",
            "source:    https://example.org/doubling",
        ]
    )
    (line,) = lines_after(result, "reproduce: ")
    paths = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(suite.path / 'arithmetic')!r}]; "
    shown = subprocess.run(
        [sys.executable, "-c", paths + line], capture_output=True, text=True, check=False
    )
    assert "AssertionError" in shown.stderr


def test_the_command_to_run_again_carries_the_options(suite: Suite) -> None:
    suite.write(WRONG, "def test(relu):\n    assert relu(torch.tensor(1.)) == 2\n")
    (suite.path / "mine.py").write_text("from torch import relu\n")
    result = suite.run("--subject", "mine.py", "-k", "mine")
    (line,) = lines_after(result, "run again: ")
    assert line == "pytest 'arithmetic/test_doubling.py::test[mine]' --subject mine.py"


def test_what_cannot_be_written_as_python_gets_no_line(suite: Suite) -> None:
    suite.write(WRONG, "def test(relu, tmp_path):\n    assert relu(torch.tensor(1.)) == 2\n")
    result = suite.run("-k", "torch")
    assert lines_after(result, "reproduce: ") == []
    assert len(lines_after(result, "run again: ")) == 1


def test_the_smallest_input_found_is_shown(suite: Suite) -> None:
    suite.write(
        WRONG,
        "@given(x=st.integers(0, 10**6))\n",
        "def test(relu, x):\n    assert relu(torch.tensor(x)) < 1000\n",
    )
    (line,) = lines_after(suite.run("-k", "torch"), "reproduce: ")
    assert line.endswith("test.hypothesis.inner_test(relu=relu, x=1000)")

"""A small suite under the harness, for each test to fill with rules of its own."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

#: What the rules of these tests judge: no torch, so that the tests run in a moment.
PREAMBLE = """
import pytest
from specs.harness import known_bug, raising, rule, spec

SOURCE = "https://example.org/doubling"

def double(x):
    return 2 * x

def triple(x):
    return 3 * x
"""

#: A rule that holds, with one violation.
HOLDS = '''
@rule("DBL-01", "double(x) is twice x.", kind="contract", source=SOURCE,
      subject=double, violated_by=[triple])
def test_twice(double, observe):
    """Doubling is adding to itself."""
    observe("of one", double(1))
    assert double(4) == 4 + 4
'''


class Suite:
    """A directory with one chapter of specs, and pytest to run it."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self.pytester = pytester
        self.path = pytester.path

    @property
    def has_randomly(self) -> bool:
        """Whether pytest-randomly is there to shuffle tests."""
        return find_spec("pytest_randomly") is not None

    def write(self, *parts: str, name: str = "test_doubling.py") -> Path:
        """Write a spec file of the chapter `arithmetic`."""
        path = self.path / "arithmetic" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(PREAMBLE + "".join(parts))
        return path

    def run(self, *arguments: str | Path) -> pytest.RunResult:
        """Run pytest on the suite in this process."""
        always = ("-p", "no:randomly", "-p", "no:cacheprovider")
        return self.pytester.runpytest_inprocess(*always, *arguments)

    def run_apart(self, *arguments: str | Path) -> pytest.RunResult:
        """Run pytest on the suite in a process of its own."""
        always = ("-p", "no:randomly", "-p", "no:cacheprovider")
        return self.pytester.runpytest_subprocess(*always, *arguments)


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Suite:
    """An empty suite that registers the harness as the project's own conftest does."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for workers of xdist
    pytester.makeconftest('pytest_plugins = ["specs.harness.plugin"]')
    pytester.makeini("[pytest]\nxfail_strict = true\n")
    return Suite(pytester)

"""What runs in the background starts early, is waited for, and leaves nothing behind."""

from __future__ import annotations

import pytest

from specs.harness.tests.conftest import Suite

SLOW = """
import os, time
from specs.harness.background import in_background

@in_background
def answer():
    {body}
"""

USES_IT = """
def test_plain():
    {before}

def test_answer(answer):
    assert answer == 42

def test_the_same_answer(answer):
    assert answer == 42
"""


def write(suite: Suite, body: str, before: str = "pass") -> None:
    suite.write(SLOW.format(body=body), USES_IT.format(before=before))
    (suite.path / "arithmetic" / "__init__.py").touch()


def test_a_result_is_computed_once_in_another_process(suite: Suite) -> None:
    body = f"open('{suite.path}/calls', 'a').write(f'{{os.getpid()}} '); return 42"
    write(suite, body, before="print('here', os.getpid())")
    result = suite.run_apart("-s")
    result.assert_outcomes(passed=3)
    calls = (suite.path / "calls").read_text().split()
    assert len(calls) == 1
    assert f"here {calls[0]}" not in "\n".join(result.outlines)


def test_what_it_prints_does_not_reach_the_terminal(suite: Suite) -> None:
    write(suite, "os.system('echo from below'); print('from above'); return 42")
    suite.run_apart("-s").stdout.no_fnmatch_line("*from *")


def test_it_works_while_earlier_tests_run(suite: Suite) -> None:
    """The first test waits for a file that only the background writes."""
    write(
        suite,
        body=f"open('{suite.path}/begun', 'w').close(); return 42",
        before=f"\n    while not os.path.exists('{suite.path}/begun'): time.sleep(0.01)",
    )
    suite.run_apart().assert_outcomes(passed=3)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise ValueError('no answer')", "ValueError: no answer"),
        ("os._exit(5)", "answer in the background died with exit code 5"),
    ],
)
def test_its_failure_fails_the_tests_that_need_it(suite: Suite, body: str, message: str) -> None:
    write(suite, body)
    result = suite.run_apart()
    result.assert_outcomes(passed=1, errors=2)
    result.stdout.fnmatch_lines([f"*{message}*"])


@pytest.mark.parametrize("arguments", [("--rules",), ("--collect-only",), ("-k", "plain")])
def test_it_does_not_start_for_nothing(suite: Suite, arguments: tuple[str, ...]) -> None:
    write(suite, f"open('{suite.path}/begun', 'w').close(); return 42")
    suite.run_apart(*arguments)
    assert not (suite.path / "begun").exists()


def test_it_works_in_workers_of_xdist(suite: Suite) -> None:
    write(suite, "return 42")
    suite.run_apart("-n2").assert_outcomes(passed=3)

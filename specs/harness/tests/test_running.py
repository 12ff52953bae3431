"""The harness under pytest's own options, and where it is run from."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from specs.harness.tests.conftest import HOLDS, Suite

TWO_RULES = HOLDS + HOLDS.replace("DBL-01", "DBL-02").replace("test_twice", "test_even").replace(
    "== 4 + 4", "% 2 == 0 and double(1) % 2 == 0"
)


def test_the_summary_counts_rules_violations_and_claims(suite: Suite) -> None:
    suite.write(
        TWO_RULES,
        """
@rule("CLAIM-01", "Doubling is tripling.", kind="claim", source=SOURCE, subject=double,
      violated_by=[triple], verdict="false")
def test_claim(double):
    assert double(2) != 6

@rule("CLAIM-02", "Doubling is squaring.", kind="claim", source=SOURCE, subject=double,
      violated_by=[triple], verdict="holds if x is 2")
def test_square(double):
    assert double(2) == 4
""",
    )
    suite.run().stdout.fnmatch_lines(
        [
            "*= rulebook =*",
            "torch * on cpu, Python *",
            "2 rules held, 4 violations rejected",
            "claims: 1 false, 1 holds under a condition",
        ]
    )


def test_a_run_without_rules_has_no_summary(suite: Suite) -> None:
    suite.write("def test_plain():\n    pass\n")
    suite.run().stdout.no_fnmatch_line("*rulebook =*")


@pytest.mark.parametrize(
    "arguments", [("-n2",), ("-n2", "--dist=load"), ("-n2", "-v"), ("-p", "randomly")]
)
def test_the_verdicts_are_the_same_in_any_order_and_in_any_process(
    suite: Suite, arguments: tuple[str, ...]
) -> None:
    if "randomly" in arguments and not suite.has_randomly:
        pytest.skip("needs pytest-randomly")
    suite.write(TWO_RULES)
    result = suite.run_apart(*arguments)
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines(["2 rules held, 2 violations rejected"])


WHERE = """
import os

def test_where(record_property):
    record_property("process", os.getpid())

def test_where_else(record_property):
    record_property("process", os.getpid())
"""


@pytest.mark.parametrize(
    ("arguments", "together"), [(("-n2",), True), (("-n2", "--dist=each"), False)]
)
def test_the_tests_of_a_file_share_a_process_unless_told_otherwise(
    suite: Suite, arguments: tuple[str, ...], together: bool
) -> None:
    for name in ("test_one.py", "test_two.py", "test_three.py"):
        suite.write(WHERE, name=name)
    suite.run_apart(*arguments, "--junitxml=report.xml")
    processes: dict[str, set[str]] = {}
    for case in ElementTree.parse(suite.path / "report.xml").iter("testcase"):
        for found in case.iter("property"):
            processes.setdefault(case.attrib["classname"], set()).add(found.attrib["value"])
    assert len(processes) == 3
    assert all((len(where) == 1) == together for where in processes.values())


def test_collect_only_lists_subjects_and_violations(suite: Suite) -> None:
    suite.write(HOLDS)
    result = suite.run("--collect-only", "-q")
    result.stdout.fnmatch_lines(
        [
            "arithmetic/test_doubling.py::test_twice[[]test_doubling[]]",
            "arithmetic/test_doubling.py::test_twice[[]rejects triple[]]",
        ]
    )
    result.stdout.no_fnmatch_line("*rulebook*")


@pytest.mark.parametrize(
    ("arguments", "passed"),
    [(("-k", "even"), 2), (("-k", "rejects"), 2), (("-m", "violation"), 2), (("-m", "subject"), 2)],
)
def test_tests_are_selected_as_usual(suite: Suite, arguments: tuple[str, ...], passed: int) -> None:
    suite.write(TWO_RULES)
    suite.run(*arguments).assert_outcomes(passed=passed, deselected=4 - passed)


def test_last_failed_runs_what_failed(suite: Suite) -> None:
    suite.write(TWO_RULES, "def test_fails():\n    assert False\n")
    arguments = ("-p", "no:randomly", "-q")
    suite.pytester.runpytest_inprocess(*arguments).assert_outcomes(passed=4, failed=1)
    suite.pytester.runpytest_inprocess(*arguments, "--lf").assert_outcomes(failed=1)


def test_junit_names_the_rule(suite: Suite) -> None:
    suite.write(HOLDS)
    suite.run("--junitxml", "junit.xml")
    cases = ElementTree.parse(suite.path / "junit.xml").iter("testcase")
    found = {case.get("name"): [p.get("value") for p in case.iter("property")] for case in cases}
    assert found == {
        "test_twice[test_doubling]": ["DBL-01"],
        "test_twice[rejects triple]": ["DBL-01"],
    }


def test_it_runs_from_another_directory(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    suite.write(HOLDS)
    elsewhere = suite.pytester.mkdir("elsewhere")
    monkeypatch.chdir(elsewhere)
    (elsewhere / "mine.py").write_text("def double(x):\n    return x + x\n")
    result = suite.run(suite.path / "arithmetic", "--subject", "mine.py", "--ledger", "run.json")
    result.assert_outcomes(passed=2)
    assert (elsewhere / "run.json").exists()

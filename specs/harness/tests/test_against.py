"""`--against`, `--compare`, `--allow` and `--report`: an upgrade seen from the command line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from specs.harness.tests.conftest import HOLDS, Suite
from specs.harness.tests.test_options import assert_usage_error

#: What the suite judges: a package that gets upgraded.
LIBRARY = "def double(x): return {double}\n"
USES = "\nfrom library import double\n"

OBSERVES = """
@rule("DBL-02", "double(x) is a number.", kind="contract", source=SOURCE, subject=double,
      violated_by=[lambda_free])
def test_number(double, observe):
    observe("of three", double(3.0))
    assert isinstance(double(3.0), float)
"""
VIOLATION = "\ndef lambda_free(x):\n    return 'x'\n"


@pytest.fixture
def upgraded(suite: Suite) -> Suite:
    """A suite whose old ledger saw double(3.0) == 6.0; now it is 6.5."""
    suite.write(USES, VIOLATION, OBSERVES)
    install(suite, "2 * x")
    assert suite.run_apart("--ledger", "old.json").ret == 0
    install(suite, "2 * x + 0.5")
    return suite


def install(suite: Suite, double: str) -> None:
    (suite.path / "library.py").write_text(LIBRARY.format(double=double))
    suite.pytester.makeini("[pytest]\npythonpath = .\n")


def saw(suite: Suite, value: str, name: str) -> None:
    """A ledger of a library in which double is this."""
    install(suite, value)
    assert suite.run_apart("--ledger", name).ret == 0


def test_a_change_fails_the_run_and_is_shown_with_what_to_do(upgraded: Suite) -> None:
    result = upgraded.run_apart("--against", "old.json")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(
        [
            "*= compared with the older ledger =*",
            "the same versions",
            "behaviour: 1 change",
            "DBL-02: double(x) is a number.",
            "    test_number[[]library[]]: of three: 6.0 -> 6.5",
            "    the same code computes something else: look at the observation in the spec of *",
            "1 change beyond rounding",
        ]
    )


def test_the_same_environment_changes_nothing_whatever_the_order(upgraded: Suite) -> None:
    upgraded.write(HOLDS, name="test_second.py")
    saw(upgraded, "2 * x", "old.json")
    for arguments in ([], ["-n", "2"], ["--maxfail=3", "arithmetic/test_second.py", "arithmetic"]):
        result = upgraded.run_apart("--against", "old.json", *arguments)
        assert result.ret == pytest.ExitCode.OK
        result.stdout.fnmatch_lines(["nothing changed beyond rounding"])


def test_rounding_never_fails_a_run(upgraded: Suite) -> None:
    install(upgraded, "2 * x * (1 + 1e-15)")
    result = upgraded.run_apart("--against", "old.json")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(
        ["rounding: 1 number moved, by * ulps at most (DBL-02)", "nothing changed beyond rounding"]
    )


def test_a_rule_that_fails_now_is_a_change_of_verdict(upgraded: Suite) -> None:
    install(upgraded, "int(2 * x)")
    result = upgraded.run_apart("--against", "old.json")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        ["verdict: 1 change", "DBL-02: *", "    held -> failed (test_number[[]library[]]: *"]
    )


def test_only_the_rules_that_ran_are_compared(upgraded: Suite) -> None:
    upgraded.write(HOLDS, name="test_second.py")
    result = upgraded.run_apart("--against", "old.json", "arithmetic/test_second.py")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["not compared: only in the old ledger: DBL-02"])


def test_two_files_are_compared_without_running_anything(upgraded: Suite) -> None:
    saw(upgraded, "2 * x + 0.5", "new.json")
    (upgraded.path / "arithmetic" / "test_doubling.py").write_text("raise SystemExit('ran')")
    result = upgraded.run_apart("--compare", "old.json", "new.json")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*of three: 6.0 -> 6.5", "1 change beyond rounding"])
    same = upgraded.run_apart("--compare", "new.json", "new.json")
    assert same.ret == pytest.ExitCode.OK
    assert "test session starts" not in result.stdout.str() + same.stdout.str()


def test_ledgers_may_be_compressed(upgraded: Suite) -> None:
    packed = gzip.compress((upgraded.path / "old.json").read_bytes())
    (upgraded.path / "old.json.gz").write_bytes(packed)
    assert upgraded.run_apart("--compare", "old.json", "old.json.gz").ret == pytest.ExitCode.OK


def test_an_allowed_change_fails_no_run_and_a_stale_entry_is_named(upgraded: Suite) -> None:
    (upgraded.path / "allowed.txt").write_text(
        "# read on Monday\n\nDBL-02 behaviour: halves are fine with us\nDBL-01 text: no more\n"
    )
    result = upgraded.run_apart("--against", "old.json", "--allow", "allowed.txt")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(
        [
            "    allowed: halves are fine with us",
            "allowed, but not seen: DBL-01 text: no more",
            "nothing changed beyond rounding, 1 allowed",
        ]
    )


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("DBL-02 behaviour", "line 1: expected RULE CLASS: REASON, got 'DBL-02 behaviour'"),
        ("\nDBL-02 behaviour:  ", "line 2: expected a reason behind the colon"),
        (
            "DBL-02 rounding: always",
            "line 1: 'rounding' is none of verdict, behaviour, warning, signature, text",
        ),
    ],
)
def test_a_bad_entry_is_a_usage_error(upgraded: Suite, text: str, complaint: str) -> None:
    (upgraded.path / "allowed.txt").write_text(text)
    result = upgraded.run("--against", "old.json", "--allow", "allowed.txt")
    assert_usage_error(result, f"--allow allowed.txt, {complaint}")


def test_reports_hold_every_change(upgraded: Suite) -> None:
    reports = ("--report", "changes.md", "--report", "changes.json")
    upgraded.run_apart("--against", "old.json", *reports)
    page = (upgraded.path / "changes.md").read_text()
    assert "## Behaviour: 1 change" in page
    assert "| `test_number[library]: of three` | `6.0` | `6.5` |" in page
    document = json.loads((upgraded.path / "changes.json").read_text())
    assert document["schema"] == "torch-rulebook/comparison"
    assert document["failing"] == 1
    (change,) = document["changes"]
    assert (change["kind"], change["rules"]) == ("behaviour", ["DBL-02"])
    assert (change["old"], change["new"]) == ("6.0", "6.5")


def damaged(**changes: Any) -> str:
    """A small ledger with something wrong."""
    good: dict[str, Any] = {
        "schema": "torch-rulebook/ledger",
        "schema_version": 1,
        "suite": "0.1.0",
        "versions": {"python": "3.12.1", "torch": "2.13.0"},
        "machine": {},
        "devices": ["cpu"],
        "subject": None,
        "complete": True,
        "rules": {},
        "other_tests": {},
        "not_run": [],
        "drew": [],
        "seconds": {"total": 1, "rules": {}, "tests": {}},
    }
    return json.dumps({key: one for key, one in (good | changes).items() if one != "gone"})


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "not JSON, or cut off (line 1: Expecting value)"),
        (damaged()[:200], "not JSON, or cut off (line 1: *)"),
        ("[1, 2]", "not a ledger: expected the key schema to be torch-rulebook/ledger"),
        (damaged(schema="other"), "not a ledger: expected the key schema to be *"),
        (damaged(schema_version=2), "schema_version is 2, expected 1"),
        (damaged(suite="0.0.9"), "written by suite 0.0.9, this is 0.1.0: write it again *"),
        (damaged(rules="gone"), "the whole: 'rules' is a required property"),
        (damaged(devices="cpu"), "devices: 'cpu' is not of type 'array'"),
        (damaged(rules={"A-01": {"statement": 3}}), "rules/A-01*"),
        (damaged(seconds={"total": "long"}), "seconds*"),
    ],
)
def test_a_bad_ledger_is_a_usage_error_of_one_line(suite: Suite, text: str, complaint: str) -> None:
    (suite.path / "old.json").write_text(text)
    suite.write(HOLDS)
    for arguments in (["--against", "old.json"], ["--compare", "old.json", "old.json"]):
        result = suite.run(*arguments)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines([f"ERROR: {arguments[0]} old.json: {complaint}"])


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--against", "none.json"], "--against none.json: no such file"),
        (["--against", "."], "--against .: is a directory, expected a ledger"),
        (["--compare", "old.json", "none.json"], "--compare none.json: no such file"),
        (["--allow", "allowed.txt"], "--allow: needs --against or --compare"),
        (["--report", "changes.md"], "--report: needs --against or --compare"),
        (
            ["--against", "old.json", "--report", "changes.txt"],
            "--report changes.txt: expected a name that ends with .md or .json",
        ),
        (
            ["--against", "old.json", "--report", "no/changes.md"],
            "--report no/changes.md: no directory {path}/no",
        ),
        (["--against", "old.json", "--allow", "none.txt"], "--allow none.txt: no such file"),
        (
            ["--against", "old.json", "--compare", "old.json", "old.json"],
            "--compare: compares two files, and --against a run: choose one",
        ),
    ],
)
def test_bad_input_is_a_usage_error_of_one_line(
    suite: Suite, arguments: list[str], line: str
) -> None:
    (suite.path / "old.json").write_text(damaged())
    suite.write(HOLDS)
    assert_usage_error(suite.run(*arguments), line.format(path=suite.path))


def test_damaged_compression_is_a_usage_error(suite: Suite) -> None:
    Path(suite.path / "old.json.gz").write_bytes(gzip.compress(damaged().encode())[:-9])
    suite.write(HOLDS)
    result = suite.run("--against", "old.json.gz")
    assert_usage_error(result, "--against old.json.gz: damaged, expected a ledger")

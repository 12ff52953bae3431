"""A rule that is declared wrongly is a collection error with one clear line."""

from __future__ import annotations

import pytest

from specs.harness.tests.conftest import HOLDS, Suite

ARGUMENTS = {
    "id": '"DBL-01"',
    "statement": '"double(x) is twice x."',
    "kind": '"contract"',
    "source": "SOURCE",
    "subject": "double",
    "violated_by": "[triple]",
}

#: What is declared differently, and the line that says so.
WRONG = [
    ({"id": '"dbl1"'}, "rule id 'dbl1' is malformed: expected capitals-digits, such as 'LR-01'"),
    ({"statement": '" "'}, "rule DBL-01 has no statement"),
    ({"kind": '"law"'}, "rule DBL-01: kind 'law' is none of contract, practice, claim"),
    ({"source": '""'}, "rule DBL-01 has no source: expected an address, got ''"),
    (
        {"source": '"the manual"'},
        "rule DBL-01 has no source: expected an address, got 'the manual'",
    ),
    ({"subject": "[]"}, "rule DBL-01 has no subject"),
    (
        {"violated_by": "[]"},
        "rule DBL-01 has no violation: name a wrong subject that its spec rejects",
    ),
    (
        {"violated_by": "[lambda x: 3 * x]"},
        "rule DBL-01: the violation <function <lambda> at 0x*> has no name of its own;*",
    ),
    ({"violated_by": "[triple, triple]"}, "rule DBL-01: two violations have the same name"),
    ({"kind": '"practice"'}, "rule DBL-01 is a practice without a consequence"),
    ({"kind": '"claim"'}, "rule DBL-01: a claim, and only a claim, has a verdict"),
    ({"verdict": '"holds"'}, "rule DBL-01: a claim, and only a claim, has a verdict"),
    (
        {"kind": '"claim"', "verdict": '"maybe"'},
        "rule DBL-01: verdict 'maybe' is none of 'holds', 'false', 'holds if <condition>'",
    ),
]


def assert_one_line_of_collection_error(result: pytest.RunResult, line: str) -> None:
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines([f"*{line}"])
    result.stdout.no_fnmatch_line("*Traceback*")
    result.stdout.no_fnmatch_line("*site-packages*")


@pytest.mark.parametrize(("change", "line"), WRONG)
def test_a_wrong_declaration_is_named_in_one_line(
    suite: Suite, change: dict[str, str], line: str
) -> None:
    arguments = ", ".join(f"{name}={value}" for name, value in (ARGUMENTS | change).items())
    suite.write(f"@rule({arguments})\ndef test_twice(double):\n    assert double(1) == 2\n")
    assert_one_line_of_collection_error(suite.run(), line)


def test_a_test_without_an_argument_has_nothing_to_judge(suite: Suite) -> None:
    arguments = ", ".join(f"{name}={value}" for name, value in ARGUMENTS.items())
    suite.write(f"@rule({arguments})\ndef test_twice():\n    pass\n")
    line = "rule DBL-01: test_twice takes no argument; the first one receives the subject"
    assert_one_line_of_collection_error(suite.run(), line)


def test_an_id_is_used_once_in_a_file(suite: Suite) -> None:
    suite.write(HOLDS, HOLDS.replace("test_twice", "test_again"))
    assert_one_line_of_collection_error(
        suite.run(),
        "arithmetic/test_doubling.py:20: rule DBL-01 is already declared"
        " at arithmetic/test_doubling.py:13",
    )


def test_an_id_is_used_once_in_the_suite(suite: Suite) -> None:
    suite.write(HOLDS, name="test_one.py")
    suite.write(HOLDS, name="test_two.py")
    assert_one_line_of_collection_error(
        suite.run(),
        "arithmetic/test_two.py:13: rule DBL-01 is already declared at arithmetic/test_one.py:13",
    )


def test_a_spec_needs_its_rule_above_it_in_the_same_file(suite: Suite) -> None:
    suite.write(HOLDS, name="test_one.py")
    further = '@spec("DBL-01", violated_by=[triple])\ndef test_more(double):\n    assert False\n'
    suite.write(further, name="test_two.py")
    assert_one_line_of_collection_error(
        suite.run(), "arithmetic/test_two.py:12: no rule DBL-01 is declared above in this file"
    )


def test_methods_of_a_class_can_be_specs(suite: Suite) -> None:
    body = HOLDS.replace("(double, observe)", "(self, double, observe)")
    suite.write("class TestDoubling:\n", "\n".join(f"    {line}" for line in body.splitlines()))
    suite.run("-v").stdout.fnmatch_lines(
        [
            "*::TestDoubling::test_twice[[]test_doubling[]] PASSED*",
            "*::TestDoubling::test_twice[[]rejects triple[]] PASSED*",
        ]
    )

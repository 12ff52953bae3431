"""A violation passes only if the rule rejects it, and for the right reason."""

from __future__ import annotations

import pytest

from specs.harness.tests.conftest import HOLDS, Suite

RULE = """
@rule("DBL-01", "double(x) is twice x.", kind="contract", source=SOURCE,
      subject=double, violated_by=[{violations}])
"""


def rule_violated_by(violations: str, test: str) -> str:
    return RULE.format(violations=violations) + test


def test_a_subject_passes_and_a_violation_is_rejected(suite: Suite) -> None:
    suite.write(HOLDS)
    result = suite.run("-v")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(
        ["*::test_twice[[]test_doubling[]] PASSED*", "*::test_twice[[]rejects triple[]] PASSED*"]
    )


def test_an_accepted_violation_fails_the_run(suite: Suite) -> None:
    suite.write(rule_violated_by("triple", "def test_zero(double):\n    assert double(0) == 0\n"))
    result = suite.run()
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        [
            "DBL-01 cannot tell right from wrong: it accepts triple",
            "  rule: double(x) is twice x.",
            "DBL-01 FAILED: double(x) is twice x.",
        ]
    )


def test_an_unrelated_error_is_no_rejection(suite: Suite) -> None:
    suite.write(
        "def double_of_nothing():\n    return 0\n",
        rule_violated_by("double_of_nothing", "def test(double):\n    assert double(1) == 2\n"),
    )
    result = suite.run()
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        [
            "DBL-01 cannot tell right from wrong: double_of_nothing dies by accident",
            "  expected: a failed assertion of the spec",
            "  got: TypeError: double_of_nothing() takes 0 positional arguments but 1 was given *",
        ]
    )


def test_an_assertion_inside_the_violation_is_no_rejection(suite: Suite) -> None:
    suite.write(
        "def refuse(x):\n    assert x < 0, 'only negative'\n    return 2 * x\n",
        "class Refuse:\n    def __call__(self, x):\n        raise AssertionError('from a class')\n",
        "def test_placeholder():\n    pass\n",
        rule_violated_by("refuse", "def test(double):\n    assert double(1) == 2\n"),
    )
    result = suite.run()
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["  got: AssertionError: only negative*"])


def test_raises_and_warns_count_as_assertions(suite: Suite) -> None:
    suite.write(
        "def strict(x):\n    if x is None:\n        raise ValueError('nothing to double')\n",
        "def lenient(x):\n    return None\n",
        """
@rule("DBL-01", "Nothing cannot be doubled.", kind="contract", source=SOURCE,
      subject=strict, violated_by=[lenient])
def test_refused(double):
    with pytest.raises(ValueError, match="nothing"):
        double(None)

@spec("DBL-01", violated_by=[lenient])
def test_warned(double):
    with pytest.warns(UserWarning):
        import warnings
        try:
            double(None)
        except ValueError:
            warnings.warn("refused")
""",
    )
    suite.run().assert_outcomes(passed=4)


def test_a_documented_exception_rejects(suite: Suite) -> None:
    suite.write(
        "def refuse(x):\n    raise OverflowError('too large')\n",
        rule_violated_by(
            "raising(OverflowError, refuse)", "def test(double):\n    assert double(1) == 2\n"
        ),
    )
    suite.run().assert_outcomes(passed=2)


def test_where_an_exception_is_documented_nothing_else_rejects(suite: Suite) -> None:
    suite.write(
        rule_violated_by(
            "raising(OverflowError, triple)", "def test(double):\n    assert double(1) == 2\n"
        ),
    )
    result = suite.run()
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["  expected: OverflowError", "  got: AssertionError:*"])


def test_a_property_rejects_a_violation_without_shrinking(suite: Suite) -> None:
    suite.write(
        "from hypothesis import given, strategies as st\ncalls = []\n",
        "def wrong_above_ten(x):\n    calls.append(x)\n    return 2 * x + (x > 10)\n",
        rule_violated_by(
            "wrong_above_ten",
            "@given(x=st.integers())\ndef test(double, x):\n    assert double(x) == x + x\n",
        ),
        "def test_no_call_follows_the_first_failure():\n",
        "    assert [x > 10 for x in calls] == [False] * (len(calls) - 1) + [True]\n",
    )
    suite.run().assert_outcomes(passed=3)


def test_a_violation_gets_more_inputs_than_a_subject(suite: Suite) -> None:
    suite.write(
        "from hypothesis import given, strategies as st\nseen = {}\n",
        "def rarely_wrong(x):\n    return 2 * x + (len(seen) == 400)\n",
        rule_violated_by(
            "rarely_wrong",
            "@given(x=st.integers())\ndef test(double, x):\n"
            "    seen[x] = double\n    assert double(x) == x + x\n",
        ),
        "def test_only_the_violation_saw_so_many():\n",
        "    assert 0 < sum(judged is double for judged in seen.values()) <= 100\n",
    )
    suite.run().assert_outcomes(passed=3)


def test_a_property_that_accepts_a_violation_fails_the_run(suite: Suite) -> None:
    suite.write(
        "from hypothesis import given, strategies as st\n",
        rule_violated_by(
            "triple",
            "@given(x=st.just(0))\ndef test(double, x):\n    assert double(x) == x + x\n",
        ),
    )
    result = suite.run()
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*it accepts triple"])


def test_a_skip_is_a_skip_for_violations_too(suite: Suite) -> None:
    suite.write(
        rule_violated_by("triple", "def test(double):\n    pytest.skip('needs an abacus')\n")
    )
    result = suite.run()
    result.assert_outcomes(skipped=2)
    result.stdout.fnmatch_lines(["skipped: needs an abacus (DBL-01)"])


def test_every_parameter_meets_every_violation(suite: Suite) -> None:
    suite.write(
        "def constant(x):\n    return 4\n",
        "@pytest.mark.parametrize('x', [1, 3])",
        rule_violated_by("triple, constant", "def test(double, x):\n    assert double(x) == x + x"),
    )
    suite.run().assert_outcomes(passed=6)


def test_several_subjects_are_judged_one_by_one(suite: Suite) -> None:
    suite.write(
        "import operator\ndef by_adding(x):\n    return x + x\n",
        RULE.format(violations="triple").replace("=double", "=[double, by_adding]"),
        "def test(double):\n    assert double(1) == 2\n",
    )
    result = suite.run("-v")
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(["*[[]test_doubling.double[]]*", "*[[]test_doubling.by_adding[]]*"])


BUG = """
@rule("DBL-01", "double(x) is twice x.", kind="contract", source=SOURCE,
      subject=[known_bug({target}, "https://example.org/issues/7"{options}), double],
      violated_by=[triple])
def test(double):
    assert double(1) == 2
"""


def test_a_known_bug_is_expected_and_named(suite: Suite) -> None:
    suite.write("def quadruple(x):\n    return 4 * x\n", BUG.format(target="quadruple", options=""))
    result = suite.run()
    result.assert_outcomes(passed=2, xfailed=1)
    result.stdout.fnmatch_lines(["DBL-01: known upstream bug: https://example.org/issues/7"])


def test_the_same_function_given_by_the_user_has_the_same_bug(suite: Suite) -> None:
    (suite.path / "lib.py").write_text("def double(x):\n    return 4 * x\n")
    suite.write("import lib\n", BUG.format(target="lib.double", options=""))
    suite.run_apart("--subject", "lib").assert_outcomes(passed=1, xfailed=1)


def test_a_known_bug_that_is_gone_fails_the_run(suite: Suite) -> None:
    suite.write("def fixed(x):\n    return 2 * x\n", BUG.format(target="fixed", options=""))
    result = suite.run()
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*XPASS(strict)*known upstream bug*"])


def test_a_bug_is_not_expected_from_the_release_that_fixes_it(suite: Suite) -> None:
    suite.write(
        BUG.format(target="lambda_free", options=', fixed_in="2.0"').replace(
            "lambda_free", "double_too"
        ),
        name="test_fixed.py",
    )
    path = suite.path / "arithmetic" / "test_fixed.py"
    path.write_text(
        path.read_text().replace("@rule", "def double_too(x):\n    return 2 * x\n\n@rule", 1)
    )
    suite.run().assert_outcomes(passed=3)


def test_nobody_explains_how_a_violation_differs(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pytest would look for the lines that differ; for long lists, in CI, that takes hours."""
    monkeypatch.setenv("CI", "true")
    suite.write(HOLDS.replace("double(4) == 4 + 4", "[double(4)] == [8]"))
    suite.pytester.makeconftest(
        """
pytest_plugins = ["specs.harness.plugin"]

def pytest_assertrepr_compare(left):
    with open("explained.txt", "a") as file:
        print(left, file=file)
"""
    )
    suite.run("-v").assert_outcomes(passed=2)
    assert not (suite.path / "explained.txt").exists()

    (suite.path / "subjects.py").write_text("def double(x):\n    return x\n")
    suite.run_apart("--subject", "subjects").assert_outcomes(passed=1, failed=1)
    assert (suite.path / "explained.txt").read_text() == "[4]\n"

"""The options: what each does, and the one line that bad input gets."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from specs.harness.devices import chosen_devices, present_devices
from specs.harness.tests.conftest import HOLDS, Suite

HALF = '''
def half(x):
    return x / 2

@rule("HLF-01", "half(x) is x over two.", kind="practice", source=SOURCE, subject=half,
      violated_by=[double], consequence="The whole is taken for the half.")
def test_halved(half):
    """Two halves
    make a whole.

    A second paragraph is for those who read the file.
    """
    assert half(4) == 2

@rule("CLAIM-01", "A half is smaller than its whole.", kind="claim", source=SOURCE, subject=half,
      violated_by=[double], verdict="holds if the whole is positive")
def test_smaller(half):
    assert half(4) < 4
'''


def assert_usage_error(result: pytest.RunResult, line: str) -> None:
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    errors = [found for found in result.errlines if found.startswith("ERROR: ")]
    assert errors == [f"ERROR: {line}"]


# --rules


def test_rules_prints_the_table_of_contents_and_runs_nothing(suite: Suite) -> None:
    suite.write(HOLDS, HALF)
    result = suite.run("--rules")
    assert result.ret == pytest.ExitCode.OK
    result.assert_outcomes()
    result.stdout.fnmatch_lines(
        [
            "*- arithmetic -*",
            "DBL-01    contract double(x) is twice x.",
            "HLF-01    practice half(x) is x over two.",
            "CLAIM-01  claim    A half is smaller than its whole. [[]holds if *]",
            "*= 3 rules: 1 claim, 1 contract, 1 practice =*",
        ]
    )


@pytest.mark.parametrize("extra", ["-q", "-n2", "-v"])
def test_rules_prints_the_same_whatever_else_is_asked(suite: Suite, extra: str) -> None:
    suite.write(HOLDS, HALF)
    result = suite.run("--rules", extra)
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["DBL-01*", "*= 3 rules: 1 claim, 1 contract, 1 practice =*"])


# --rule


def test_rule_explains_the_rule_before_its_verdict(suite: Suite) -> None:
    suite.write(HOLDS, HALF)
    result = suite.run("--rule", "HLF-01", "-v")
    result.assert_outcomes(passed=2, deselected=4)
    result.stdout.fnmatch_lines(
        [
            "*- HLF-01 (practice) -*",
            "half(x) is x over two.",
            "why:         Two halves make a whole.",
            "consequence: The whole is taken for the half.",
            "source:      https://example.org/doubling",
            "*test_halved*PASSED*",
        ],
        consecutive=False,
    )


def test_several_rules_are_separated_by_commas(suite: Suite) -> None:
    suite.write(HOLDS, HALF)
    result = suite.run("--rule", "CLAIM-01, DBL-01", "-n2")
    result.assert_outcomes(passed=4, deselected=2)
    result.stdout.fnmatch_lines(["verdict: *holds if the whole is positive"])


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("DBL-02", "--rule DBL-02: no such rule among those collected; nearest: DBL-01"),
        (
            "DBL-01,hlf-01",
            "--rule hlf-01: no such rule among those collected; nearest: HLF-01, DBL-01",
        ),
        ("???", "--rule ???: no such rule among those collected"),
        ("", "--rule: expected one id or several separated by commas"),
        ("DBL-01,", "--rule DBL-01,: expected one id or several separated by commas"),
    ],
)
def test_an_unknown_rule_is_answered_with_the_nearest(suite: Suite, given: str, line: str) -> None:
    suite.write(HOLDS, HALF)
    assert_usage_error(suite.run("--rule", given), line)


# --device

DEVICE = """
def test_runs_on(device):
    assert device.type == "cpu"
"""


def simulate(monkeypatch: pytest.MonkeyPatch, *present: str) -> None:
    """Pretend that these device types, and no others, are there beside the CPU."""

    def answer(name: str) -> Callable[[], bool]:
        return lambda: name in present

    monkeypatch.setattr(torch.cuda, "is_available", answer("cuda"))
    monkeypatch.setattr(torch.backends.mps, "is_available", answer("mps"))
    monkeypatch.setattr(torch.xpu, "is_available", answer("xpu"))


@pytest.mark.parametrize(
    ("present", "choice", "chosen"),
    [
        ([], "cpu", ["cpu"]),
        ([], "auto", ["cpu"]),
        ([], "all", ["cpu"]),
        (["cuda"], "cpu", ["cpu"]),
        (["cuda"], "auto", ["cuda"]),
        (["cuda"], "all", ["cpu", "cuda"]),
        (["mps"], "auto", ["mps"]),
        (["mps"], "mps", ["mps"]),
        (["xpu"], "xpu", ["xpu"]),
        (["cuda", "xpu"], "all", ["cpu", "cuda", "xpu"]),
    ],
)
def test_the_choice_stands_for_devices_that_are_there(
    monkeypatch: pytest.MonkeyPatch, present: list[str], choice: str, chosen: list[str]
) -> None:
    simulate(monkeypatch, *present)
    assert chosen_devices(choice) == chosen


def test_an_absent_device_is_answered_with_those_present(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulate(monkeypatch, "cuda")
    suite.write(DEVICE)
    assert_usage_error(
        suite.run("--device", "mps"),
        "--device mps: not present on this machine; present: cpu, cuda",
    )


def test_a_word_that_is_no_device_is_a_usage_error(suite: Suite) -> None:
    result = suite.run("--device", "abacus")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*argument --device: invalid choice: 'abacus'*"])


def test_the_device_argument_names_itself_in_the_item(suite: Suite) -> None:
    suite.write(DEVICE)
    result = suite.run("-v")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*::test_runs_on[[]cpu[]] PASSED*"])


def test_all_runs_on_every_device(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    simulate(monkeypatch, "cuda")
    suite.write("def test_runs_on(device):\n    print(device)\n")
    result = suite.run("-v", "--device", "all")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*[[]cpu[]] PASSED*", "*[[]cuda[]] PASSED*"])


def test_the_cpu_is_always_present() -> None:
    assert present_devices()[0] == "cpu"


# --subject


def test_a_file_is_judged_in_place_of_the_rules_subject(suite: Suite) -> None:
    suite.write(HOLDS)
    (suite.path / "mine.py").write_text("def double(x):\n    return x + x\n")
    result = suite.run("--subject", "mine.py", "-v")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(
        ["*::test_twice[[]mine[]] PASSED*", "*[[]rejects triple[]] PASSED*", "*judging mine.py"]
    )


def test_a_module_is_judged_too(suite: Suite) -> None:
    suite.write(HOLDS)
    suite.pytester.mkpydir("package").joinpath("mine.py").write_text("double = (2).__mul__\n")
    result = suite.run("--subject", "package.mine", "-v")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*::test_twice[[]mine[]] PASSED*"])


def test_a_wrong_subject_fails_the_rule(suite: Suite) -> None:
    suite.write(HOLDS)
    (suite.path / "mine.py").write_text("def double(x):\n    return x ** 2\n")
    result = suite.run("--subject", "mine.py")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["judged: *double (mine)", "DBL-01 FAILED: double(x) is twice x."])


def test_a_missing_name_is_skipped_by_name(suite: Suite) -> None:
    suite.write(HOLDS, HALF)
    (suite.path / "mine.py").write_text("def half(x):\n    return x / 2\n")
    result = suite.run("--subject", "mine.py")
    result.assert_outcomes(passed=4, skipped=1)
    result.stdout.fnmatch_lines(["skipped: mine has no double (DBL-01)"])


@pytest.mark.parametrize("workers", [(), ("-n2",)])
def test_workers_judge_the_same_subject(suite: Suite, workers: tuple[str, ...]) -> None:
    suite.write(HOLDS)
    (suite.path / "mine.py").write_text("def double(x):\n    return x ** 2\n")
    suite.run("--subject", "mine.py", *workers).assert_outcomes(passed=1, failed=1)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("1 / 0\n", "ZeroDivisionError: division by zero (mine.py, line 1)"),
        ("\ndouble = = 2\n", "SyntaxError: invalid syntax (mine.py, line 2)"),
        ("import nowhere\n", "ModuleNotFoundError: No module named 'nowhere' (mine.py, line 1)"),
        ("raise SystemExit\n", "SystemExit: no message (mine.py, line 1)"),
    ],
)
def test_a_subject_that_does_not_import_is_a_usage_error(
    suite: Suite, content: str, line: str
) -> None:
    suite.write(HOLDS)
    (suite.path / "mine.py").write_text(content)
    result = suite.run("--subject", "mine.py")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    expected = f"ERROR: --subject mine.py does not import: {line}"
    assert [found.split(" (<")[0] for found in result.errlines if found] == [expected]


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("none.py", "--subject none.py: no such file"),
        ("no.such.module", "--subject no.such.module: neither a file nor an importable module"),
        ("", "--subject: expected a file or a module"),
    ],
)
def test_an_absent_subject_is_a_usage_error(suite: Suite, given: str, line: str) -> None:
    suite.write(HOLDS)
    assert_usage_error(suite.run("--subject", given), line)


def test_a_subject_with_none_of_the_names_is_a_usage_error(suite: Suite) -> None:
    suite.write(HOLDS, HALF)
    (suite.path / "mine.py").write_text("def treble(x):\n    return 3 * x\n")
    assert_usage_error(
        suite.run("--subject", "mine.py"),
        "--subject mine.py has none of the names that these rules judge: double, half",
    )

"""The ledger: complete, the same for the same environment, and never half of one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from specs.harness import ledger
from specs.harness.record import RunRecord
from specs.harness.signatures import published_signature
from specs.harness.tests.conftest import HOLDS, Suite

MIXED = """
@rule("DBL-02", "double(x) is even.", kind="practice", source=SOURCE, subject=double,
      violated_by=[triple], consequence="Odd results.")
def test_even(double):
    assert double(1) % 2 == 0

@spec("DBL-02", violated_by=[triple])
def test_that_fails(double):
    assert double(1) == 7, "no such luck"

@rule("CLAIM-01", "Doubling is tripling.", kind="claim", source=SOURCE, subject=double,
      violated_by=[triple], verdict="false")
def test_claim(double, observe):
    observe("of two", double(2))
    assert double(2) != 6

@rule("DBL-03", "double needs an abacus.", kind="contract", source=SOURCE, subject=double,
      violated_by=[triple])
@pytest.mark.skipif(True, reason="needs an abacus")
def test_abacus(double):
    pass

@rule("DBL-04", "double is fast.", kind="contract", source=SOURCE,
      subject=known_bug(double, "https://example.org/issues/7"), violated_by=[triple])
def test_bug(double):
    assert False

def test_of_no_rule():
    pass
"""


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def without_seconds(found: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in found.items() if key != "seconds"}


def test_it_holds_versions_verdicts_observations_and_seconds(suite: Suite) -> None:
    suite.write(HOLDS, MIXED)
    result = suite.run("--ledger", "run.json")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines([f"ledger written to {suite.path / 'run.json'}"])
    found = read(suite.path / "run.json")

    assert (found["schema"], found["schema_version"]) == ("torch-rulebook/ledger", 1)
    assert found["versions"]["pytest"] == pytest.__version__
    assert set(found["versions"]) >= {"python", "torch", "torchvision", "wandb"}
    assert found["devices"] == ["cpu"]
    assert found["subject"] is None
    assert found["complete"] is True
    assert {id: entry["verdict"] for id, entry in found["rules"].items()} == {
        "CLAIM-01": "false",
        "DBL-01": "held",
        "DBL-02": "failed",
        "DBL-03": "skipped",
        "DBL-04": "known bug",
    }
    claim = found["rules"]["CLAIM-01"]
    assert (claim["kind"], claim["chapter"]) == ("claim", "arithmetic")
    assert claim["statement"] == "Doubling is tripling."
    assert claim["tests"] == {
        "arithmetic/test_doubling.py::test_claim[test_doubling]": {
            "role": "subject",
            "outcome": "passed",
            "reason": "",
            "observations": {"of two": 4},
        },
        "arithmetic/test_doubling.py::test_claim[rejects triple]": {
            "role": "violation",
            "outcome": "passed",
            "reason": "",
            "observations": {},
        },
    }
    failed = found["rules"]["DBL-02"]["tests"]
    reasons = {id.partition("::")[2]: test["reason"] for id, test in failed.items()}
    assert reasons["test_that_fails[test_doubling]"] == "AssertionError: no such luck"
    skipped = found["rules"]["DBL-03"]["tests"].values()
    assert {test["reason"] for test in skipped} == {"needs an abacus"}
    assert list(found["other_tests"]) == ["arithmetic/test_doubling.py::test_of_no_rule"]
    assert set(found["seconds"]["rules"]) == set(found["rules"])
    assert len(found["seconds"]["tests"]) == 13
    assert found["seconds"]["total"] > 0


def test_two_runs_are_equal_but_for_seconds(suite: Suite) -> None:
    suite.write(HOLDS, MIXED)
    runs = {"plain": (), "again": (), "workers": ("-n2",), "shuffled": ("-p", "randomly")}
    if not suite.has_randomly:
        del runs["shuffled"]
    for name, arguments in runs.items():
        suite.run_apart("--ledger", f"{name}.json", *arguments)
    found = [without_seconds(read(suite.path / f"{name}.json")) for name in runs]
    assert all(one == found[0] for one in found)


def test_what_minus_x_left_out_is_listed(suite: Suite) -> None:
    suite.write(HOLDS, MIXED)
    suite.run("-x", "--ledger", "run.json")
    found = read(suite.path / "run.json")
    assert found["complete"] is False
    assert "arithmetic/test_doubling.py::test_of_no_rule" in found["not_run"]
    assert "CLAIM-01" not in found["rules"]


def test_a_crash_of_a_worker_is_not_taken_for_a_complete_run(suite: Suite) -> None:
    suite.write(HOLDS, "def test_crash():\n    import os\n    os._exit(1)\n")
    suite.run_apart("-n1", "--maxfail=1", "--ledger", "run.json")
    found = read(suite.path / "run.json")
    crashed = "arithmetic/test_doubling.py::test_crash"
    assert crashed in found["not_run"] or found["other_tests"][crashed]["outcome"] != "passed"


@pytest.mark.parametrize("content", ["raise KeyboardInterrupt", "import pytest; pytest.exit('no')"])
def test_an_interrupted_run_leaves_the_old_ledger(suite: Suite, content: str) -> None:
    (suite.path / "run.json").write_text("the old one")
    suite.write(HOLDS, f"def test_interrupts():\n    {content}\n")
    result = suite.run_apart("--ledger", "run.json")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert (suite.path / "run.json").read_text() == "the old one"
    result.stdout.fnmatch_lines(["ledger * not written: the run did not finish"])


def test_a_run_that_collects_wrongly_leaves_the_old_ledger(suite: Suite) -> None:
    (suite.path / "run.json").write_text("the old one")
    suite.write(HOLDS, "1 / 0\n")
    suite.run("--ledger", "run.json")
    assert (suite.path / "run.json").read_text() == "the old one"


@pytest.mark.parametrize("option", ["--rules", "--collect-only"])
def test_a_run_of_nothing_writes_nothing(suite: Suite, option: str) -> None:
    suite.write(HOLDS)
    suite.run("--ledger", "run.json", option)
    assert not (suite.path / "run.json").exists()


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("", "--ledger: expected a file"),
        ("arithmetic", "--ledger arithmetic: is a directory, expected a file"),
        ("none/run.json", "--ledger none/run.json: no directory *none"),
    ],
)
def test_a_place_that_cannot_be_written_is_a_usage_error(
    suite: Suite, given: str, line: str
) -> None:
    suite.write(HOLDS)
    result = suite.run("--ledger", given)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {line}"])


def test_a_disk_that_refuses_leaves_the_old_ledger_and_no_litter(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    (suite.path / "run.json").write_text("the old one")
    suite.write(HOLDS)

    def refuse(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    result = suite.run("--ledger", "run.json")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stdout.fnmatch_lines(["ledger * not written: No space left on device"])
    assert (suite.path / "run.json").read_text() == "the old one"
    assert not list(suite.path.glob(".run.json*"))


def test_a_write_that_is_stopped_in_the_middle_leaves_the_old_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.json"
    path.write_text("the old one")

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        ledger.write(ledger.as_ledger(RunRecord(), ["cpu"], None), path)
    assert [found.name for found in tmp_path.iterdir()] == ["run.json"]
    assert path.read_text() == "the old one"


def test_the_signatures_of_published_subjects_are_recorded(suite: Suite) -> None:
    (suite.path / "wandb.py").write_text("def double(x: int, factor: float = 2.0): return 2 * x\n")
    published = "\nfrom wandb import double\n"
    suite.write(published, HOLDS, name="test_published.py")
    suite.write(HOLDS.replace("DBL-01", "DBL-02"), name="test_own.py")
    suite.run_apart("--ledger", "run.json")
    rules = json.loads((suite.path / "run.json").read_text())["rules"]
    assert rules["DBL-01"]["signatures"] == {"double": "(x, factor=2.0)"}
    assert rules["DBL-02"]["signatures"] == {}


def test_each_of_several_subjects_has_its_own_signature(suite: Suite) -> None:
    (suite.path / "wandb.py").write_text(
        "def double(x): return 2 * x\ndef twice(x, times=2): return times * x\n"
    )
    suite.write("\nfrom wandb import double, twice\n", HOLDS.replace("=double", "=[double, twice]"))
    suite.run_apart("--ledger", "run.json")
    signatures = json.loads((suite.path / "run.json").read_text())["rules"]["DBL-01"]["signatures"]
    assert signatures == {"double": "(x)", "double (twice)": "(x, times=2)"}


def test_a_compiled_function_is_recorded_by_the_first_line_of_its_documentation() -> None:
    class Compiled:
        """add(input, other) -> Tensor"""

        __module__ = "torch"

    compiled = Compiled()
    compiled.__doc__ = "\nadd(input, other, *, alpha=1) -> Tensor\n\nAdds."
    assert published_signature(compiled) == "add(input, other, *, alpha=1) -> Tensor"

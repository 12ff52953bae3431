"""README, CONTRIBUTING and docs say what is so."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from specs.harness.ledger import as_ledger
from specs.harness.record import RunRecord
from specs.harness.tests.conftest import ROOT, Suite

README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
MENDED = "    return (margin - y * (x1 - x2)).clamp(min=0).mean()\n"


def dependencies() -> list[str]:
    """What the project depends on, as pyproject.toml says it."""
    tomllib = pytest.importorskip("tomllib")  # Python 3.11 and newer
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    listed = [*project["dependencies"], *(one for extra in extras for one in extra)]
    return [one for one in listed if not one.startswith(project["name"])]


def write_worked_example(suite: Suite) -> Path:
    (code,) = re.findall(r"```python\n(.*?)```", CONTRIBUTING, flags=re.DOTALL)
    chapter = suite.path / "losses"
    chapter.mkdir()
    (chapter / "test_20_ranking.py").write_text(code)
    return chapter / "test_20_ranking.py"


def test_the_worked_example_does_what_the_guide_says(suite: Suite) -> None:
    write_worked_example(suite)
    result = suite.run_apart("--rule", "RANK-01", "-v")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*[[]torch[]] PASSED*", "*[[]rejects without_margin[]] PASSED*"])


def test_the_worked_example_complains_about_a_mended_violation(suite: Suite) -> None:
    path = write_worked_example(suite)
    assert MENDED.strip() in CONTRIBUTING
    path.write_text(re.sub(r"    return \(-y.*\n", MENDED, path.read_text()))
    result = suite.run_apart()
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["RANK-01 cannot tell right from wrong: it accepts without_margin"])


def test_the_readmes_own_loss_breaks_the_rules_that_it_names(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    subject = suite.path / "my_losses.py"
    subject.write_text(code)
    monkeypatch.chdir(ROOT)
    result = suite.run_apart("specs/losses", "--subject", subject)
    broken = re.findall(r"^(\S+) FAILED: ", "\n".join(result.outlines), flags=re.MULTILINE)
    (sentence,) = re.findall(r"This one breaks (.*?):", README, flags=re.DOTALL)
    assert sorted(broken) == sorted(re.findall(r"[A-Z]+-\d+", sentence))


def test_the_readme_documents_every_option(suite: Suite) -> None:
    ours = (
        "\n".join(suite.run("--help").outlines).partition("Torch Rulebook:\n")[2].split("\n\n")[0]
    )
    options = re.findall(r"^  (--[a-z-]+)", ours, flags=re.MULTILINE)
    assert len(options) >= 5
    assert [name for name in options if f"`{name}" not in README] == []


def test_the_readme_counts_the_rules_of_every_chapter(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    contents = suite.run_apart("specs", "--rules", "-q").outlines
    counts: dict[str, int] = {}
    for line in contents:
        if heading := re.fullmatch(r"-+ (\w+) -+", line):
            chapter = heading[1]
            counts[chapter] = 0
        elif re.match(r"[A-Z]+-\d+ ", line):
            counts[chapter] += 1
    stated = re.findall(r"^\| \[specs/(\w+)\]\(specs/\1\) \| (\d+) \|", README, flags=re.MULTILINE)
    assert {chapter: int(count) for chapter, count in stated} == counts
    assert f"{sum(counts.values())} rules" in README


def test_the_ledger_is_documented_key_by_key() -> None:
    documented = (ROOT / "docs" / "ledger.md").read_text()
    keys = as_ledger(RunRecord(), ["cpu"], None)
    assert [key for key in keys if f"`{key}`" not in documented] == []


def test_the_guide_gives_a_reason_for_every_dependency() -> None:
    required = dependencies()
    names = [re.split(r"[<>=!~ ]", one)[0] for one in required]
    assert [name for name in names if f"| {name} " not in CONTRIBUTING] == []


def test_no_dependency_is_capped() -> None:
    required = dependencies()
    assert [one for one in required if re.search(r"<|==|~=", one)] == []


def test_the_coverage_page_is_what_the_specs_say() -> None:
    done = subprocess.run([sys.executable, ROOT / "docs" / "coverage.py", "--check"], check=False)
    assert done.returncode == 0, "run python docs/coverage.py"


def test_the_pages_on_upgrades_are_what_their_ledgers_say() -> None:
    command = [sys.executable, str(ROOT / "docs" / "upgrades.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list((ROOT / "docs" / "upgrades").glob("*-to-*.md"))) == 5

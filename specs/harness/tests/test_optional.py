"""A package that is missing or broken costs its own rules, with a reason, and nothing else."""

from __future__ import annotations

import subprocess
import sys

import pytest

from specs.harness.optional import Missing, optional
from specs.harness.tests.conftest import HOLDS, ROOT, Suite

NEEDS = """
from specs.harness.optional import optional

vision = optional("no_such_vision.transforms")
"""

#: The subject comes from the package.
JUDGES = """
class Upside(vision.Flip):
    pass

@rule("VIS-01", "flip turns an image round.", kind="contract", source=SOURCE,
      subject=vision.flip, violated_by=[Upside, triple])
def test_flip(flip):
    assert flip(1) == 1
"""

#: The subject is there, but the test compares it with the package.
COMPARES = """
@rule("VIS-02", "double is what the package does.", kind="contract", source=SOURCE,
      subject=double, violated_by=[triple])
def test_same(double):
    assert double(2) == vision.double(2)
"""


def test_what_imports_is_the_module_itself() -> None:
    import json.decoder

    assert optional("json.decoder") is json.decoder


def test_rules_that_need_it_are_skipped_and_the_others_run(suite: Suite) -> None:
    suite.write(HOLDS, NEEDS, JUDGES, COMPARES)
    result = suite.run()
    # `triple` is refused by VIS-01 as ever: it comes from this file, not from the package.
    result.assert_outcomes(passed=3, skipped=4)
    result.stdout.fnmatch_lines(
        ["skipped: needs no_such_vision, which is not installed (VIS-01, VIS-02)"]
    )


def test_its_rules_are_listed_all_the_same(suite: Suite) -> None:
    suite.write(HOLDS, NEEDS, JUDGES)
    suite.run("--rules").stdout.fnmatch_lines(["VIS-01 *"])


def test_a_skipped_subject_is_labelled_as_if_it_were_there(suite: Suite) -> None:
    suite.write(NEEDS, JUDGES)
    suite.run("--collect-only", "-q").stdout.fnmatch_lines(["*::test_flip[[]no_such_vision[]]"])


def test_a_package_that_does_not_import_says_why(suite: Suite) -> None:
    (suite.path / "no_such_vision.py").write_text("raise RuntimeError('built for another torch')")
    suite.pytester.syspathinsert()
    suite.write(NEEDS, JUDGES)
    suite.run().stdout.fnmatch_lines(
        ["skipped: needs no_such_vision, which does not import: built for another torch (VIS-01)"]
    )


def test_a_package_whose_own_import_is_missing_says_which(suite: Suite) -> None:
    (suite.path / "no_such_vision.py").write_text("import no_such_codec")
    suite.pytester.syspathinsert()
    suite.write(NEEDS, JUDGES)
    suite.run().stdout.fnmatch_lines(["*does not import: No module named 'no_such_codec' (VIS-01)"])


def test_a_reference_needs_what_it_is_built_on() -> None:
    """reference.lightning_modules without Lightning: the reason names Lightning."""
    code = (
        "import sys; sys.modules['pytorch_lightning'] = None\n"
        "from specs.harness.optional import optional\n"
        "print(optional('reference.lightning_modules').reason)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "needs pytorch_lightning, which is not installed"


@pytest.mark.parametrize(
    "use",
    [
        lambda stand_in: stand_in(),
        lambda stand_in: list(stand_in),
        lambda stand_in: stand_in["first"],
        lambda stand_in: len(stand_in),
        lambda stand_in: isinstance(1, stand_in),
    ],
)
def test_using_a_stand_in_skips(use) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(pytest.skip.Exception, match="needs it"):
        use(Missing("package.module", "needs it").member)

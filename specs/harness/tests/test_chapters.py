"""The book has an order, its table of contents keeps it, and so does the run."""

from __future__ import annotations

import re

from specs.harness.chapters import READING_ORDER
from specs.harness.tests.conftest import HOLDS, PREAMBLE, ROOT, Suite

CONTENTS = (ROOT / "specs" / "README.md").read_text()


def contents_of(chapter: str) -> list[tuple[str, str]]:
    """File and question of each line of the table of contents under one chapter."""
    (section,) = re.findall(rf"^## \[\w+\]\({chapter}\).*?(?=^## |\Z)", CONTENTS, re.M | re.S)
    return re.findall(rf"^\| \[.+?\]\({chapter}/(\S+)\) \| (.+) \|$", section, re.M)


def test_the_table_of_contents_lists_the_chapters_in_reading_order() -> None:
    directories = {
        path.parent.name for path in ROOT.glob("specs/*/test_*.py") if path.parent.name != "harness"
    }
    listed = re.findall(r"^## \[\w+\]\((\w+)\)", CONTENTS, flags=re.MULTILINE)
    assert tuple(listed) == READING_ORDER
    assert set(listed) == directories


def test_the_table_of_contents_lists_every_file_in_order_with_a_question() -> None:
    for chapter in READING_ORDER:
        files = sorted(path.name for path in (ROOT / "specs" / chapter).glob("test_*.py"))
        lines = contents_of(chapter)
        assert [file for file, _ in lines] == files
        assert all(question.endswith("?") for _, question in lines)


def test_files_are_numbered_without_gaps() -> None:
    for chapter in READING_ORDER:
        files = sorted(path.name for path in (ROOT / "specs" / chapter).glob("test_*.py"))
        numbers = [int(name.split("_")[1]) for name in files]
        assert numbers == list(range(1, len(files) + 1)), chapter


def test_every_file_says_what_you_will_know_and_every_lesson_what_to_read_before() -> None:
    for chapter in READING_ORDER:
        for path in sorted((ROOT / "specs" / chapter).glob("test_*.py")):
            opening = path.read_text().split('"""')[1]
            assert "At the end you" in opening, path.name
            assert chapter != "foundations" or "Read before: " in opening, path.name


def test_a_run_goes_through_the_chapters_in_reading_order(suite: Suite) -> None:
    book = suite.path / "book"
    for number, chapter in enumerate(("devices", "arithmetic", "foundations", "losses")):
        directory = book / chapter
        directory.mkdir(parents=True)
        rule = HOLDS.replace("DBL-01", f"DBL-0{number}")
        (directory / f"test_{chapter}.py").write_text(PREAMBLE + rule)
    (book / "__init__.py").touch()
    expected = ["foundations", "losses", "devices", "arithmetic"]

    listed = suite.run("book", "--collect-only", "-q").outlines
    printed = suite.run("book", "--rules").outlines

    run_order = [line.split("/")[1] for line in listed if line.startswith("book/")]
    assert list(dict.fromkeys(run_order)) == expected
    assert re.findall(r"-- (\w+) --", "\n".join(printed)) == expected


def test_chapters_named_on_the_command_line_keep_their_order(suite: Suite) -> None:
    for chapter in ("devices", "foundations"):
        (suite.path / chapter).mkdir()
        rule = HOLDS.replace("DBL-01", "DBL-02" if chapter == "devices" else "DBL-01")
        (suite.path / chapter / f"test_{chapter}.py").write_text(PREAMBLE + rule)
    listed = suite.run("devices", "foundations", "--collect-only", "-q").outlines
    assert [line.split("/")[0] for line in listed if "::" in line] == ["devices"] * 2 + [
        "foundations"
    ] * 2

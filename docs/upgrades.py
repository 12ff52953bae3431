"""Writes the tables of docs/upgrades/*.md from the ledgers that lie beside them.

    python docs/upgrades.py            writes the pages
    python docs/upgrades.py --check    exits with 1 if a page is not what would be written

A page is named after its two ledgers, OLD-to-NEW.md. What stands above the mark is written by hand
and stays.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from specs.harness.comparison import compare  # noqa: E402
from specs.harness.comparison_report import Judgement, markdown  # noqa: E402
from specs.harness.ledger_file import read  # noqa: E402

DIRECTORY = ROOT / "docs" / "upgrades"

#: Releases that are in the ledger of another name: they are the rest of that environment.
WITHIN = {"pytorch-lightning-2.6.6": "torch-2.15.0", "wandb-0.31.0": "torch-2.15.0"}

#: Below this line a page is generated.
MARK = "<!-- Below: written by docs/upgrades.py from the two ledgers. -->"


def written(page: Path) -> str:
    """The page as it should be. Raises ValueError if the mark is missing."""
    by_hand, mark, _ = page.read_text(encoding="utf-8").partition(MARK)
    if not mark:
        raise ValueError(f"{page.name}: no line {MARK!r}")
    names = [WITHIN.get(name, name) for name in page.stem.split("-to-", 1)]
    old, new = (read(f"{name}.json.gz", DIRECTORY, page.name) for name in names)
    report = markdown(Judgement(compare(old, new), []))
    return f"{by_hand}{MARK}\n\n" + re.sub(r"^#", "##", report, flags=re.MULTILINE)


def main() -> int:
    wrong = []
    for page in sorted(DIRECTORY.glob("*-to-*.md")):
        text = written(page)
        if text != page.read_text(encoding="utf-8"):
            wrong.append(page.name)
            if "--check" not in sys.argv[1:]:
                page.write_text(text, encoding="utf-8")
    print("\n".join(f"{name}: changed" for name in wrong) or "all pages are as they should be")
    return int(bool(wrong) and "--check" in sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())

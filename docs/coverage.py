"""Writes docs/coverage.md: which spec proves each documented rule that the project set out from.

    python docs/coverage.py            writes the page
    python docs/coverage.py --check    exits with 1 if the page is not what would be written

Nothing is imported: rules are read from the source of the specs.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "coverage.md"

#: The documented rules, by group: what the letters stand for, and how many there are.
GROUPS = {
    "T": ("Tensors and dtypes", 10),
    "AG": ("Autograd", 15),
    "MOD": ("Modules and parameters", 8),
    "LOSS": ("Losses", 16),
    "OPT": ("Optimizers", 11),
    "LR": ("Learning rate schedulers", 25),
    "DATA": ("Data and DataLoader", 10),
    "LOOP": ("Training loop and evaluation", 6),
    "CKPT": ("Checkpoints and serialization", 8),
    "SEED": ("Reproducibility", 5),
    "INIT": ("Initialisation", 4),
    "CNN": ("Convolution, BatchNorm, vision input", 8),
    "TL": ("Transfer learning", 5),
    "VAE": ("Autoencoders, VAE, anomaly detection", 8),
    "AMP": ("Mixed precision", 5),
    "DEV": ("Devices", 4),
    "TC": ("torch.compile", 4),
    "DDP": ("Distributed training", 6),
    "PL": ("PyTorch Lightning", 20),
    "WB": ("Weights & Biases", 6),
    "CLAIM": ("Popular statements on trial", 26),
}

#: Documented rules that another rule proves, with what that one is.
PROVED_BY = {
    "T-09": "T-11",  # squeeze drops a batch of one
    "AG-04": "AG-07",  # backward starts at a scalar
    "AG-14": "CLAIM-26",  # torch.normal has a gradient of zero
    "MOD-02": "MOD-01",  # super().__init__() comes first
}

#: Documented rules, or whole groups, without a spec, and why.
LEFT_OUT = {
    "T-03": "integer division follows Python's own rules, and no training depends on it",
}


TABLE_HEAD = ["| rule | proved in | what it states |", "|---|---|---|"]


class Found(NamedTuple):
    """A rule as its declaration states it."""

    id: str
    statement: str
    file: str


def rules_in(path: Path) -> list[Found]:
    """The rules that a spec file declares, in its order."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        for decorator in getattr(node, "decorator_list", []):
            if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "rule":
                id, statement = (ast.literal_eval(one) for one in decorator.args[:2])
                found.append(Found(id, statement, path.relative_to(ROOT).as_posix()))
    return found


def all_rules() -> dict[str, Found]:
    """Every rule of the suite by its id."""
    paths = sorted((ROOT / "specs").glob("*/test_*.py"))
    return {one.id: one for path in paths for one in rules_in(path)}


def documented_in(group: str) -> list[str]:
    """The ids of a group's documented rules."""
    return [f"{group}-{number:02}" for number in range(1, GROUPS[group][1] + 1)]


def page() -> str:
    """The text of the page. Raises KeyError for a documented rule that nothing accounts for."""
    rules = all_rules()
    documented = {id for group in GROUPS for id in documented_in(group)}
    lines = [
        "# Coverage",
        "",
        "Which spec proves each of the documented rules and popular statements that the project",
        "set out from. Written by `python docs/coverage.py`.",
        "",
    ]
    for group, (title, count) in GROUPS.items():
        lines += [f"## {title}", ""]
        if group in LEFT_OUT:
            lines += [f"{group}-01 to {group}-{count:02}: {LEFT_OUT[group]}", ""]
            continue
        lines += TABLE_HEAD
        for id in documented_in(group):
            if id in rules:
                lines.append(_row(id, rules[id]))
            elif id in PROVED_BY:
                lines.append(_row(f"{id}, by {PROVED_BY[id]}", rules[PROVED_BY[id]]))
            else:
                lines.append(f"| {id} | - | {LEFT_OUT[id]} |")
        lines.append("")
    further = [rule for id, rule in rules.items() if id not in documented]
    lines += [f"## Further rules: {len(further)}", "", *TABLE_HEAD]
    lines += [_row(rule.id, rule) for rule in sorted(further)]
    return "\n".join([*lines, ""])


def _row(label: str, rule: Found) -> str:
    statement = rule.statement.replace("|", "\\|")
    return f"| {label} | [{rule.file.removeprefix('specs/')}](../{rule.file}) | {statement} |"


def main(arguments: list[str]) -> int:
    """Write or check the page; the exit status."""
    text = page()
    if arguments == ["--check"]:
        return int(not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text)
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

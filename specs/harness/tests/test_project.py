"""The project keeps to its design: the direction of imports, sizes, what start-up costs."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import reference
from specs.harness.tests.conftest import ROOT

MOST_LINES = 400
PYTHON_FILES = sorted([*ROOT.glob("reference/**/*.py"), *ROOT.glob("specs/**/*.py")])


def imported_by(path: Path) -> set[str]:
    """The top-level names of what a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


def reference_modules() -> list[ModuleType]:
    found = pkgutil.walk_packages(reference.__path__, "reference.")
    return [importlib.import_module(one.name) for one in found if not one.ispkg]


def public_functions(module: ModuleType) -> list[tuple[str, object]]:
    """The public functions and classes that a module defines itself."""
    return [
        (name, one)
        for name, one in vars(module).items()
        if not name.startswith("_")
        and (inspect.isfunction(one) or inspect.isclass(one))
        and one.__module__ == module.__name__
    ]


@pytest.mark.parametrize("path", PYTHON_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_small_enough_to_read(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= MOST_LINES


def test_the_reference_knows_neither_specs_nor_pytest() -> None:
    for path in ROOT.glob("reference/**/*.py"):
        assert not imported_by(path) & {"specs", "pytest", "hypothesis"}, path


def test_the_harness_does_not_know_the_reference() -> None:
    for path in ROOT.glob("specs/harness/*.py"):
        assert "reference" not in imported_by(path), path


def test_lightning_and_wandb_are_imported_by_their_own_chapters_only() -> None:
    """They cost seconds. `optional(...)` in a spec is an import, too."""
    own = ("specs/lightning/", "specs/wandb/", "specs/harness/", "reference/lightning_")
    for path in PYTHON_FILES:
        name = str(path.relative_to(ROOT))
        if not name.startswith((*own, "reference/wandb_")):
            assert not imported_by(path) & {"pytorch_lightning", "lightning", "wandb"}, name
            assert not re.search(r'optional\("(pytorch_l|lightning|wandb)', path.read_text()), name


@pytest.mark.parametrize("module", reference_modules(), ids=lambda module: module.__name__)
def test_every_public_reference_is_documented_and_typed(module: ModuleType) -> None:
    assert module.__doc__
    documented = [inspect.getdoc(one) or "" for _, one in public_functions(module)]
    assert all(documented)
    if documented:
        assert "http" in module.__doc__ + "".join(documented), "no source"


def test_collecting_nothing_imports_neither_torch_nor_numpy(tmp_path: Path) -> None:
    """Start-up costs what the collected chapter imports, and the harness imports none of it."""
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["specs.harness.plugin"]\n')
    (tmp_path / "test_modules.py").write_text(
        "import sys\n"
        "def test_modules():\n"
        "    heavy = {'torch', 'numpy', 'sklearn', 'pytorch_lightning', 'wandb', 'torchvision'}\n"
        "    assert not heavy & sys.modules.keys()\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", str(tmp_path)]
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout

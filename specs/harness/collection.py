"""From declarations to test items: one for each subject, one for each violation."""

from __future__ import annotations

import difflib
import inspect
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from specs.harness.optional import Missing
from specs.harness.rules import DECLARATION, Declaration, Rule, RuleError, Subject, Violation
from specs.harness.subjects import label_of, label_of_module
from specs.harness.versions import as_release, torch_release

#: Prefix of the ids of violation items: `test_x[rejects wrong_sign]`.
REJECTS = "rejects "

#: The markers by which `-m` tells the two kinds of items apart. Each carries what is judged.
MARKERS = {
    "subject": "a rule's test run on the implementation that it judges",
    "violation": "a rule's test run on a wrong implementation, which it must reject",
}

JUDGED = pytest.StashKey["Judged"]()


@dataclass(frozen=True)
class Judged:
    """What one test item judges: a subject or a violation, under a rule."""

    rule: Rule
    chapter: str
    label: str
    #: Name of the test's first parameter, which receives the target.
    parameter: str
    target: Any
    #: None where the target is a subject.
    violation: Violation | None


class Collection:
    """The rules found so far, and the items made of them.

    user_module: the module given by `--subject`, judged in place of the rules' own subjects.
    devices: what the `device` argument of a spec stands for.
    """

    def __init__(self, user_module: ModuleType | None, devices: list[str]) -> None:
        self.rules: dict[str, Rule] = {}
        self._user_module = user_module
        self._devices = devices
        self._places: dict[str, str] = {}
        self._files: dict[str, Path] = {}
        self._names_judged: set[str] = set()

    @pytest.hookimpl(tryfirst=True)
    def pytest_pycollect_makeitem(
        self, collector: pytest.Module | pytest.Class, obj: object
    ) -> None:
        """Note each rule where it is declared, and refuse a second declaration of its id."""
        declaration = getattr(obj, DECLARATION, None)
        if not isinstance(declaration, Declaration):
            return
        id = declaration.rule_id
        place = f"{collector.nodeid.partition('::')[0]}:{_line_of(obj)}"
        if declaration.rule is None:
            if self._files.get(id) != collector.path:
                raise RuleError(f"{place}: no rule {id} is declared above in this file")
        elif self._places.setdefault(id, place) != place:
            raise RuleError(f"{place}: rule {id} is already declared at {self._places[id]}")
        else:
            self.rules[id] = declaration.rule
            self._files[id] = collector.path

    @pytest.hookimpl(tryfirst=True)
    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Give a rule's test its subjects and violations, and any test its devices."""
        function = metafunc.function
        declaration = getattr(function, DECLARATION, None)
        if isinstance(declaration, Declaration):
            rule = self.rules[declaration.rule_id]
            parameters = list(inspect.signature(function).parameters)
            if metafunc.cls is not None:
                parameters = parameters[1:]
            if not parameters:
                raise RuleError(
                    f"rule {rule.id}: {function.__name__} takes no argument;"
                    " the first one receives the subject"
                )
            chapter = metafunc.definition.path.parent.name
            cases = self._cases(rule, declaration, chapter, parameters[0])
            metafunc.parametrize(
                parameters[0],
                [
                    pytest.param(judged.target, id=judged.label, marks=[_marker(judged), *marks])
                    for judged, marks in cases
                ],
            )
        if "device" in metafunc.fixturenames:
            import torch

            metafunc.parametrize(
                "device", [torch.device(name) for name in self._devices], ids=self._devices
            )

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        """Note on each item what it judges, and keep only the rules that `--rule` names."""
        for item in items:
            for name in MARKERS:
                marker = item.get_closest_marker(name)
                if marker is not None and marker.args:
                    item.stash[JUDGED] = marker.args[0]
        if self._user_module is not None and not hasattr(config, "workerinput"):
            self._check_user_module(config)
        wanted = config.getoption("rule")
        if wanted is not None:
            ids = self._known_ids(wanted)
            kept: list[pytest.Item] = []
            left: list[pytest.Item] = []
            for item in items:
                judged = item.stash.get(JUDGED, None)
                (kept if judged is not None and judged.rule.id in ids else left).append(item)
            config.hook.pytest_deselected(items=left)
            items[:] = kept

    def _cases(
        self, rule: Rule, declaration: Declaration, chapter: str, parameter: str
    ) -> list[tuple[Judged, list[pytest.MarkDecorator]]]:
        """Every (subject or violation, its marks) that a test is run with, in order."""
        self._names_judged.add(parameter)
        subjects = declaration.subjects or rule.subjects
        if self._user_module is None:
            labels = _labels([subject.target for subject in subjects])
            cases = [
                (Judged(rule, chapter, label, parameter, subject.target, None), _bug_marks(subject))
                for subject, label in zip(subjects, labels, strict=True)
            ]
        else:
            label = label_of_module(self._user_module)
            target = getattr(self._user_module, parameter, None)
            judged = Judged(rule, chapter, label, parameter, target, None)
            if target is None:
                return [(judged, [pytest.mark.skip(reason=f"{label} has no {parameter}")])]
            # PyTorch's own function, found in the module, has the bug that it is known for.
            known = next((one for one in subjects if one.target is target), Subject(target))
            cases = [(judged, _bug_marks(known))]
        for violation in declaration.violations:
            label = REJECTS + violation.name
            cases.append((Judged(rule, chapter, label, parameter, violation.target, violation), []))
        return [(judged, [*marks, *_missing_marks(judged.target)]) for judged, marks in cases]

    def _check_user_module(self, config: pytest.Config) -> None:
        names = sorted(self._names_judged)
        if names and not any(hasattr(self._user_module, name) for name in names):
            raise pytest.UsageError(
                f"--subject {config.getoption('subject')} has none of the names"
                f" that these rules judge: {', '.join(names)}"
            )

    def _known_ids(self, wanted: str) -> list[str]:
        """The ids that `--rule` lists, all of them collected."""
        ids = [id.strip() for id in wanted.split(",")]
        if not all(ids):
            given = f" {wanted}" if wanted else ""
            raise pytest.UsageError(
                f"--rule{given}: expected one id or several separated by commas"
            )
        for id in ids:
            if id not in self.rules:
                nearest = difflib.get_close_matches(id.upper(), self.rules, n=3)
                hint = f"; nearest: {', '.join(nearest)}" if nearest else ""
                raise pytest.UsageError(f"--rule {id}: no such rule among those collected{hint}")
        return ids


def _marker(judged: Judged) -> pytest.MarkDecorator:
    name = "subject" if judged.violation is None else "violation"
    # `with_args`, since calling a marker with nothing but a class would decorate that class.
    return getattr(pytest.mark, name).with_args(judged)  # type: ignore[no-any-return]


def _line_of(obj: object) -> int:
    return inspect.getsourcelines(inspect.unwrap(obj))[1]  # type: ignore[arg-type]


def _labels(targets: list[Any]) -> list[str]:
    """Where each subject comes from: as much of it as tells them apart."""
    labels = [label_of(target) for target in targets]
    for longer in (_with_its_name, _with_its_module):
        labels = [
            label if labels.count(label) == 1 else longer(target)
            for label, target in zip(labels, targets, strict=True)
        ]
    return labels


def _with_its_name(target: Any) -> str:
    return f"{label_of(target)}.{getattr(target, '__name__', '')}"


def _with_its_module(target: Any) -> str:
    return f"{getattr(target, '__module__', '')}.{getattr(target, '__name__', '')}"


def _missing_marks(target: Any) -> list[pytest.MarkDecorator]:
    return [pytest.mark.skip(reason=target.reason)] if isinstance(target, Missing) else []


def _bug_marks(subject: Subject) -> list[pytest.MarkDecorator]:
    if subject.bug is None:
        return []
    if subject.fixed_in is None:
        reason = f"known upstream bug: {subject.bug}"
    elif torch_release() < as_release(subject.fixed_in):
        reason = f"known upstream bug, fixed in torch {subject.fixed_in}: {subject.bug}"
    else:
        return []
    return [pytest.mark.xfail(reason=reason, raises=subject.raises, strict=True)]

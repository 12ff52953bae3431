"""Declaring rules: `rule` states one and gives its first test, `spec` adds further tests to it.

The decorators only check what they are given and attach it to the test function. Collecting the
function turns it into test items (see collection.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest

TestFunction = TypeVar("TestFunction", bound=Callable[..., Any])

KINDS = ("contract", "practice", "claim")
ID_FORM = re.compile(r"[A-Z]{1,8}-\d{2,3}")
#: A claim's verdict: it holds, it is false, or it holds under the condition that follows "if".
VERDICT_FORM = re.compile(r"holds|false|holds if .+")

#: The attribute under which a decorated test function carries its declaration.
DECLARATION = "rulebook_declaration"


class RuleError(pytest.Collector.CollectError):
    """A rule that is declared wrongly: pytest shows the message alone, without a traceback."""


@dataclass(frozen=True)
class Subject:
    """An implementation that a rule judges, with the upstream bug that it is known to have."""

    target: Any
    bug: str | None = None
    #: The bug exists in torch releases older than this one; None while it is open.
    fixed_in: str | None = None
    #: What the bug makes the spec raise.
    raises: tuple[type[BaseException], ...] = (AssertionError, pytest.fail.Exception)


@dataclass(frozen=True)
class Violation:
    """A wrong subject, and the documented exceptions (if any) that reject it."""

    target: Any
    raises: tuple[type[BaseException], ...] = ()

    @property
    def name(self) -> str:
        return str(self.target.__name__)


@dataclass(frozen=True)
class Rule:
    """One normative sentence and where it comes from."""

    id: str
    statement: str
    kind: str
    source: str
    subjects: tuple[Subject, ...]
    consequence: str | None
    verdict: str | None


@dataclass(frozen=True)
class Declaration:
    """What a decorated test function carries: its rule's id, and who is judged by it.

    `rule` is set on the test that declares the rule, `subjects` is empty where the rule's own
    subjects are meant.
    """

    rule_id: str
    rule: Rule | None
    subjects: tuple[Subject, ...]
    violations: tuple[Violation, ...]


def known_bug(
    target: Any,
    issue: str,
    *,
    fixed_in: str | None = None,
    raises: type[BaseException] | None = None,
) -> Subject:
    """A subject that breaks the rule because of the upstream bug at the address `issue`.

    Its spec is a strict xfail: the run fails as soon as the bug is gone. With `fixed_in` (a torch
    release such as "2.10") only older releases are expected to fail. `raises` names the exception
    that the bug causes, if it is not simply a failed assertion.
    """
    expected = Subject.raises if raises is None else (raises,)
    return Subject(target, bug=issue, fixed_in=fixed_in, raises=expected)


def raising(exception: type[BaseException], target: Any) -> Violation:
    """A violation that is rejected by the exception that the rule documents."""
    return Violation(target, raises=(exception,))


def rule(
    id: str,
    statement: str,
    *,
    kind: str,
    source: str,
    subject: Any,
    violated_by: Sequence[Any],
    consequence: str | None = None,
    verdict: str | None = None,
) -> Callable[[TestFunction], TestFunction]:
    """State a rule; the decorated test is its first spec.

    id: capitals, a dash, two or three digits ("LR-01"); unique in the suite.
    statement: one normative sentence.
    kind: "contract" (documented behaviour, exact), "practice" (a recommendation whose consequence
        is shown) or "claim" (a popular statement on trial).
    source: address of the documentation, paper or issue that it comes from.
    subject: what is judged; a list judges each of several. The test's first parameter gets it.
    violated_by: wrong subjects, at least one; the same test must reject each of them.
    consequence: what breaking the rule costs, as a number; needed for a practice.
    verdict: "holds", "false" or "holds if <condition>"; for claims, and only for them.

    Raises RuleError, which pytest reports as a collection error of one line.
    """
    if not ID_FORM.fullmatch(id):
        raise RuleError(f"rule id {id!r} is malformed: expected capitals-digits, such as 'LR-01'")
    if kind not in KINDS:
        raise RuleError(f"rule {id}: kind {kind!r} is none of {', '.join(KINDS)}")
    if not statement.strip():
        raise RuleError(f"rule {id} has no statement")
    if not re.match(r"https?://\S+$", source):
        raise RuleError(f"rule {id} has no source: expected an address, got {source!r}")
    if kind == "practice" and not consequence:
        raise RuleError(f"rule {id} is a practice without a consequence")
    if (kind == "claim") != (verdict is not None):
        raise RuleError(f"rule {id}: a claim, and only a claim, has a verdict")
    if verdict is not None and not VERDICT_FORM.fullmatch(verdict):
        raise RuleError(
            f"rule {id}: verdict {verdict!r} is none of 'holds', 'false', 'holds if <condition>'"
        )
    subjects = _subjects(subject)
    if not subjects:
        raise RuleError(f"rule {id} has no subject")
    declared = Rule(id, statement, kind, source, subjects, consequence, verdict)
    return _attach(Declaration(id, declared, (), _violations(id, violated_by)))


def spec(
    id: str, *, violated_by: Sequence[Any], subject: Any = None
) -> Callable[[TestFunction], TestFunction]:
    """Add a test to the rule `id`, which a test further up in the same file states.

    subject: who is judged here, where it is not the rule's own subject.
    violated_by: wrong subjects that this test rejects, at least one.
    """
    subjects = () if subject is None else _subjects(subject)
    return _attach(Declaration(id, None, subjects, _violations(id, violated_by)))


def _attach(declaration: Declaration) -> Callable[[TestFunction], TestFunction]:
    def decorate(function: TestFunction) -> TestFunction:
        setattr(function, DECLARATION, declaration)
        return function

    return decorate


def _subjects(given: Any) -> tuple[Subject, ...]:
    listed = given if isinstance(given, list | tuple) else [given]
    return tuple(one if isinstance(one, Subject) else Subject(one) for one in listed)


def _violations(id: str, given: Sequence[Any]) -> tuple[Violation, ...]:
    violations = tuple(one if isinstance(one, Violation) else Violation(one) for one in given)
    if not violations:
        raise RuleError(f"rule {id} has no violation: name a wrong subject that its spec rejects")
    names = [getattr(violation.target, "__name__", None) for violation in violations]
    for violation, name in zip(violations, names, strict=True):
        if name is None or not name.isidentifier():
            raise RuleError(
                f"rule {id}: the violation {violation.target!r} has no name of its own;"
                " define it as a function or class that says what it does wrong"
            )
    if len(set(names)) < len(names):
        raise RuleError(f"rule {id}: two violations have the same name")
    return violations

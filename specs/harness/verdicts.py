"""Running a rule's test against a violation: the rule must reject it, and for the right reason."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from traceback import walk_tb
from types import CodeType, TracebackType
from typing import Any

import pytest
from _pytest.assertion import rewrite as assertion_rewrite
from _pytest.assertion import util as assertion_util

from specs.harness.collection import JUDGED
from specs.harness.rules import Violation

#: How a spec says "no": a failed `assert`, `pytest.raises` that saw nothing raised, `pytest.fail`.
REJECTION = (AssertionError, pytest.fail.Exception)

#: Neither a verdict nor an accident: these pass through.
PASSED_THROUGH = (pytest.skip.Exception, pytest.exit.Exception, KeyboardInterrupt)

#: Inputs that a violation may take to be rejected.
MOST_EXAMPLES = 1000

#: Where hypothesis keeps the settings of a test. It offers no public way to change them for one
#: run; its own pytest plugin sets this attribute, too.
SETTINGS = "_hypothesis_internal_use_settings"


class FirstFailure(BaseException):
    """Carries a violation's first failure out of hypothesis, which would search for a smaller one.

    A subject's failure is worth shrinking, since a person will read it. A violation's is not.
    """


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Turn a violation's rejection into a pass, and everything else into a failure."""
    judged = pyfuncitem.stash.get(JUDGED, None)
    if judged is None or judged.violation is None:
        return (yield)
    error: BaseException | None = None
    try:
        with _without_explanations(), _stopping_at_the_first_failure(pyfuncitem):
            yield
    except PASSED_THROUGH:
        raise
    except FirstFailure as carrier:
        error = carrier.args[0]
    except BaseException as raised:
        error = raised
    complaint = _complaint(judged.violation, error)
    if complaint is not None:
        pytest.fail(
            f"{judged.rule.id} cannot tell right from wrong: {complaint}\n"
            f"  rule: {judged.rule.statement}",
            pytrace=False,
        )
    return True


def _complaint(violation: Violation, error: BaseException | None) -> str | None:
    """What is wrong with how the test took a violation; None if the test rejected it."""
    if error is None:
        return f"it accepts {violation.name}"
    if violation.raises:
        if isinstance(error, violation.raises):
            return None
        expected = " or ".join(one.__name__ for one in violation.raises)
    else:
        own_code = set(_code_of(violation.target))
        passed = {frame.f_code for frame, _ in walk_tb(error.__traceback__)}
        if isinstance(error, REJECTION) and not own_code & passed:
            return None
        expected = "a failed assertion of the spec"
    message = str(error).strip().splitlines()
    return (
        f"{violation.name} dies by accident\n"
        f"  expected: {expected}\n"
        f"  got: {type(error).__name__}: {message[0] if message else ''}"
        f" ({_deepest(error.__traceback__)})"
    )


@contextmanager
def _without_explanations() -> Iterator[None]:
    """Let pytest neither print nor compare the values of a failed assertion: nobody will read it.

    With `-v`, and wherever the variable CI is set, it looks for the lines in which both sides
    differ, which takes hours for lists of a thousand lists. pytest has no public switch for one
    test; its own plugin sets the first of these attributes for each, too.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assertion_util, "_reprcompare", None)
        patch.setattr(assertion_rewrite, "_saferepr", lambda _: "...")
        yield


class _stopping_at_the_first_failure:
    """Make a hypothesis test of this item raise FirstFailure instead of shrinking its failure.

    It may then also try more inputs than a subject's test does: nearly always few are needed, and
    a violation must not be accepted because a new hypothesis draws other ones.
    """

    def __init__(self, item: pytest.Function) -> None:
        self.test = item.obj
        self.handle = getattr(item.obj, "hypothesis", None)

    def __enter__(self) -> None:
        if self.handle is None:
            return
        from hypothesis import settings
        from hypothesis.errors import HypothesisException

        self.inner = inner = self.handle.inner_test
        self.settings = getattr(self.test, SETTINGS)

        def run_once(*args: Any, **kwargs: Any) -> Any:
            try:
                return inner(*args, **kwargs)
            except HypothesisException:  # an input that does not meet an assumption, for one
                raise
            except (Exception, pytest.fail.Exception) as error:
                raise FirstFailure(error) from None

        self.handle.inner_test = run_once
        setattr(self.test, SETTINGS, settings(self.settings, max_examples=MOST_EXAMPLES))

    def __exit__(self, *_: object) -> None:
        if self.handle is not None:
            self.handle.inner_test = self.inner
            setattr(self.test, SETTINGS, self.settings)


def _code_of(target: Any) -> Iterator[CodeType]:
    """The code of a violation: of the function, or of the methods of the class and its bases.

    Bases count only where they come from the violation's own module: a violation that subclasses
    one of PyTorch's classes is not blamed for what PyTorch raises.
    """
    if isinstance(target, type):
        for base in target.__mro__:
            if base.__module__ == target.__module__:
                for member in vars(base).values():
                    yield from _code_of(getattr(member, "__func__", member))
    code = getattr(target, "__code__", None)
    if isinstance(code, CodeType):
        yield from _with_nested(code)


def _with_nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _with_nested(constant)


def _deepest(trace: TracebackType | None) -> str:
    """Where an error was raised, relative to the project if it was inside it."""
    where = "no traceback"
    for frame, line in walk_tb(trace):
        where = f"{frame.f_code.co_filename}:{line}"
    return where.removeprefix(f"{sys.path[0]}/")

"""What takes long and needs no watching runs in a process of its own while other tests run."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any, NoReturn

import pytest

#: Seconds that a background process may take in all.
TIME_LIMIT = 300.0


class Job:
    """One call of a function in another process, started once and waited for when needed."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function
        self._process: Any = None
        self._pipe: Connection | None = None
        self._outcome: tuple[bool, Any] | None = None

    def start(self) -> None:
        """Begin, unless it was begun before."""
        if self._process is not None:
            return
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_call,
            args=(self.function.__module__, self.function.__name__, theirs),
            daemon=True,
        )
        self._process.start()
        theirs.close()

    def result(self) -> Any:
        """What the function returned; starts it if nobody has.

        Fails the test with the traceback if the function raised, and after a time limit.
        """
        if self._outcome is None:
            self.start()
            assert self._pipe is not None
            if not self._pipe.poll(TIME_LIMIT):
                self._fail(f"did not finish within {TIME_LIMIT:g} s")
            try:
                self._outcome = pickle.loads(self._pipe.recv_bytes())
            except EOFError:
                self._process.join()
                self._fail(f"died with exit code {self._process.exitcode}")
        good, answer = self._outcome
        if not good:
            self._fail(f"raised\n{answer}")
        return answer

    def close(self) -> None:
        """End the process, finished or not, and forget what it said."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
        self._process, self._pipe, self._outcome = None, None, None

    def _fail(self, reason: str) -> NoReturn:
        pytest.fail(f"{self.function.__name__} in the background {reason}", pytrace=False)


#: Jobs by the module and the name of their function.
_JOBS: dict[tuple[str, str], Job] = {}


def in_background(function: Callable[[], Any]) -> Any:
    """Make a fixture of a function of a spec file: its result, computed in another process.

    The process starts before the first test of a run that needs it, so that it works beside the
    tests that come earlier. In a worker of xdist it starts when it is asked for, since only one
    of the workers will need it.

    The function stands at the top level of its file, takes nothing, and returns what can be
    pickled.
    """
    job = _JOBS[function.__module__, function.__name__] = Job(function)

    @pytest.fixture(scope="session", name=function.__name__)
    def result() -> Iterator[Any]:
        yield job.result()
        job.close()

    result.__doc__ = function.__doc__
    return result


def pytest_collection_finish(session: pytest.Session) -> None:
    """Start what the collected tests will ask for."""
    if not runs_alone(session):
        return
    for item in session.items:
        module = getattr(getattr(item, "module", None), "__name__", "")
        for name in fixtures_of(item):
            if (module, name) in _JOBS:
                _JOBS[module, name].start()


def pytest_sessionfinish() -> None:
    """End what was started and never asked for."""
    for job in _JOBS.values():
        job.close()


def runs_alone(session: pytest.Session) -> bool:
    """Whether this process will run all the tests that it has collected."""
    option = session.config.option
    in_worker = hasattr(session.config, "workerinput")
    return not (in_worker or option.collectonly or option.rules)


def fixtures_of(item: pytest.Item) -> list[str]:
    """The names of the fixtures that a test asks for."""
    return list(getattr(item, "fixturenames", ()))


def be_quiet() -> None:
    """Let this process, and those that it starts, write nothing between the dots of a run."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)


def _call(module: str, name: str, pipe: Connection) -> None:
    """In the other process: call the function and send what it returns."""
    import importlib

    be_quiet()
    try:
        importlib.import_module(module)
        outcome = (True, _JOBS[module, name].function())
    except BaseException:
        outcome = (False, traceback.format_exc())
    # Pickled here, since a pipe would send tensors as memory that ends with this process.
    pipe.send_bytes(pickle.dumps(outcome))

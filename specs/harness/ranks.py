"""Real processes of one distributed group, started once and shared by the rules of a file."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NoReturn

import pytest

from specs.harness.background import be_quiet, fixtures_of, runs_alone
from specs.harness.subjects import FILE_MODULE, load_subject

#: Ranks of the group.
WORLD_SIZE = 2

#: Seconds after which a rank that does not answer is given up.
TIME_LIMIT = 60.0


class RankError(Exception):
    """A rank raised, died, or did not answer in time; the message says which, and what it said."""


class Ranks:
    """A gloo group of processes on this machine; `run` calls a function in each of them.

    The group is started by `start`, or at first use, and again after a rank was lost. The
    processes find each other through a file of their own and then through ports that the system
    chooses, so that any number of groups can run side by side.
    """

    def __init__(self, world_size: int = WORLD_SIZE, time_limit: float = TIME_LIMIT) -> None:
        self._world_size = world_size
        #: Seconds that a rank may take to answer.
        self.time_limit = time_limit
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self._ready = False

    def start(self) -> None:
        """Begin to start the processes, which takes seconds, and do not wait for them."""
        if not self._processes:
            self._start()

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What `function(rank, *arguments)` returns in each rank, rank 0 first.

        function: defined at the top level of a module; arguments and results can be pickled. Each
        call starts from seed 0, as tests do.

        Raises RankError with the traceback of the first rank that raised, and if a rank dies or
        does not answer in time. All ranks are then gone.
        """
        self.start()
        if not self._ready:
            self._answers()
            self._ready = True
        for pipe in self._pipes:
            with suppress(BrokenPipeError):  # a rank that has died says so below
                pipe.send_bytes(pickle.dumps((function, arguments)))
        return self._answers()

    def close(self) -> None:
        """End every process of the group."""
        for process in self._processes:
            process.kill()
            process.join()
        for pipe in self._pipes:
            pipe.close()
        self._processes, self._pipes, self._ready = [], [], False
        if self._directory is not None:
            self._directory.cleanup()
            self._directory = None

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would share torch's threads
        self._directory = tempfile.TemporaryDirectory(prefix="rulebook-ranks-")
        meeting_point = Path(self._directory.name) / "store"
        subject = getattr(sys.modules.get(FILE_MODULE), "__file__", None)
        for rank in range(self._world_size):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve,
                args=(rank, self._world_size, str(meeting_point), subject, theirs),
                daemon=True,
            )
            process.start()
            theirs.close()  # so that the pipe ends when the process does
            self._processes.append(process)
            self._pipes.append(ours)

    def _answers(self) -> list[Any]:
        """One answer from each rank; the first bad one ends the group."""
        answers: dict[int, Any] = {}
        while len(answers) < self._world_size:
            waiting = {pipe: rank for rank, pipe in enumerate(self._pipes) if rank not in answers}
            ready: list[Any] = wait(list(waiting), self.time_limit)
            if not ready:
                self._give_up([f"rank {rank} did not answer in time" for rank in waiting.values()])
            troubles = [self._trouble(waiting[pipe], pipe, answers) for pipe in ready]
            if any(troubles):
                # What one rank does breaks the others: let them say so, too.
                late = [pipe for pipe in waiting if pipe not in ready and pipe.poll(1.0)]
                troubles += [self._trouble(waiting[pipe], pipe, answers) for pipe in late]
                self._give_up([trouble for trouble in troubles if trouble])
        return [answers[rank] for rank in range(self._world_size)]

    def _trouble(self, rank: int, pipe: Any, answers: dict[int, Any]) -> str | None:
        """Take a rank's answer; what is wrong if it has none."""
        try:
            good, answer = pickle.loads(pipe.recv_bytes())
        except EOFError:
            self._processes[rank].join()
            return f"rank {rank} died with exit code {self._processes[rank].exitcode}"
        if not good:
            return f"rank {rank} raised\n{answer}"
        answers[rank] = answer
        return None

    def _give_up(self, troubles: list[str]) -> NoReturn:
        self.close()
        raise RankError("\n".join(troubles))


#: The group of this run, on its config.
GROUP = pytest.StashKey[Ranks]()


@pytest.fixture(scope="session")
def ranks(pytestconfig: pytest.Config) -> Ranks:
    """Two processes of one gloo group: `ranks.run(function)` calls `function(rank)` in both."""
    return pytestconfig.stash.setdefault(GROUP, Ranks())


def pytest_collection_finish(session: pytest.Session) -> None:
    """Start the group beside the first tests of a run that will need it.

    Not in a worker of xdist, since only one of the workers will.
    """
    if runs_alone(session) and any("ranks" in fixtures_of(item) for item in session.items):
        session.config.stash.setdefault(GROUP, Ranks()).start()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """End the group."""
    if GROUP in session.config.stash:
        session.config.stash[GROUP].close()


def _serve(
    rank: int, world_size: int, meeting_point: str, subject: str | None, pipe: Connection
) -> None:
    """What a process of the group does: join it, then answer calls until the pipe is closed."""
    be_quiet()  # what goes wrong is sent through the pipe
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch
    from torch import distributed

    torch.set_num_threads(1)
    store = distributed.FileStore(meeting_point, world_size)  # type: ignore[attr-defined]
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    if subject is not None:
        load_subject(subject, Path())
    pipe.send_bytes(pickle.dumps((True, None)))
    while True:
        torch.manual_seed(0)
        try:
            function, arguments = pickle.loads(pipe.recv_bytes())
            answer = pickle.dumps((True, function(rank, *arguments)))
        except EOFError:
            return
        except BaseException:
            answer = pickle.dumps((False, traceback.format_exc()))
        pipe.send_bytes(answer)

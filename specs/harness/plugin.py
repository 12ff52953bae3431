"""The harness as a pytest plugin: its options, and which of its parts a run needs."""

from __future__ import annotations

from typing import Any

import pytest

from specs.harness import (
    against,
    background,
    chapters,
    devices,
    failure,
    files,
    garbage,
    ledger,
    observations,
    record,
    state,
    subjects,
    verdicts,
    wandb_log,
)
from specs.harness import ranks as group
from specs.harness.collection import MARKERS, Collection
from specs.harness.summary import print_cards, print_contents, print_summary

#: The fixtures; pytest finds them in the plugin's own namespace.
observe = observations.observe
ranks = group.ranks


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("rulebook", "Torch Rulebook")
    group.addoption(
        "--rules", action="store_true", help="print the table of contents of the rules, run nothing"
    )
    group.addoption(
        "--rule", metavar="ID[,ID]", help="run these rules and explain each before its verdict"
    )
    group.addoption(
        "--device",
        choices=devices.CHOICES,
        default="cpu",
        help="where device-agnostic specs run (default: cpu)",
    )
    group.addoption(
        "--subject",
        metavar="FILE_OR_MODULE",
        help="judge the names found there in place of PyTorch's",
    )
    group.addoption("--ledger", metavar="FILE", help="write the record of the run as JSON")
    group.addoption(
        "--against", metavar="FILE", help="after the run, print what changed since that ledger"
    )
    group.addoption(
        "--compare",
        nargs=2,
        metavar=("OLD", "NEW"),
        help="print what changed between two ledgers, run nothing",
    )
    group.addoption(
        "--allow", metavar="FILE", help="changes that are all right, one a line with its reason"
    )
    group.addoption(
        "--report",
        action="append",
        default=[],
        metavar="FILE",
        help="write the comparison as FILE.md or FILE.json, too",
    )
    group.addoption(
        "--wandb",
        action="store_true",
        help="log the run to W&B: offline, unless your own settings of wandb say otherwise",
    )
    group.addoption(
        "--wandb-project", metavar="NAME", help="the W&B project (default: torch-rulebook)"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """Compare two ledgers, if that is asked; else keep what belongs together in one process.

    Runs that print about rules collect here, not in workers of xdist. With `-n`, all tests of a
    file go to one worker, unless `--dist` says otherwise: they share what is expensive to set up.
    """
    if config.option.compare is not None:
        return against.compare_files(config)
    if config.option.rules or config.option.rule is not None:
        config.option.numprocesses = None
        config.option.tx = []
        config.option.dist = "no"
    elif getattr(config.option, "numprocesses", None) and config.option.dist == "no":
        config.option.dist = "loadfile"
    return None


def pytest_configure(config: pytest.Config) -> None:
    """Check every option before anything is collected, then register what the run needs."""
    start = config.invocation_params.dir
    option = config.option
    in_worker = hasattr(config, "workerinput")
    user_module = None
    if option.subject is not None:
        user_module = subjects.load_subject(option.subject, start)
    chosen = devices.chosen_devices(option.device)
    wandb_log.check_project(option)
    register = config.pluginmanager.register
    for name, meaning in MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")
    register(chapters, "rulebook-chapters")
    register(Collection(user_module, chosen), "rulebook-collection")
    register(state.GlobalState(), "rulebook-state")
    register(verdicts, "rulebook-verdicts")
    register(failure, "rulebook-failure")
    register(garbage, "rulebook-garbage")
    register(record, "rulebook-record")
    register(background, "rulebook-background")
    register(group, "rulebook-ranks")
    if not config.getoption("--hypothesis-profile", None):
        _set_up_hypothesis()
    if not in_worker:
        run = record.RunRecord()
        register(run, "rulebook-run")
        register(Terminal(config, run, chosen), "rulebook-terminal")
        if option.ledger is not None:
            path = files.check_destination("--ledger", option.ledger, start)
            if not (option.rules or option.collectonly):
                writer = ledger.LedgerWriter(path, run, chosen, option.subject)
                register(writer, "rulebook-ledger")
        request = against.requested(option, start)
        if request is not None and not (option.rules or option.collectonly):
            register(against.Against(request, run, chosen, option.subject), "rulebook-against")
        if option.wandb and not (option.rules or option.collectonly):
            register(wandb_log.WandbLog(config, run, chosen), "rulebook-wandb")


class Terminal:
    """A pytest plugin that prints the table of contents, the cards and the summary."""

    def __init__(self, config: pytest.Config, run: record.RunRecord, chosen: list[str]) -> None:
        self._option = config.option
        self._run = run
        self._devices = chosen

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        """Print what was asked for before the first test; `--rules` ends there."""
        reporter: Any = session.config.pluginmanager.get_plugin("terminalreporter")
        if session.testsfailed and not session.config.option.continue_on_collection_errors:
            return None  # pytest stops here and says why
        if self._option.rules:
            print_contents(session.items, reporter)
            return True
        if self._option.rule is not None and not self._option.collectonly:
            print_cards(session.items, reporter)
        return None

    @pytest.hookimpl(tryfirst=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        print_summary(self._run, self._devices, self._option.subject, terminalreporter)


def _set_up_hypothesis() -> None:
    """The same inputs in every run, no files left behind, no limit on seconds.

    Derandomised examples make two runs comparable. A user who wants others says
    `--hypothesis-profile=default`.
    """
    from hypothesis import HealthCheck, settings

    settings.register_profile(
        "rulebook",
        derandomize=True,
        database=None,
        deadline=None,
        max_examples=100,
        report_multiple_bugs=False,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.differing_executors],
    )
    settings.load_profile("rulebook")

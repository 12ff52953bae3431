"""What every test that logs to W&B gets: offline runs in a directory of its own, and no network.

W&B writes through a service: a process of its own, which the first run starts and which the tests
of this chapter share. It has stopped when the chapter is over.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from specs.harness.optional import Missing, optional
from specs.wandb.network import PROXY_VARIABLES, RefusingProxy

wandb = optional("wandb")

#: Also without what takes time and is not looked at: a list of all packages, git, the machine.
OFFLINE_AND_QUIET = {
    "WANDB_MODE": "offline",
    "WANDB_SILENT": "true",
    "WANDB_CONSOLE": "off",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_DISABLE_GIT": "true",
    "WANDB_X_SAVE_REQUIREMENTS": "false",
    "WANDB_X_DISABLE_STATS": "true",
}


@pytest.fixture(scope="package")
def proxy() -> Iterator[RefusingProxy]:
    """Everything in this chapter that wants to leave the machine is sent to this proxy."""
    proxy = RefusingProxy()
    yield proxy
    proxy.close()


@pytest.fixture(scope="package", autouse=True)
def service() -> Iterator[None]:
    """W&B's service, which the first run starts, stops at the end."""
    yield
    if not isinstance(wandb, Missing):
        wandb.teardown()


@pytest.fixture(autouse=True)
def own_runs(
    request: pytest.FixtureRequest,
    proxy: RefusingProxy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[None]:
    """The settings of whoever runs the tests are not seen: no variable, no file, no key.

    Directories are absolute, since the service does not follow when a test changes its own.
    """
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name in PROXY_VARIABLES:
        monkeypatch.setenv(name, proxy.address)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    proxy.requests.clear()
    for name in ("CACHE", "CONFIG", "DATA", "ARTIFACT"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name.lower()))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "no key here"))
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    for name, value in OFFLINE_AND_QUIET.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    if "new_process" in request.fixturenames:
        wandb.teardown()
        yield
        with suppress(SystemExit):  # the service has died: W&B wants this process to end, too
            wandb.finish()
            wandb.teardown()
    else:
        # W&B reads the variables once in a process; to each further test it has to be said again.
        wandb.setup(wandb.Settings(root_dir=str(tmp_path), mode="offline"))
        yield
        finish_all()


def finish_all() -> None:
    """Finish all open runs: wandb.finish() does not see one that was opened beside another."""
    wandb.finish()
    while (run := wandb.setup().most_recent_active_run) is not None:
        run.finish()


@pytest.fixture(autouse=True)
def no_advice() -> None:
    """Violations do what W&B and Lightning warn of, so it is not repeated.

    A test that is about a warning catches it with `pytest.warns`, which sees all of them.
    """
    warnings.simplefilter("ignore")


@pytest.fixture
def new_process() -> None:
    """W&B is as in a process that has not used it yet: it reads the variables when it is asked."""

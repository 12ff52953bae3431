"""The book in one environment for each release, and what changed between them.

    tox -e upgrade -- OLD NEW [options of --compare]

A release is a version of torch (`2.13.0`), or packages with their versions, separated by commas
(`torch==2.14.1,wandb==0.26.1`). Each gets an environment of its own below .tox/upgrade, in which
the book runs once; a run that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]
DIRECTORY = ROOT / ".tox" / "upgrade"

#: What an environment with a CUDA build of torch takes, and what a release takes in all: a download
#: of some gigabytes, and one run of the book.
GIGABYTES, MINUTES = 8, 10

#: pytest's codes for a run that finished, with or without failures.
FINISHED = (0, 1)
USAGE_ERROR = 4

USAGE = "usage: tox -e upgrade -- OLD NEW [--report FILE] [--allow FILE]"


class Release:
    """One environment: its packages, where it lies, and the ledger of its run."""

    def __init__(self, given: str, directory: Path = DIRECTORY) -> None:
        self.packages = packages(given)
        self.name = "-".join(one.replace("==", "-") for one in self.packages)
        self.environment = directory / self.name
        #: Of this state of the specs: another state runs again.
        self.ledger = directory / f"{self.name}-{fingerprint()}.json"

    @property
    def python(self) -> Path:
        scripts = "Scripts" if sys.platform == "win32" else "bin"
        return self.environment / scripts / "python"

    @property
    def installed(self) -> Path:
        """A file that says that the environment is complete."""
        return self.environment / "complete"


def packages(given: str) -> list[str]:
    """What pip has to install: a bare version is torch's, and torchvision comes along.

    Raises ValueError for what is neither a version nor a list of packages with versions.
    """
    if re.fullmatch(r"\d+(\.\w+)*(\+\w+)?", given):
        return [f"torch=={given}", "torchvision"]
    listed = given.split(",")
    if not all(re.fullmatch(r"[\w.-]+==[\w.+]+", one) for one in listed):
        raise ValueError(f"{given!r} is neither a version of torch nor package==version")
    named = {one.partition("==")[0] for one in listed}
    return listed + ["torchvision"] * ("torch" in named and "torchvision" not in named)


def fingerprint() -> str:
    """A few digits that stand for the state of the specs and the references."""
    digest = hashlib.sha256()
    for path in sorted([*ROOT.glob("specs/**/*.py"), *ROOT.glob("reference/**/*.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def announce(releases: list[Release]) -> None:
    """Say what will be done, and what it takes. Raises ValueError if the disk is too small."""
    to_install = [one for one in releases if not one.installed.exists()]
    to_run = [one for one in releases if not one.ledger.exists()]
    for one in releases:
        state = "runs" if one in to_run else "ran before"
        fresh = ", in a new environment" if one in to_install else ""
        print(f"{', '.join(one.packages)}: {state}{fresh}")
    needed = GIGABYTES * len(to_install)
    free = shutil.disk_usage(ROOT).free / 2**30
    print(
        f"needs up to {needed} GB of disk ({free:.0f} GB are free)"
        f" and about {MINUTES * len(to_run)} minutes",
        flush=True,
    )
    if free < needed:
        raise ValueError(f"{free:.0f} GB are free below {ROOT}, up to {needed} are needed")


def install(release: Release) -> None:
    """Make the environment, or go on with one that was left incomplete.

    Raises subprocess.CalledProcessError if pip refuses.
    """
    if release.installed.exists():
        return
    print(f"installing {', '.join(release.packages)} into {release.environment}", flush=True)
    if not release.python.exists():
        venv.create(release.environment, with_pip=True)
    pip = [str(release.python), "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, *release.packages], check=True)
    # Once more with what is there, so that the suite's own needs move none of it.
    subprocess.run([*pip, *release.packages, "--editable", str(ROOT)], check=True)
    release.installed.touch()


def run(release: Release) -> None:
    """Run the book once and keep its ledger. Raises ValueError if it did not finish."""
    if release.ledger.exists():
        return
    print(f"running the book with {', '.join(release.packages)}", flush=True)
    command = [str(release.python), "-m", "pytest", "specs", "-q", "-p", "no:randomly"]
    ended = subprocess.run([*command, "--ledger", str(release.ledger)], cwd=ROOT, check=False)
    if ended.returncode not in FINISHED or not release.ledger.exists():
        raise ValueError(f"{release.name}: the book did not finish")


def main(arguments: list[str]) -> int:
    """Install, run and compare; the exit code is that of the comparison."""
    if len(arguments) < 2 or any(one.startswith("-") for one in arguments[:2]):
        print(USAGE, file=sys.stderr)
        return USAGE_ERROR
    try:
        old, new = (Release(given) for given in arguments[:2])
        announce([old, new])
        for release in (old, new):
            install(release)
            run(release)
    except ValueError as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return USAGE_ERROR
    except subprocess.CalledProcessError as error:
        print(f"ERROR: pip ended with exit code {error.returncode}", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 2
    compare = [str(new.python), "-m", "pytest", "specs", "--compare", old.ledger, new.ledger]
    return subprocess.run([*map(str, compare), *arguments[2:]], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The process that `--wandb` starts: logs what lies in a directory, and prints where it went.

    python -m specs.harness.wandb_process DIRECTORY

The directory holds payload.json (see wandb_log.py) and ledger.json. The run is offline unless the
user's own settings (the variable WANDB_MODE, or a settings file of wandb) name another mode.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

#: Where runs go if neither `--wandb-project` nor the user's settings say.
PROJECT = "torch-rulebook"


def log(directory: Path) -> str:
    """Log one run; where it can be found."""
    import wandb

    payload = json.loads((directory / "payload.json").read_text())
    settings = wandb.setup().settings
    run: Any = wandb.init(
        project=payload["project"] or settings.project or PROJECT,
        name=payload["name"],
        config=payload["config"],
        mode=None if "mode" in settings.model_fields_set else "offline",
        settings=wandb.Settings(console="off", silent=True),
    )
    run.summary.update(payload["summary"])
    for table in ("rule", "benchmark"):
        rows = payload[f"{table}s"]
        if rows:
            columns = payload[f"{table}_columns"]
            run.log({f"{table}s": wandb.Table(columns=columns, data=rows)})
    artifact = wandb.Artifact("ledger", type="ledger")
    artifact.add_file(str(directory / "ledger.json"))
    run.log_artifact(artifact)
    where, offline, disabled = Path(run.dir).parent, run.offline, run.disabled
    run.finish(exit_code=payload["exit_status"])
    if disabled:
        return "nothing, since your settings of wandb disable it"
    return f"{where} (send it with: wandb sync {where})" if offline else str(run.url)


def main() -> None:
    """Log, or leave the reason as the last line of stderr."""
    try:
        print(log(Path(sys.argv[1])))
    except ModuleNotFoundError as error:
        sys.exit(f"{error.name} is not installed")
    except Exception as error:
        lines = str(error).strip().splitlines()
        sys.exit(f"{type(error).__name__}: {lines[0] if lines else ''}")


if __name__ == "__main__":
    main()

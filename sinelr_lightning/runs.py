"""Where runs live, runs/NAME/version_N/{config.yaml, checkpoints/…, metrics.json}, and how to come back to one.

Importing it imports neither torch nor lightning: `sinelr VERB --help` must answer at once.
"""

import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from sinelr_lightning.errors import UserError, first_line

if TYPE_CHECKING:
    from sinelr_lightning.tasks.base import Task

__all__ = [
    "is_first_process",
    "load_checkpoint",
    "load_config",
    "load_run",
    "load_task",
    "make_version",
    "resolve_checkpoint",
    "run_folder",
    "versions",
]

log = logging.getLogger(__name__)


def is_first_process() -> bool:
    """Whether this is the process that speaks and writes for all, by what torchrun, SLURM or Lightning set."""
    rank = next((os.environ[k] for k in ("RANK", "SLURM_PROCID", "LOCAL_RANK") if k in os.environ), "0")
    return rank == "0"


def versions(folder: str | Path) -> list[Path]:
    """List the `version_N` folders of one run name, newest first."""
    found = [path for path in Path(folder).glob("version_*") if re.fullmatch(r"version_\d+", path.name)]
    return sorted((path for path in found if path.is_dir()), key=lambda path: -int(path.name.split("_")[1]))


def make_version(folder: str | Path) -> Path:
    """Make the folder of the next run of this name: version 0, or the newest one's plus 1.

    Two runs that begin at the same moment get two.

    Raises:
        UserError: it cannot be made.
    """
    newest = versions(folder)[:1]
    number = int(newest[0].name.split("_")[1]) + 1 if newest else 0
    while True:
        path = Path(folder) / f"version_{number}"
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            number += 1
        except OSError as error:
            raise UserError(f"the run folder {path} cannot be made: {error.strerror}") from error


def run_folder(checkpoint: str | Path) -> Path:
    """Give the folder of the run that a checkpoint belongs to: the one above `checkpoints/`."""
    parent = Path(checkpoint).parent
    return parent.parent if parent.name == "checkpoints" else parent


def resolve_checkpoint(
    ckpt_path: str | Path,
    name: str | None = None,
    runs_dir: str | Path = "runs",
    prefer: Sequence[str] = ("best", "last"),
) -> Path:
    """Find the checkpoint file that `ckpt_path` means, and log it.

    Args:
        ckpt_path: a file; a run folder (`runs/NAME/version_N`, or `runs/NAME` for its newest version that has a
            checkpoint); or `last` or `best`: that one of the newest version of run `name` that has it (of the run
            written last if no name is given).
        name: name of the run, for `last` and `best`.
        runs_dir: where the runs are.
        prefer: which checkpoint of a run folder to take, first the one wanted most.

    Raises:
        UserError: there is none; the message names the places that were searched.
    """
    given = Path(ckpt_path)
    if given.is_file():
        found: Path | None = given
        searched = str(given)
    elif str(ckpt_path) in ("last", "best"):
        root = Path(runs_dir) / name if name else Path(runs_dir)
        found = next(_candidates(_run_names(root) if name is None else [root], [str(ckpt_path)]), None)
        searched = f"{root}/{'' if name else '*/'}version_*/checkpoints/{ckpt_path}.ckpt"
    elif given.is_dir():
        found = next(_candidates([given], prefer), None)
        wanted = " or ".join(f"{p}.ckpt" for p in prefer)
        searched = f"{wanted} in {given}/checkpoints and {given}/version_*/checkpoints"
    else:
        raise UserError(f"checkpoint {ckpt_path} does not exist: give a file, a run folder, `last` or `best`")
    if found is None:
        raise UserError(f"no checkpoint found, searched {searched}")
    log.info("checkpoint %s", found)
    return found


def _run_names(root: Path) -> list[Path]:
    """All run names under `root`, the one written last first."""

    def written(folder: Path) -> float:
        return max((path.stat().st_mtime for path in folder.glob("version_*/checkpoints/*.ckpt")), default=0.0)

    return sorted((path for path in root.glob("*") if path.is_dir()), key=written, reverse=True)


def _candidates(folders: Sequence[Path], names: Sequence[str]) -> Iterator[Path]:
    for folder in folders:
        for run in [folder, *versions(folder)]:
            for name in names:
                for place in (run / "checkpoints", run):
                    if (place / f"{name}.ckpt").is_file():
                        yield place / f"{name}.ckpt"


def load_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint of ours, onto the CPU by default: tensors and plain values, nothing that runs code.

    Raises:
        UserError: the file cannot be read, or is no checkpoint of a task.
    """
    import pickle

    import torch

    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:  # its message speaks of the reader's options
        raise UserError(
            f"{path} is not a readable checkpoint: it is of another kind, or holds more than tensors and plain values"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UserError(f"{path} is not a readable checkpoint ({first_line(error)})") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise UserError(f"{path} is not a checkpoint of a run: it holds no state_dict")
    return checkpoint


def load_config(checkpoint: str | Path) -> dict[str, Any]:
    """Read the configuration of the run that `checkpoint` belongs to: its config.yaml, {} if there is none.

    Raises:
        UserError: the file cannot be read, or is not YAML.
    """
    path = run_folder(checkpoint) / "config.yaml"
    if not path.is_file():
        return {}
    try:
        config = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} is not readable YAML ({first_line(error)})") from error
    return config if isinstance(config, dict) else {}


def load_run(
    ckpt_path: str | Path, name: str | None = None, runs_dir: str | Path = "runs"
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Give (configuration, checkpoint) of the run that `ckpt_path` means (`resolve_checkpoint`); needs no data."""
    path = resolve_checkpoint(ckpt_path, name, runs_dir)
    return load_config(path), load_checkpoint(path)


def load_task(checkpoint: str | Path) -> "Task":
    """Rebuild the task of a checkpoint file with its weights, in evaluation mode on the CPU; needs no data, no flags.

    Raises:
        UserError: the file is unreadable, of another architecture, or of a task that is not imported.
    """
    import sinelr_lightning.tasks  # noqa: F401 (their classes must be known before one is named)
    from sinelr_lightning.tasks.base import Task

    path = str(load_checkpoint(checkpoint).get("hyper_parameters", {}).get("_class_path", ""))
    # Looked up among what is imported, never imported: a checkpoint must not choose what code runs.
    module, _, name = path.rpartition(".")
    cls = getattr(sys.modules.get(module), name, None)
    if not path or (isinstance(cls, type) and not issubclass(cls, Task)):
        raise UserError(
            f"{checkpoint} holds {path or 'a model'}, which is no task of sinelr_lightning: load it by its class's "
            "load_from_checkpoint"
        )
    if not isinstance(cls, type):
        raise UserError(f"{checkpoint} holds the task {path}, which is not known: import its module first")
    return cls.load_from_checkpoint(checkpoint, map_location="cpu", weights_only=True).eval()

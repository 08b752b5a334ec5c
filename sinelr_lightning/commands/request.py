"""What a `sinelr fit` asks for before anything is loaded: the run's name, its checkpoint, its folder."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sinelr_lightning import slurm
from sinelr_lightning.errors import UserError
from sinelr_lightning.runs import is_first_process, load_config, make_version, resolve_checkpoint, run_folder

__all__ = ["Request", "read_request"]

OPTIONS = ("--ckpt_path", "--name", "--runs_dir")


@dataclass
class Request:
    """A command line, completed.

    Attributes:
        verb: fit, validate, test or predict.
        arguments: for LightningCLI, with the checkpoint's configuration in front of the user's and the file resolved.
        name: the run's name; None until the model's class is known.
        folder: the run folder; None until the name is known.
        checkpoint: the file to start from.
        stored: configuration of the run that the checkpoint is from.
        goes_on: whether the checkpoint's own folder is continued.
        made: whether this process made the folder, and so may take it away.
        began: whether a step was trained.
    """

    verb: str
    arguments: list[str]
    runs_dir: Path
    name: str | None = None
    folder: Path | None = None
    checkpoint: Path | None = None
    stored: dict[str, Any] = field(default_factory=dict)
    goes_on: bool = False
    made: bool = False
    began: bool = False

    def settle(self, fallback: str) -> None:
        """Fix name and folder, with `fallback` as the name of a run that has none.

        The first process makes the folder at once, so that no other run takes it. The others hear of it when they
        save together; till then they name none that exists.

        Raises:
            UserError: the folder cannot be made.
        """
        self.name = self.name or fallback
        if self.folder is not None:
            return
        root = self.runs_dir / self.name
        job = slurm.job_version() if self.verb == "fit" else None
        if job is not None:
            self.folder = root / f"version_{job}"
            self.made = is_first_process() and not self.folder.exists()
        elif is_first_process():
            self.folder, self.made = make_version(root), True
        else:
            self.folder = root / "version_of_the_first_process"


def read_request(arguments: Sequence[str]) -> Request:
    """Complete the command line `[verb, …]`.

    `--ckpt_path` becomes a file (`runs.resolve_checkpoint`). The configuration of its run goes in front of all
    others, which gives the order command line > the user's files > checkpoint > default.

    A fit that starts from `last.ckpt` of a run of the same name goes on in that run's folder. From any other
    checkpoint it starts a new version, so that nothing that was trained is overwritten.

    Raises:
        UserError: a file is missing or unreadable, or no checkpoint is found.
    """
    verb, *rest = arguments
    files = _values(rest, "--config") + _values(rest, "-c")
    given = _top_level(files)
    given.update({option[2:]: values[-1] for option in OPTIONS if (values := _values(rest, option))})
    # The first file says what is trained; those behind it, like configs/cluster/, adjust it.
    name = given.get("name") or next((Path(f).stem for f in files if not _is_inline(f)), None)
    request = Request(verb, [verb, *rest], Path(given.get("runs_dir") or "runs"), name)

    if given.get("ckpt_path") == "":
        raise UserError("--ckpt_path is empty: give a file, a run folder, `last` or `best`")
    if given.get("ckpt_path"):
        prefer = ("last", "best") if verb == "fit" else ("best", "last")
        request.checkpoint = resolve_checkpoint(given["ckpt_path"], name, request.runs_dir, prefer)
    elif verb == "fit" and name and (job := slurm.job_version()) is not None:
        request.checkpoint = _requeued(request.runs_dir / name / f"version_{job}")
    if request.checkpoint is None:
        return request

    _start_from(request, request.checkpoint)
    before: list[str] = []
    if request.stored:
        before = ["--config", str(run_folder(request.checkpoint) / "config.yaml")]
    elif not files:
        before = ["--config", _inline_config(request.checkpoint)]
    request.arguments = [verb, *before, *_without(rest, "--ckpt_path"), "--ckpt_path", str(request.checkpoint)]
    return request


def _start_from(request: Request, checkpoint: Path) -> None:
    folder = run_folder(checkpoint)
    request.stored = load_config(checkpoint)
    own = request.stored.get("name") or folder.parent.name
    same_run = request.name in (None, own) and folder.name.startswith("version_")
    request.name = request.name or own
    if request.verb != "fit":
        request.folder = folder
    elif same_run and (checkpoint.name == "last.ckpt" or checkpoint.name.startswith("hpc_ckpt")):
        request.folder, request.goes_on = folder, True
    elif same_run:
        request.runs_dir = folder.parent.parent


def _requeued(folder: Path) -> Path | None:
    """Find the newest checkpoint of a job that SLURM started again: its own on the signal, or the last of the run."""
    found = [*folder.glob("hpc_ckpt_*.ckpt"), *folder.glob("checkpoints/last.ckpt")]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def _inline_config(checkpoint: Path) -> str:
    """Give the model's part of a configuration out of a checkpoint that has no config.yaml beside it."""
    from sinelr_lightning.runs import load_checkpoint

    stored = load_checkpoint(checkpoint).get("hyper_parameters", {})
    if "_class_path" not in stored:
        raise UserError(f"{checkpoint} has no config.yaml beside it and names no task: give --config")
    arguments = {key: value for key, value in stored.items() if not key.startswith("_")}
    return yaml.safe_dump({"model": {"class_path": stored["_class_path"], "init_args": arguments}})


def _top_level(files: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for file in files:
        try:
            text = file if _is_inline(file) else Path(file).read_text()
            content = yaml.safe_load(text)
        except OSError as error:
            raise UserError(f"--config {file}: {error.strerror or error}") from error
        except yaml.YAMLError as error:
            raise UserError(f"--config {file} is not readable YAML: {' '.join(str(error).split())}") from error
        if not isinstance(content, dict):
            raise UserError(f"--config {file} holds no keys: a configuration is a YAML mapping")
        found.update({k: v for k, v in content.items() if f"--{k}" in OPTIONS and v is not None})
    return found


def _is_inline(config: str) -> bool:
    return "\n" in config or config.lstrip().startswith("{")


def _values(arguments: Sequence[str], option: str) -> list[str]:
    """Give the values of `--option VALUE` and `--option=VALUE`, in order."""
    following = [arguments[i + 1] for i, a in enumerate(arguments[:-1]) if a == option]
    return following + [a.split("=", 1)[1] for a in arguments if a.startswith(f"{option}=")]


def _without(arguments: Sequence[str], option: str) -> list[str]:
    kept: list[str] = []
    skip = False
    for argument in arguments:
        if skip:
            skip = False
        elif argument == option:
            skip = True
        elif not argument.startswith(f"{option}="):
            kept.append(argument)
    return kept

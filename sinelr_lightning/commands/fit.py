"""`sinelr fit`, `validate`, `test`, `predict`: LightningCLI, put right where it bites."""

import logging
import os
import shutil
import warnings
from argparse import ArgumentError
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
import yaml
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
from torch.optim import Optimizer

import sinelr_lightning.datamodules
import sinelr_lightning.tasks  # noqa: F401 (short names are found among imported classes)
from sinelr_lightning.callbacks import AtomicCheckpointIO, Checkpoint, Progress, Report, RestartOnCollapse, StopOnNaN
from sinelr_lightning.callbacks.interrupt import StopBetweenSteps
from sinelr_lightning.commands.messages import one_line
from sinelr_lightning.commands.request import Request, read_request
from sinelr_lightning.commands.settings import differences, settings
from sinelr_lightning.errors import UserError
from sinelr_lightning.files import atomic_path
from sinelr_lightning.layers.factory import LinearFactory, subclasses
from sinelr_lightning.runs import load_checkpoint
from sinelr_lightning.slurm import check_allocation

__all__ = ["SinelrCLI", "run"]

log = logging.getLogger(__name__)


def run(arguments: Sequence[str]) -> int:
    """Run `[verb, option, …]` and return the exit code: 0, 130 after Ctrl-C, 143 after SIGTERM.

    Raises:
        UserError: a mistake in the options, the configuration, the checkpoint or the data.
    """
    if any(argument in ("-h", "--help") or argument.startswith("--help=") for argument in arguments):
        request = Request(arguments[0], list(arguments), Path("runs"))
    else:
        request = read_request(arguments)
    stop = StopBetweenSteps()
    with _quiet(), _nothing_half_written(request):
        try:
            SinelrCLI(request, stop)
        except MisconfigurationException as error:
            raise UserError(str(error)) from error
        except SIGTERMException:
            return _stopped(request, 130 if stop.interrupted else 143)
        except SystemExit as error:
            if stop.interrupted:
                return _stopped(request, 130)
            return error.code if isinstance(error.code, int) else 0
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # its threads would race with the end of the interpreter
    return 0


class SinelrCLI(LightningCLI):
    """LightningCLI over tasks, or any LightningModule, and data, with our run folders, callbacks, rules of resuming.

    Args:
        request: the completed command line.
        stop: the callback that handles Ctrl-C.
    """

    def __init__(self, request: Request, stop: StopBetweenSteps) -> None:
        self.request = request
        self.stop = stop
        verbs = self.subcommands()
        strict = {"exit_on_error": False, "allow_abbrev": False}
        super().__init__(
            L.LightningModule,
            L.LightningDataModule,
            save_config_callback=SaveConfig,
            save_config_kwargs={"request": request},
            seed_everything_default=0,
            trainer_defaults={"enable_model_summary": False},  # the report says what a person wants to know of it
            parser_kwargs={**strict, **{verb: dict(strict) for verb in verbs}},
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            args=request.arguments,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Where the run lives."""
        parser.add_argument(
            "--name", type=str | None, default=None, help="Name of the run (default: of the config file)."
        )
        parser.add_argument(
            "--runs_dir", type=str, default="runs", help="Folder of all runs: RUNS_DIR/NAME/version_N."
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse; what is wrong comes as one line."""
        try:
            self.config = parser.parse_args(self.request.arguments)
        except ArgumentError as error:
            known = [a.dest for a in self._subcommand_parsers[self.request.verb]._actions]
            bases = (L.LightningModule, L.LightningDataModule, LinearFactory, L.Callback, Optimizer, Logger)
            classes = [cls for base in bases for cls in subclasses(base)]
            raise UserError(one_line(str(error), known, classes)) from error

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Give Lightning's four, without the switch of its table of results: the report shows them once."""
        return {verb: {*skipped, "verbose"} for verb, skipped in LightningCLI.subcommands().items()}

    def validate(self, **arguments: Any) -> None:
        """Run the validation."""
        self.trainer.validate(**arguments, verbose=False)

    def test(self, **arguments: Any) -> None:
        """Run the test."""
        self.trainer.test(**arguments, verbose=False)

    def _parse_ckpt_path(self) -> None:
        """Do nothing: Lightning would put the checkpoint's hyperparameters over the command line here.

        `read_request` has put the configuration of the checkpoint's run below it instead.
        """

    def before_instantiate_classes(self) -> None:
        """Settle the run's name and folder, say what differs from the checkpoint, compare with SLURM."""
        config = self.config[self.request.verb]
        if config.trainer.default_root_dir is not None:
            raise UserError(
                "trainer.default_root_dir is not used: a run lives in RUNS_DIR/NAME; give --runs_dir, --name"
            )
        check_allocation(config.trainer.num_nodes, config.trainer.devices)
        self.request.settle(config.model.class_path.rsplit(".", 1)[-1])
        config.name, config.runs_dir = self.request.name, str(self.request.runs_dir)
        if self.request.stored:
            now = yaml.safe_load(self._parser(self.subcommand).dump(config, skip_unset=False))
            for line in differences(self.request.stored, now):
                log.info(line)
        if self.subcommand != "fit" and self.request.checkpoint is None:
            log.warning("no --ckpt_path: these are the figures of a model that was not trained here")

    def instantiate_classes(self) -> None:
        """Make task, data and trainer; a value that they refuse is the user's mistake."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            raise UserError(one_line(str(error))) from error
        self.model.from_checkpoint = self.request.checkpoint is not None

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Make the trainer with our logger, callbacks and checkpoint writer where the user names none of his own."""
        given = self._get(self.config_init, "trainer", default={})
        folder = self.request.folder
        assert folder is not None
        kwargs["default_root_dir"] = str(folder)
        if given.get("logger") in (None, True):
            kwargs["logger"] = self._logger(folder)
        plugins = given.get("plugins") or []
        plugins = list(plugins) if isinstance(plugins, list) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            kwargs["plugins"] = [*plugins, AtomicCheckpointIO()]
        callbacks = given.get("callbacks") or []
        callbacks = list(callbacks) if isinstance(callbacks, list) else [callbacks]
        kwargs["callbacks"] = [*callbacks, *self._default_callbacks(given, callbacks)]
        try:
            return super().instantiate_trainer(**kwargs)
        # So Lightning refuses some values, `--trainer.devices x` for one, and two callbacks of one kind.
        except (TypeError, RuntimeError) as error:
            raise UserError(one_line(str(error))) from error

    def _logger(self, folder: Path) -> TensorBoardLogger:
        # Figures of steps after the checkpoint belong to the run that was stopped: TensorBoard drops them.
        options: dict[str, Any] = {}
        if self.request.goes_on and self.request.checkpoint:
            options["purge_step"] = load_checkpoint(self.request.checkpoint)["global_step"] + 1
        return TensorBoardLogger(
            folder.parent.parent, name=folder.parent.name, version=folder.name, default_hp_metric=False, **options
        )

    def _default_callbacks(self, given: dict[str, Any], callbacks: list[L.Callback]) -> list[L.Callback]:
        """Give ours, without those that the user switched off or replaced by one of the same kind."""
        wanted: list[tuple[type, L.Callback]] = [
            (StopOnNaN, StopOnNaN()),
            (RestartOnCollapse, RestartOnCollapse()),
            (Report, Report()),
        ]
        if given.get("enable_progress_bar") is not False:
            wanted.append((L.callbacks.ProgressBar, Progress()))
        if given.get("enable_checkpointing") is not False:
            wanted.append((L.callbacks.Checkpoint, Checkpoint()))
        ours = [callback for kind, callback in wanted if not any(isinstance(c, kind) for c in callbacks)]
        return [self.stop, *ours]


class SaveConfig(SaveConfigCallback):
    """Writes config.yaml into the run folder when training really begins.

    Not earlier: a checkpoint that turns out not to fit, or a run that is at its end, must not change what the run
    folder says of its checkpoints.

    A run that goes on in its folder with other settings keeps the earlier ones as `config_until_step_N.yaml`.
    """

    def __init__(self, parser: LightningArgumentParser, config: Any, request: Request, **options: Any) -> None:
        super().__init__(parser, config, **options)
        self.request = request

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Do nothing yet."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the configuration."""
        if not trainer.is_global_zero or getattr(trainer, "fast_dev_run", False):
            return
        path = Path(trainer.default_root_dir) / self.config_filename
        text = self.parser.dump(self.config, skip_unset=False)
        if path.is_file():
            if settings(yaml.safe_load(path.read_text())) == settings(yaml.safe_load(text)):
                return
            os.replace(path, path.with_name(f"config_until_step_{trainer.global_step}.yaml"))
        with atomic_path(path) as temporary:
            temporary.write_text(text)

    def on_train_batch_start(self, *_: Any) -> None:
        """Note that there is something to keep."""
        self.request.began = True


def _stopped(request: Request, code: int) -> int:
    folder = request.folder
    if folder is not None and (folder / "checkpoints" / "last.ckpt").is_file():
        log.info("stopped; go on with: sinelr %s --ckpt_path %s", request.verb, folder)
    else:
        log.info("stopped; no checkpoint was saved yet")
    return code


@contextmanager
def _quiet() -> Generator[None]:
    """Lower Lightning's own announcements (tips, devices, seeds) to warnings while our command runs."""
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # calls that Lightning makes
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # Raised inside Lightning on calls of its own, nothing that a user could change.
            warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated")
            warnings.filterwarnings("ignore", message="predict returned None")  # a task writes its predictions
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _nothing_half_written(request: Request) -> Generator[None]:
    """Take away the new folder of a run that a mistake stopped before its first step, or that nothing was put in."""
    try:
        yield
    except UserError:
        if request.folder and request.made and request.verb == "fit" and not request.began:
            shutil.rmtree(request.folder, ignore_errors=True)
        raise
    finally:
        if request.folder and request.made:
            for folder in (request.folder, request.folder.parent, request.folder.parent.parent):
                with suppress(OSError):  # it holds something, as a rule
                    folder.rmdir()

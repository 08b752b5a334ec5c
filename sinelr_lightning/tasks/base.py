"""What every task does the same way: optimiser, schedule, storable arguments, scores, the check of a checkpoint."""

import copy
import csv
import inspect
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import lightning.pytorch as L
import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.parsing import AttributeDict
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from sinelr_lightning.errors import UserError
from sinelr_lightning.files import atomic_path
from sinelr_lightning.layers import parameter_groups, summarize
from sinelr_lightning.tasks.arguments import class_path, differing, kinds, plain
from sinelr_lightning.tasks.schedule import Schedule, total_steps

__all__ = ["ExportParts", "Task", "size_figures", "size_words"]

log = logging.getLogger(__name__)

STRIDE = 0x9E3779B97F4A7C15  # odd, and far from any sum of small numbers: no two steps of two seeds meet

Data = TypeVar("Data", bound=L.LightningDataModule)
Part = TypeVar("Part")


@dataclass(frozen=True)
class ExportParts:
    """What `sinelr export` needs of a task.

    Attributes:
        network: maps one tensor [N, …] to one tensor [N, …].
        example: an input of at least one row.
        metadata: what a user of the file must know, the meaning of input and output first: plain values.
    """

    network: nn.Module
    example: Tensor
    metadata: dict[str, Any]


class Task(L.LightningModule):
    """Base of the tasks. A subclass builds its networks and writes `training_step` (returning the loss) and the rest.

    The constructor stores its arguments, the subclass's included, in plain form (`class_path`/`init_args` for
    factories and optimisers), so that a checkpoint loads with `weights_only=True` and rebuilds the task by itself.

    Args:
        optimizer: makes the optimiser from parameter groups.
        schedule: the learning rate over the run.
        weight_decay: for those parameters that take it (`layers.parameter_groups`).
    """

    monitor: ClassVar[str] = "val/loss"
    mode: ClassVar[Literal["min", "max"]] = "min"

    def __init__(
        self,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.Adam(parameters, lr=5e-4),
        schedule: Schedule = Schedule(),  # noqa: B008 (frozen)
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.optimizer = optimizer
        self.schedule = schedule
        self.weight_decay = weight_decay
        self.from_checkpoint = False  # the command line says whether a checkpoint's weights will come
        self.scores: dict[str, dict[int, dict[str, float]]] = {}
        self._configured: list[dict[str, Any]] = []
        self._seed = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> "Task":
        """Copy all but what makes the optimiser: made by the command line, it holds the parser, which has locks."""
        memo[id(self.optimizer)] = self.optimizer
        copied = memo[id(self)] = type(self).__new__(type(self))
        copied.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return copied

    # -- what a subclass may add ---------------------------------------------------------------------------------
    def protocol(self) -> dict[str, Any]:
        """Conditions under which the figures were measured, for metrics.json: plain values."""
        return {}

    def combine(self, samples: dict[int, dict[str, float]]) -> dict[str, float]:
        """Figures of all samples from those of each: the means, unless the subclass knows better."""
        return mean_scores(samples)

    def details(self, stage: str) -> dict[str, Any]:
        """What metrics.json says of an evaluation beside its figures: the scores of each sample."""
        return {"samples": {str(number): values for number, values in self.scores.get(stage, {}).items()}}

    def closing_lines(self, run: Path) -> list[str]:
        """Commands that show the result of the run in folder `run`, printed at its end."""
        return []

    def size(self) -> dict[str, float]:
        """Figures of the model's size, for the logger and metrics.json."""
        return size_figures(self)

    def size_line(self) -> str:
        """The same in words."""
        return size_words(self)

    def export_parts(self) -> ExportParts:
        """Give the network that `sinelr export` writes, an input for it, and what its user must know.

        Raises:
            UserError: the task has no network from one tensor to one.
        """
        raise UserError(f"a {type(self).__name__} cannot be exported: it has no network from one tensor to one")

    # -- what a subclass may use ---------------------------------------------------------------------------------
    def data(self, kind: type[Data]) -> Data:
        """Give the run's data.

        Raises:
            UserError: it is of another kind.
        """
        data = self.trainer.datamodule  # ty: ignore[missing-attribute]
        if not isinstance(data, kind):
            raise UserError(f"a {type(self).__name__} needs {kind.__name__} as its data, got {type(data).__name__}")
        return data

    def board(self, *calls: str) -> Any:
        """Give the logger's writer if it takes what is to be shown, `add_image` for one; None in a sanity check."""
        board = None if self.trainer.sanity_checking else getattr(self.logger, "experiment", None)
        return board if all(hasattr(board, call) for call in calls) else None

    def predictions(self, name: str) -> Path:
        """Give the place of predictions in the run's folder; all processes must ask together."""
        return Path(self.trainer.log_dir or self.trainer.default_root_dir) / name

    def write_predictions(self, head: list[str], mine: list[list[Any]], what: str) -> None:
        """Write the rows of all processes, in their order, as predictions.csv; all must ask together.

        Args:
            head: names of the columns.
            mine: this process's rows.
            what: they are of, for the log.
        """
        parts, path = self.gathered(mine), self.predictions("predictions.csv")
        if not self.trainer.is_global_zero:
            return
        # Names of files may be any bytes.
        text: dict[str, Any] = {"newline": "", "encoding": "utf-8", "errors": "surrogateescape"}
        with atomic_path(path) as temporary, temporary.open("w", **text) as file:
            writer = csv.writer(file)
            writer.writerow(head)
            writer.writerows(sorted(row for part in parts for row in part))
        log.info("predictions of %d %s written to %s", sum(map(len, parts)), what, path)

    def gathered(self, mine: Part) -> list[Part]:
        """Give what each process has, in the order of their ranks; all must ask together."""
        parts = [mine] * self.trainer.world_size
        if len(parts) > 1:
            torch.distributed.all_gather_object(parts, mine)
        return parts

    def redraw(self, part: nn.Module, make: Callable[[], nn.Module], seed: int) -> None:
        """Give `part` the weights with which `make` makes it for this seed; other random numbers are not touched."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            part.load_state_dict(make().state_dict())

    # -- optimiser and schedule ----------------------------------------------------------------------------------
    def configure_optimizers(self) -> dict[str, Any]:
        """Groups by weight decay and learning-rate multiplier; the schedule steps with every optimiser step."""
        optimizer = self.optimizer(parameter_groups(self, self.weight_decay))
        for group in optimizer.param_groups:
            group["lr"] *= group.get("lr_multiplier", 1.0)
        scheduler = LambdaLR(optimizer, lambda step: self._factor(step))  # a method would be stored
        self._configured = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _factor(self, step: int) -> float:
        # The steps of the run are asked for after the first and not in configure_optimizers: there, Lightning would
        # set the training data up before it restores the loader, and a resumed run would begin its epoch again.
        return self.schedule.factor(step, lambda: total_steps(self.trainer, step))

    def on_train_start(self) -> None:
        """Put the configured settings of the optimiser over those restored from a checkpoint.

        The optimiser's saved groups carry the old learning rate, and would silently beat what the user asks for now.

        Raises:
            UserError: the schedule needs the end of a run that has none.
        """
        if self.schedule.kind != "constant" and not math.isfinite(total_steps(self.trainer, self.global_step)):
            raise UserError(
                f"schedule.kind {self.schedule.kind} needs an end: set trainer.max_steps, trainer.max_epochs or "
                "trainer.max_time"
            )
        schedulers = self.lr_schedulers()
        for scheduler in schedulers if isinstance(schedulers, list) else [schedulers]:
            if not isinstance(scheduler, LambdaLR):
                continue
            scheduler.base_lrs = [settings["initial_lr"] for settings in self._configured]
            factor = self._factor(scheduler.last_epoch)
            for group, settings in zip(scheduler.optimizer.param_groups, self._configured, strict=True):
                group.update(settings, lr=settings["initial_lr"] * factor)

    def on_fit_start(self) -> None:
        """Log the size of the model once, and note the run's seed."""
        self._seed = torch.initial_seed()
        if self.global_step == 0 and self.logger is not None:
            self.logger.log_metrics(self.size(), step=0)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Have what a step draws, a dropout for one, follow from the seed and its number: a run resumes exactly."""
        number = self.trainer.fit_loop.epoch_loop.batch_progress.total.ready * self.trainer.world_size
        torch.manual_seed((self._seed + (number + self.global_rank) * STRIDE) % 2**63)

    def on_train_end(self) -> None:
        """Leave the random numbers at the run's seed."""
        torch.manual_seed(self._seed)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log the loss that `training_step` returned, and the learning rate that the next step takes."""
        if outputs is not None:
            self.log("train/loss", outputs["loss"] if isinstance(outputs, dict) else outputs)
        group = self.trainer.optimizers[0].param_groups[0]
        self.log("train/lr", group["lr"] / group.get("lr_multiplier", 1.0))

    # -- scores of held-out samples ------------------------------------------------------------------------------
    def score_samples(self, batch: Any, stage: str) -> None:
        """Note the scores of a batch's held-out samples; a subclass writes this, or the two steps below."""
        raise NotImplementedError

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Score the samples of one batch."""
        self.score_samples(batch, "val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Score the samples of one batch."""
        self.score_samples(batch, "test")

    def score(self, stage: str, number: int, **values: Tensor | float) -> None:
        """Note the scores of held-out sample `number`; at the end, what `combine` makes of all is logged.

        The samples of all ranks are brought together in the order of their numbers: any number of ranks gives the
        same digits, as `stage/name`.
        """
        self.scores.setdefault(stage, {})[number] = {name: float(value) for name, value in values.items()}

    def _close_scores(self, stage: str) -> None:
        parts = self.gathered(self.scores.get(stage, {}))
        merged = {number: values for part in parts for number, values in part.items()}
        self.scores[stage] = dict(sorted(merged.items()))
        for name, value in self.combine(self.scores[stage]).items():
            # Every rank holds the same value; "max" over equal numbers changes no digit, as "mean" would.
            self.log(f"{stage}/{name}", value, reduce_fx="max", sync_dist=True)

    def on_validation_epoch_start(self) -> None:
        """Forget the scores of the last validation."""
        self.scores["val"] = {}

    def on_validation_epoch_end(self) -> None:
        """Log the figures of all samples."""
        self._close_scores("val")

    def on_test_epoch_start(self) -> None:
        """Forget the scores of the last test."""
        self.scores["test"] = {}

    def on_test_epoch_end(self) -> None:
        """Log the figures of all samples."""
        self._close_scores("test")

    # -- arguments and checkpoints -------------------------------------------------------------------------------
    def save_hyperparameters(self, *args: Any, frame: Any = None, **options: Any) -> None:
        """Store the constructor's arguments in the plain form of the command line, however the task was made."""
        current = inspect.currentframe()
        super().save_hyperparameters(*args, frame=frame or (current and current.f_back), **options)
        # Given by the command line they are plain already; made in Python, the arguments are still objects.
        self._hparams = AttributeDict({name: plain(value, name) for name, value in self._hparams.items()})
        self._hparams.setdefault("_class_path", class_path(type(self)))
        self._hparams.setdefault("_instantiator", "lightning.pytorch.cli.instantiate_module")
        self._hparams_initial = copy.deepcopy(self._hparams)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another architecture, naming what differs.

        Raises:
            UserError: keys or shapes of the weights differ, or what they are made of: a sine's factors fit into a
                low-rank layer, and mean nothing there.
        """
        stored = checkpoint.get(self.CHECKPOINT_HYPER_PARAMS_KEY, {})
        here = {name: tuple(tensor.shape) for name, tensor in self.state_dict().items()}
        # A strategy that shards has taken the weights out by now.
        there = {
            name: tuple(tensor.shape) for name, tensor in checkpoint.get("state_dict", self.state_dict()).items()
        }
        # A layer with numbers of its own, such as a rank that a budget chose, takes its form from the checkpoint.
        formed = tuple({name.partition("hyper.")[0] for name in there if ".hyper." in name})
        names = (name for name in sorted(here.keys() | there.keys()) if not (formed and name.startswith(formed)))
        wrong = [name for name in names if here.get(name) != there.get(name)]
        ours = kinds(dict(self.hparams))
        for name, kind in kinds(stored).items():
            if kind != ours.get(name, kind):
                raise UserError(
                    f"the checkpoint is of another architecture: {name} is {kind} there, {ours[name]} here"
                )
        if wrong:
            shapes = "; ".join(f"{n} is {_shape(there, n)} there, {_shape(here, n)} here" for n in wrong[:3])
            more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            settings = differing(stored, dict(self.hparams))
            raise UserError(f"the checkpoint is of another architecture: {shapes}{more}{settings}")


def size_figures(model: nn.Module) -> dict[str, float]:
    """Count parameters beside those of the same model with dense weights."""
    size = summarize(model)
    return {
        "parameters": size.parameters,
        "dense_parameters": size.dense_parameters,
        "compression": size.compression,
    }


def size_words(model: nn.Module) -> str:
    """Say the same: `19,109 parameters, 14.95% of the dense model's 127,812`."""
    size = summarize(model)
    return f"{size.parameters:,} parameters, {size.compression:.2%} of the dense model's {size.dense_parameters:,}"


def mean_scores(samples: dict[int, dict[str, float]]) -> dict[str, float]:
    """Average each score over the samples that have it: {0: {"a": 1.0}, 1: {"a": 2.0}} gives {"a": 1.5}."""
    columns: dict[str, list[float]] = {}
    for values in samples.values():
        for name, value in values.items():
            columns.setdefault(name, []).append(value)
    return {name: math.fsum(column) / len(column) for name, column in columns.items()}


def _shape(shapes: dict[str, tuple[int, ...]], name: str) -> str:
    return str(list(shapes[name])) if name in shapes else "missing"

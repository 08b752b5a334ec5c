"""A task and data small enough that a whole run takes a moment: y = sin of a random projection, by two layers."""

import time
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.loggers.logger import Logger
from torch import Tensor, nn

from sinelr_lightning.datamodules.loaders import EvaluationLoader, StepLoader, seeded_generator, share
from sinelr_lightning.layers import LinearFactory, SineLowRank
from sinelr_lightning.tasks.base import Task
from sinelr_lightning.tasks.schedule import Schedule

SINE = SineLowRank(rank=1)
COSINE = Schedule(kind="cosine", warmup=2)


def quiet_trainer(folder: Path, **options: Any) -> L.Trainer:
    """A Trainer on the CPU that neither shows nor writes anything, unless the options say otherwise."""
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(
        **{"default_root_dir": folder, "accelerator": "cpu", "enable_checkpointing": False, **quiet, **options}
    )


class ToyTask(Task):
    """Fits a small function; every step adds noise that follows from (seed, step) alone."""

    monitor = "val/error"
    mode = "min"

    def __init__(
        self,
        linear: LinearFactory = SINE,
        width: int = 8,
        poison_step: int = -1,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.Adam(parameters, lr=1e-2),
        schedule: Schedule = COSINE,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(optimizer=optimizer, schedule=schedule, weight_decay=weight_decay)
        self.network = nn.Sequential(
            linear(4, width), nn.Tanh(), linear(width, width), nn.Tanh(), nn.Linear(width, 1)
        )
        self.poison_step = poison_step

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        rows = len(batch["x"]) * self.trainer.world_size
        noise = torch.randn(rows, 4, generator=seeded_generator(7, self.global_step))
        noise = share(noise, self.global_rank, self.trainer.world_size)
        loss = (self(batch["x"] + 0.01 * noise.to(batch["x"])) - batch["y"]).square().mean()
        return loss * float("nan") if self.global_step == self.poison_step else loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.score("val", batch["number"], error=(self(batch["x"]) - batch["y"]).abs().mean())

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.score("test", batch["number"], error=(self(batch["x"]) - batch["y"]).abs().mean())

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        return self(batch["x"])

    def protocol(self) -> dict[str, Any]:
        return {"function": "sine"}

    def closing_lines(self, run: Any) -> list[str]:
        return [f"sinelr test --ckpt_path {run}"]


class ToyData(L.LightningDataModule):
    """Batches that follow from their number, and an odd number of held-out samples."""

    def __init__(
        self, batch_size: int = 8, steps: int = 10, held_out: int = 5, seed: int = 0, slow: float = 0.0
    ) -> None:
        super().__init__()
        self.batch_size, self.steps, self.held_out, self.seed, self.slow = batch_size, steps, held_out, seed, slow

    def _rows(self, number: int, count: int) -> dict[str, Tensor]:
        x = torch.randn(count, 4, generator=seeded_generator(self.seed, number))
        return {"x": x, "y": x.sum(-1, keepdim=True).sin()}

    def _world(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def train_dataloader(self) -> StepLoader:
        def make(number: int) -> dict[str, Tensor]:
            time.sleep(self.slow)
            return {k: share(v, *self._world()) for k, v in self._rows(number, self.batch_size).items()}

        return StepLoader(make, self.steps)

    def val_dataloader(self) -> EvaluationLoader:
        return EvaluationLoader(lambda n: {"number": n, **self._rows(-1 - n, 3)}, self.held_out, *self._world())

    test_dataloader = predict_dataloader = val_dataloader


class Silent(Logger):
    """A logger that writes no files, like those that send to a server."""

    name = version = "silent"

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        pass

    def log_hyperparams(self, *args: Any, **options: Any) -> None:
        pass


class Killed(BaseException):
    """Stands for SIGKILL inside a process: nothing catches it, nothing is saved because of it."""


class Trace(L.Callback):
    """Writes what happened, one line an event, and dies where it is told to.

    Args:
        file: gets `train STEP LOSS LR`, `val STEP ERROR`, `epoch NUMBER`.
        die: `EVENT STEP`, as in `train 13` or `val 20`: there the process is as good as killed.
        stop: the same for being told to stop, as by Ctrl-C or SIGTERM.
    """

    def __init__(self, file: str, die: str = "", stop: str = "") -> None:
        self.file, self.die, self.stop = Path(file), die, stop

    def _event(self, trainer: L.Trainer, event: str, step: int, *values: float) -> None:
        with self.file.open("a") as file:
            file.write(" ".join([event, str(step), *(f"{v:.9g}" for v in values)]) + "\n")
        if self.stop == f"{event} {step}":
            trainer._signal_connector.received_sigterm = True
        if self.die == f"{event} {step}":
            raise Killed

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, *_: Any) -> None:
        lr = trainer.optimizers[0].param_groups[0]["lr"]
        self._event(trainer, "train", trainer.global_step, float(outputs["loss"]), lr)

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            self._event(trainer, "val", trainer.global_step, float(trainer.callback_metrics["val/error"]))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._event(trainer, "epoch", trainer.current_epoch)

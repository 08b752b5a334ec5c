"""How far the run is and how long it still takes: a bar on a terminal, a line now and then in a log."""

import math
import time
from collections.abc import Callable
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bar

__all__ = ["Progress", "duration"]


class Progress(ProgressBar):
    """One bar over all steps of the run on a terminal, else one plain line every `seconds`; rank 0 alone.

    The time left is that of the whole run: the steps still to go, at the pace of this session, validations and saves
    included.

    Args:
        seconds: time between two lines where the output is no terminal.
    """

    def __init__(self, seconds: float = 30.0) -> None:
        super().__init__()
        self.seconds = seconds
        self.console = Console(stderr=True, highlight=False)
        self.clock: Callable[[], float] = time.monotonic
        self._enabled = True
        self._bar: Bar | None = None
        self._row = TaskID(0)
        self._counts_steps = False
        self._began = self._spoke = 0.0
        self._first_step = 0
        self._total = math.inf
        self._loss: Any = None
        self._evaluated = 0

    # -- Lightning's switches ------------------------------------------------------------------------------------
    def disable(self) -> None:
        """Lightning calls it on every rank but 0."""
        self._enabled = False

    def enable(self) -> None:
        """Speak again."""
        self._enabled = True

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Wait a while before the first line."""
        super().setup(trainer, pl_module, stage)
        self._spoke = self.clock()

    # -- training ------------------------------------------------------------------------------------------------
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock, and the bar on a terminal."""
        self._began = self._spoke = self.clock()
        self._first_step = trainer.global_step
        self._total = trainer.estimated_stepping_batches
        self._open("training", None if math.isinf(self._total) else int(self._total), trainer.global_step)
        self._counts_steps = True

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar, or speak when it is time."""
        self._loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if self._speaks_now():
            self._show(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the end state."""
        self._show(trainer, pl_module)
        self._close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Give the terminal back."""
        self._close()

    # -- evaluation ----------------------------------------------------------------------------------------------
    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        """Count the held-out samples."""
        self._evaluation(
            "validating", trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        )

    def on_test_batch_end(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        """Count the test samples."""
        self._evaluation("testing", trainer.num_test_batches)

    def on_predict_batch_end(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        """Count the samples."""
        self._evaluation("predicting", trainer.num_predict_batches)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A validation is over; the training goes on, or the sanity check or `validate` was it."""
        self._evaluated = 0
        if not self._counts_steps:
            self._close()

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The test is over."""
        self._close()

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The prediction is over."""
        self._close()

    # -- showing -------------------------------------------------------------------------------------------------
    def _speaks_now(self) -> bool:
        wait = 0.2 if self.console.is_terminal else self.seconds
        if not self._enabled or self.clock() - self._spoke < wait:
            return False
        self._spoke = self.clock()
        return True

    def _open(self, what: str, total: int | None, completed: int) -> None:
        if not self._enabled or not self.console.is_terminal:
            return
        self._close()
        columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}")
        self._bar = Bar(*columns, console=self.console, transient=what != "training")
        self._bar.start()
        self._row = self._bar.add_task(what, total=total, completed=completed, text="")

    def _close(self) -> None:
        self._evaluated, self._counts_steps = 0, False
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _show(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._enabled:
            return
        text = self.line(trainer, pl_module)
        if self._bar is not None:
            self._bar.update(self._row, completed=trainer.global_step, text=text)
        else:
            self.console.print(text, markup=False, soft_wrap=True)

    def line(self, trainer: L.Trainer, pl_module: L.LightningModule) -> str:
        """Give `step 300/1000  loss 0.0123  val/psnr 21.37  41.2 it/s  0:17 left`."""
        step, elapsed = trainer.global_step, self.clock() - self._began
        done = step - self._first_step
        parts = [f"step {step}" + ("" if math.isinf(self._total) else f"/{self._total:.0f}")]
        if self._loss is not None:
            parts.append(f"loss {float(self._loss):.4g}")
        metric = trainer.callback_metrics.get(getattr(pl_module, "monitor", ""))
        if metric is not None:
            parts.append(f"{pl_module.monitor} {float(metric):.4g}")
        if done and elapsed > 0:
            parts.append(f"{done / elapsed:.3g} it/s")
            if not math.isinf(self._total):
                left = elapsed / done * max(self._total - step, 0)
                parts.append(f"{duration(left)} left" if left else f"took {duration(elapsed)}")
        return "  ".join(parts)

    def _evaluation(self, what: str, batches: Any) -> None:
        self._evaluated += 1
        total = sum(batches) if isinstance(batches, list) else batches
        if self._bar is None:
            self._open(what, total, 0)
        if not self._speaks_now():
            return
        text = f"{what} {self._evaluated}/{total}"
        if self._bar is None:
            self.console.print(text, markup=False, soft_wrap=True)
        elif self._counts_steps:
            self._bar.update(self._row, text=text)
        else:
            self._bar.update(self._row, text=f"{self._evaluated}/{total}", completed=self._evaluated)


def duration(seconds: float) -> str:
    """h:mm:ss, or m:ss below an hour: 3725 → "1:02:05", 83 → "1:23"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"

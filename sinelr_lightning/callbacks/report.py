"""What the run came to: `metrics.json` in the run folder, and the closing words on the screen."""

import importlib.metadata
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from rich.console import Console

import sinelr_lightning
from sinelr_lightning.callbacks.folder import run_folder
from sinelr_lightning.files import atomic_path
from sinelr_lightning.tasks.base import Task, size_figures, size_words

__all__ = ["Report"]


class Report(L.Callback):
    """Writes the figures with the protocol under which they were measured, and says where to look.

    `metrics.json` has one entry a command (`fit`, `validate`, `test`; each keeps the others'), the size of the model
    and the protocol: seed, versions, and what the task adds (`Task.protocol`). Rank 0 alone.
    """

    def __init__(self) -> None:
        self.console = Console(highlight=False)
        self.best: dict[str, float] = {}
        self.best_step: int | None = None
        self.last: dict[str, float] = {}
        self.last_step: int | None = None
        self.seconds = 0.0
        self._before: set[str] = set()  # names that were logged before this evaluation
        self._held_out: set[str] = set()  # names that evaluations logged
        self._began = time.monotonic()
        self._trained = False

    # -- collecting ----------------------------------------------------------------------------------------------
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say what is trained, and where the run lives."""
        self._began = time.monotonic()
        if trainer.is_global_zero:
            trial = getattr(trainer, "fast_dev_run", False)
            self._say(_size_line(pl_module) + ("" if trial else f", run folder {run_folder(trainer)}"))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note that there is something to train: Lightning skips a run that is at its end already."""
        self._trained = True

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note what is there already: what comes is the validation's."""
        self._before = set(trainer.callback_metrics)

    on_test_start = on_validation_start

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note the held-out figures; note them as the best if the monitored one improved."""
        figures = self._figures(trainer)
        if trainer.sanity_checking:
            return
        self.last, self.last_step = figures, trainer.global_step
        monitor, mode = getattr(pl_module, "monitor", ""), getattr(pl_module, "mode", "min")
        now, best = self.last.get(monitor), self.best.get(monitor)
        if now is not None and math.isfinite(now) and (best is None or (now < best if mode == "min" else now > best)):
            self.best, self.best_step = dict(self.last), trainer.global_step

    def state_dict(self) -> dict[str, Any]:
        """Carry the best figures and the time spent over a stop."""
        seconds = self.seconds + time.monotonic() - self._began
        return {
            "best": self.best,
            "best_step": self.best_step,
            "last": self.last,
            "last_step": self.last_step,
            "seconds": seconds,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting from the checkpoint's figures."""
        self.best, self.best_step = state_dict["best"], state_dict["best_step"]
        self.last, self.last_step = state_dict["last"], state_dict["last_step"]
        self.seconds = state_dict["seconds"]

    def _figures(self, trainer: L.Trainer) -> dict[str, float]:
        """What the evaluation that ends has logged; of names that training logs as well, what it logged last."""
        self._held_out |= set(trainer.callback_metrics) - self._before
        return {name: float(value) for name, value in trainer.callback_metrics.items() if name in self._held_out}

    # -- telling -------------------------------------------------------------------------------------------------
    @rank_zero_only
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the figures of `fit` and close with what a person wants to know, when all else is done."""
        if not self._trained:
            end = f"nothing to train: the run is at step {trainer.global_step}, its end"
            self._say(f"{end}; --trainer.max_steps or --trainer.max_epochs set another")
            return
        self.seconds += time.monotonic() - self._began
        figures = {
            "best": {**self.best, "step": self.best_step} if self.best else {},
            "last": {**self.last, "step": self.last_step} if self.last else {},
            **_details(pl_module, "val"),
            "steps": trainer.global_step,
            "epochs": trainer.current_epoch,
            "seconds": round(self.seconds, 1),
        }
        self._write(trainer, pl_module, "fit", figures)
        for line in self._closing(trainer, pl_module):
            self._say(line)

    @rank_zero_only
    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write and show the figures of `test`."""
        self._evaluated(trainer, pl_module, "test")

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Write and show the figures of `validate`."""
        if stage == "validate" and trainer.is_global_zero and trainer.state.fn == TrainerFn.VALIDATING:
            self._evaluated(trainer, pl_module, "val")

    def _evaluated(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        figures = self.last if stage == "val" else self._figures(trainer)
        entry = {**figures, **_details(pl_module, stage), "checkpoint": str(trainer.ckpt_path or "")}
        self._write(trainer, pl_module, "validate" if stage == "val" else stage, entry)
        self._say("  ".join(f"{name} {value:.6g}" for name, value in figures.items()) or "no figures were logged")
        self._say(f"written to {run_folder(trainer) / 'metrics.json'}")

    def _closing(self, trainer: L.Trainer, pl_module: L.LightningModule) -> list[str]:
        run = run_folder(trainer)
        lines = []
        for name, figures, when in (("best", self.best, self.best_step), ("last", self.last, self.last_step)):
            if figures:
                shown = "  ".join(f"{key} {value:.5g}" for key, value in figures.items())
                lines.append(f"{name}: {shown} (step {when})")
        if getattr(trainer, "fast_dev_run", False):
            return [*lines, _size_line(pl_module), "a trial: nothing was written"]
        looks = [f"tensorboard --logdir {x.log_dir}" for x in trainer.loggers if isinstance(x, TensorBoardLogger)]
        if isinstance(pl_module, Task) and (run / "checkpoints" / "last.ckpt").is_file():
            looks += pl_module.closing_lines(run)
        return [*lines, _size_line(pl_module), f"run folder {run}", *(f"  {look}" for look in looks)]

    def _write(self, trainer: L.Trainer, pl_module: L.LightningModule, command: str, figures: dict[str, Any]) -> None:
        if getattr(trainer, "fast_dev_run", False):
            return
        path = run_folder(trainer) / "metrics.json"
        metrics = _read(path)
        metrics[command] = figures
        metrics["model"] = pl_module.size() if isinstance(pl_module, Task) else size_figures(pl_module)
        metrics["protocol"] = {
            "task": type(pl_module).__name__,
            "seed": int(os.environ["PL_GLOBAL_SEED"]) if "PL_GLOBAL_SEED" in os.environ else None,
            "devices": trainer.world_size,
            "precision": str(trainer.precision),
            "versions": {
                "sinelr": sinelr_lightning.__version__,
                "torch": torch.__version__,
                "lightning": importlib.metadata.version("lightning"),
            },
            **(pl_module.protocol() if isinstance(pl_module, Task) else {}),
        }
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(_strict(metrics), indent=2) + "\n")

    def _say(self, line: str) -> None:
        self.console.print(line, markup=False, soft_wrap=True)


def _size_line(pl_module: L.LightningModule) -> str:
    return pl_module.size_line() if isinstance(pl_module, Task) else size_words(pl_module)


def _details(pl_module: L.LightningModule, stage: str) -> dict[str, Any]:
    return pl_module.details(stage) if isinstance(pl_module, Task) else {}


def _strict(value: Any) -> Any:
    """The same with null for NaN and infinity, which JSON does not know."""
    if isinstance(value, dict):
        return {name: _strict(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}

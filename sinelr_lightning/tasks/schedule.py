"""The learning rate over a run."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import lightning.pytorch as L
from lightning.pytorch.callbacks import Timer

from sinelr_lightning.errors import UserError

__all__ = ["Schedule", "total_steps"]


@dataclass(frozen=True)
class Schedule:
    """Learning rate over the run, as a factor on the optimiser's.

    With s the step, w = warmup, N the steps of the whole run (`total_steps`) and p = (s − w)/(N − w): (s + 1)/w while
    s < w, then 1 (constant), final^p (exponential), or final + (1 − final)·(1 + cos πp)/2 (cosine).

    Args:
        kind: how the factor goes from 1 to `final`.
        warmup: steps of linear rise at the start.
        final: the factor at the end of the run; not used by `constant`.

    Raises:
        UserError: unknown kind, negative warmup, final outside (0, 1].
    """

    kind: Literal["constant", "exponential", "cosine"] = "constant"
    warmup: int = 0
    final: float = 0.1

    def __post_init__(self) -> None:
        if self.kind not in ("constant", "exponential", "cosine"):
            raise UserError(f"schedule.kind must be constant, exponential or cosine, got {self.kind!r}")
        if self.warmup < 0:
            raise UserError(f"schedule.warmup must be a number of steps ≥ 0, got {self.warmup}")
        if not 0 < self.final <= 1:
            raise UserError(f"schedule.final must be in (0, 1], got {self.final}")

    def factor(self, step: int, total: Callable[[], float]) -> float:
        """Give the factor of `step`; `total()` is asked for the steps of the run only where it matters."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.kind == "constant" or step == self.warmup:
            return 1.0
        steps = total()
        if not math.isfinite(steps):
            raise UserError(
                f"a schedule of kind {self.kind} needs an end: set trainer.max_steps, trainer.max_epochs or "
                "trainer.max_time"
            )
        progress = min((step - self.warmup) / max(steps - self.warmup, 1), 1.0)
        if self.kind == "exponential":
            return self.final**progress
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * progress)) / 2


def total_steps(trainer: L.Trainer, step: int) -> float:
    """Give the steps of the whole run, infinity for one without an end.

    Where time alone ends it (`trainer.max_time`), as many as it comes to at its pace up to `step`: the schedule then
    follows the share of the time that is over. All processes must ask together, and the first one's clock counts.
    """
    steps = trainer.estimated_stepping_batches
    callbacks = trainer.callbacks  # ty: ignore[missing-attribute]
    timers = [callback for callback in callbacks if isinstance(callback, Timer)]
    left = timers[0].time_remaining() if timers else None
    if math.isfinite(steps) or left is None:
        return steps
    over = max(timers[0].time_elapsed(), 1e-9)
    return trainer.strategy.broadcast(max(step, 1) * (over + left) / over)

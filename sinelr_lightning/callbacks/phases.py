"""Watches the phases of sine layers while they train."""

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from sinelr_lightning.analysis import PhaseStatistics, phase_statistics, sines
from sinelr_lightning.analysis.frequency import USUAL_SPREAD
from sinelr_lightning.analysis.phases import Sine
from sinelr_lightning.errors import UserError

__all__ = ["PhaseMonitor"]

log = logging.getLogger(__name__)

LEAST_SPREAD = 0.3  # rad: sin T is T to 2 %, so the layer is low rank
LARGEST_ROUNDING = 0.25  # rad


class PhaseMonitor(L.Callback):
    """Logs what the phases ω·U·Vᵀ of each sine layer come to, and says where its frequency cannot be right.

    Curves, by layer: `phases/spread` (radians), `phases/beyond` (share beyond half a period), `phases/stable_rank`,
    `phases/columns` (r of the thin form, where there is one), `phases/rounding` (radians, of factors in bfloat16) and
    `phases/gradient_to_weight` (‖∂L/∂U‖/‖U‖ and so for V, their geometric mean). Each kind of warning comes once, at
    the first look after the first step that calls for it, or at the end of the training.

    Args:
        every: steps between two looks. A look forms each weight once and multiplies with it forty times.

    Raises:
        UserError: every < 1.
    """

    def __init__(self, every: int = 100) -> None:
        if every < 1:
            raise UserError(f"every must be at least 1 step, got {every}")
        self.every = every
        self._told: set[str] = set()

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        """Look when it is time."""
        if trainer.global_step % self.every:
            return
        looks = self._looks(trainer, pl_module)
        figures = {
            f"phases/{kind}/{name}": value
            for name, sine, statistics in looks
            for kind, value in [*asdict(statistics).items(), ("gradient_to_weight", _gradient_to_weight(sine))]
            if value is not None
        }
        for logger in trainer.loggers:
            logger.log_metrics(figures, step=trainer.global_step)
        if trainer.global_step:
            self._warn(looks)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look once more: a short run has had no look since its start."""
        self._warn(self._looks(trainer, pl_module))

    @staticmethod
    def _looks(trainer: L.Trainer, pl_module: L.LightningModule) -> list[tuple[str, Sine, PhaseStatistics]]:
        """What each layer comes to; nothing but on the first process."""
        found = [(name, sine, _gathered(sine)) for name, sine in sines(pl_module)]  # by all processes together
        if not trainer.is_global_zero:
            return []
        return [(name, sine, phase_statistics(whole)) for name, sine, whole in found]

    def _warn(self, looks: Sequence[tuple[str, Sine, PhaseStatistics]]) -> None:
        for kind, line in _warnings(looks).items():
            if kind not in self._told:
                self._told.add(kind)
                log.warning(line)


def _gathered(sine: Sine) -> Sine:
    """With factors as wholes: FSDP2 shares them out."""

    def whole(factor: Tensor) -> Tensor:
        return factor.full_tensor() if isinstance(factor, DTensor) else factor

    return replace(sine, u=whole(sine.u), v=whole(sine.v))


def _gradient_to_weight(sine: Sine) -> float | None:
    ratios = []
    for factor in (sine.u, sine.v):
        held = factor if factor.is_leaf else factor._base  # an adapter's V is the transpose of what has the gradient
        if held is not None and held.grad is not None and not isinstance(held, DTensor):
            ratios.append(float(held.grad.norm() / held.detach().norm().clamp_min(1e-30)))
    return math.sqrt(math.prod(ratios)) if len(ratios) == 2 else None


def _warnings(looks: Sequence[tuple[str, Sine, PhaseStatistics]]) -> dict[str, str]:
    """What there is to warn of, by kind."""
    lines = {}
    low = [look for look in looks if look[2].spread < LEAST_SPREAD]
    layers, adapters = [look for look in low if not look[1].adapter], [look for look in low if look[1].adapter]
    if layers:
        name, sine, statistics = min(layers, key=lambda look: look[2].spread)
        omega = sine.omega * USUAL_SPREAD / max(statistics.spread, 1e-9)
        lines["low rank"] = (
            f"{_named(name, layers)}: phases spread {statistics.spread:.2g} rad: only low rank; raise the frequency "
            f"from {sine.omega:.3g} to about {omega:.3g}"
        )
    if adapters:
        name, sine, statistics = max(adapters, key=lambda look: look[2].spread)
        lines["low-rank updates"] = (
            f"{_named(name, adapters)}: phases spread {statistics.spread:.2g} rad: so far these are low-rank updates"
        )
    noisy = [look for look in looks if _half(look[1]) and look[2].rounding > LARGEST_ROUNDING]
    if noisy:
        name, sine, statistics = max(noisy, key=lambda look: look[2].rounding)
        kind = str(sine.u.dtype).removeprefix("torch.")
        lines["noise"] = (
            f"{_named(name, noisy)}: phases spread {statistics.spread:.0f} rad: noise in {kind}, whose rounding "
            f"moves them by {statistics.rounding:.2g} rad; keep the factors in float32 or lower the frequency from "
            f"{sine.omega:.3g} to about {sine.omega * LARGEST_ROUNDING / statistics.rounding:.3g}"
        )
    return lines


def _half(sine: Sine) -> bool:
    return sine.u.dtype in (torch.bfloat16, torch.float16)


def _named(name: str, looks: Sequence[Any]) -> str:
    return f"layer {name}" if len(looks) == 1 else f"{len(looks)} layers, {name} for one"

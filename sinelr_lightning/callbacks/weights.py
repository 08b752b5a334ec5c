"""Sine low-rank weights for a project that knows nothing of them: no change to its code."""

import logging
from contextlib import ExitStack
from typing import Literal

import lightning.pytorch as L

from sinelr_lightning.layers import Conversion, LinearFactory, cached_weights, convert, summarize

__all__ = ["CachedWeights", "ConvertCallback"]

log = logging.getLogger(__name__)


class ConvertCallback(L.Callback):
    """Converts the layers of any LightningModule in place, before its optimisers are made and checkpoints are read.

    Args:
        factory: makes the new layers, for example `SineLowRank(rank=8)`.
        include, exclude: patterns over the dotted names, see `layers.convert`.
        init: "fresh" for newly drawn factors, "fit" to approximate the present weights.
    """

    def __init__(
        self,
        factory: LinearFactory,
        include: list[str] | None = None,
        exclude: list[str] | None = None,
        init: Literal["fresh", "fit"] = "fresh",
    ) -> None:
        self.factory, self.include, self.exclude, self.init = factory, include or ["*"], exclude or [], init
        self.conversion: Conversion | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Convert, once for this callback: `fit` and then `test` find the model converted."""
        if self.conversion is None:
            self.conversion = convert(pl_module, self.factory, self.include, self.exclude, self.init)
            if trainer.is_global_zero:
                log.info("%s\n%s", self.conversion, summarize(pl_module))


class CachedWeights(L.Callback):
    """Forms each weight once for a whole evaluation (`layers.cached_weights`) instead of once a batch."""

    def __init__(self) -> None:
        self._open = ExitStack()

    def _begin(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._open.enter_context(cached_weights(pl_module))

    def _end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._open.close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Let the weights go."""
        self._open.close()

    on_validation_start = on_test_start = on_predict_start = _begin
    on_validation_end = on_test_end = on_predict_end = _end

"""Sine low-rank weights for a project that knows nothing of them: no change to its code."""

import logging
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from itertools import islice
from typing import Any, Literal

import lightning.pytorch as L
import torch

from sinelr_lightning.errors import UserError
from sinelr_lightning.layers import Conversion, LinearFactory, cached_weights, convert, summarize
from sinelr_lightning.progress import progress_bar

__all__ = ["CachedWeights", "ConvertCallback"]

log = logging.getLogger(__name__)


class ConvertCallback(L.Callback):
    """Converts the layers of any LightningModule in place, before its optimisers are made and checkpoints are read.

    Ranks that a budget chose are part of the weights' state: a checkpoint brings its own.

    Args:
        factory: makes the new layers, for example `SineLowRank(rank=8)`.
        include, exclude: patterns over the dotted names, see `layers.convert`.
        init: "fresh" for newly drawn factors, "fit" to approximate the present weights.
        ranks: pattern → rank, for layers with one of their own.
        budget: share of the dense model's parameters, from which each layer's rank is chosen.
        calibration_batches: batches of the datamodule's training data over which a fit or a budget measures the
            layers' inputs; 0 for none, to go by the weights alone. The module's `forward` gets each batch, of a
            tuple, list or mapping its first item.
    """

    def __init__(
        self,
        factory: LinearFactory,
        include: list[str] | None = None,
        exclude: list[str] | None = None,
        init: Literal["fresh", "fit"] = "fresh",
        ranks: dict[str, int] | None = None,
        budget: float | None = None,
        calibration_batches: int = 0,
    ) -> None:
        self.factory, self.include, self.exclude, self.init = factory, include or ["*"], exclude or [], init
        self.ranks, self.budget, self.calibration_batches = ranks, budget, calibration_batches
        self.conversion: Conversion | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Convert, once for this callback: `fit` and then `test` find the model converted.

        Raises:
            UserError: what `layers.convert` refuses; calibration without a datamodule or a `forward`.
        """
        if self.conversion is not None:
            return
        calibration = self._batches(trainer, stage) if self.calibration_batches else None
        shown = self.init == "fit" and trainer.is_global_zero
        try:
            with progress_bar() if shown else nullcontext() as show:
                self.conversion = convert(
                    pl_module, self.factory, self.include, self.exclude, self.init, self.ranks, self.budget,
                    calibration, show,
                )  # fmt: skip
        except ValueError as error:
            raise UserError(f"ConvertCallback: {error}") from error
        except NotImplementedError as error:
            raise UserError(f"ConvertCallback: calibration_batches needs a forward: {error}") from error
        if trainer.is_global_zero:
            log.info("%s\n%s", self.conversion, summarize(pl_module))

    def _batches(self, trainer: L.Trainer, stage: str) -> list[Any]:
        """Inputs of the module from its training data, the same on every process and whatever the seed."""
        datamodule: Any = trainer.datamodule  # ty: ignore[missing-attribute]
        if datamodule is None:
            raise UserError("ConvertCallback: calibration_batches takes them from a datamodule, and there is none")
        if stage != "fit":
            datamodule.setup("fit")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # processes must choose the same ranks, and training its own order
            return [_first(batch) for batch in islice(datamodule.train_dataloader(), self.calibration_batches)]


def _first(batch: Any) -> Any:
    """The input in a batch: of a mapping its first value, of a tuple or list its first item."""
    if isinstance(batch, Mapping):
        return next(iter(batch.values()))
    return batch[0] if isinstance(batch, tuple | list) else batch


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

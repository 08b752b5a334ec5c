"""Sine low-rank weights for a project that knows nothing of them: no change to its code."""

import logging
from contextlib import ExitStack
from typing import Literal

import lightning.pytorch as L

from sinelr_lightning.datamodules.loaders import training_inputs
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
            tuple or list its first item, of a mapping its first floating-point tensor.
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
        calibration = None
        if self.calibration_batches:
            datamodule = trainer.datamodule  # ty: ignore[missing-attribute]
            if datamodule is None:
                raise UserError(
                    "ConvertCallback: calibration_batches takes them from a datamodule, and there is none"
                )
            if stage != "fit":
                datamodule.setup("fit")
            calibration = training_inputs(datamodule, self.calibration_batches)
        try:
            with progress_bar(self.init == "fit" and trainer.is_global_zero) as show:
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

    # With the epoch, because an average takes the weights' place at the start of a validation.
    on_validation_epoch_start = on_test_epoch_start = on_predict_epoch_start = _begin
    on_validation_end = on_test_end = on_predict_end = _end

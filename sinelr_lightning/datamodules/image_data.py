"""The LightningDataModule of images with classes, less the question where they come from."""

import logging
from abc import ABC, abstractmethod
from typing import Any

import torch

from sinelr_lightning.datamodules.augmentation import (
    Augmentation,
    Preprocessing,
    evaluation_transform,
    mix,
    normalise,
    training_transform,
)
from sinelr_lightning.datamodules.image_batches import (
    Batch,
    EvaluationBatches,
    ImageEvaluationLoader,
    ImageStepLoader,
    Source,
    TrainingBatches,
    Workers,
)
from sinelr_lightning.datamodules.image_files import ImageFiles
from sinelr_lightning.datamodules.image_folder import Splits, image_files
from sinelr_lightning.datamodules.loaders import RankedData
from sinelr_lightning.errors import UserError

__all__ = ["ImageData"]

log = logging.getLogger(__name__)


class ImageData(RankedData, ABC):
    """What all image data does the same way; a subclass reads the `Splits`.

    A batch on its device holds `images` float32 [B, 3, S, S], normalised, and `indices` int64 [B] into the split.
    `labels` are int64 [B], in training with MixUp or CutMix float32 [B, classes] that sum to 1. Batches to predict
    hold `paths`, and no labels where `predict` names images without classes.

    Training goes through the data in fresh permutations; batch i and the random changes of its images follow from the
    seed and i alone, with any number of workers. Every held-out image is evaluated exactly once, on one rank.
    """

    def __init__(
        self,
        preprocessing: Preprocessing,
        augmentation: Augmentation,
        batch_size: int,
        epoch_steps: int | None,
        workers: int,
        predict: str | None,
        skip_unreadable: bool = False,
    ) -> None:
        super().__init__()
        for name, value, least in (("batch_size", batch_size, 1), ("workers", workers, 0)):
            if value < least:
                raise UserError(f"data.{name} must be at least {least}, got {value}")
        if epoch_steps is not None and epoch_steps < 1:
            raise UserError(f"data.epoch_steps must be at least 1, or null for one pass, got {epoch_steps}")
        self._preprocessing, self.augmentation = preprocessing, augmentation
        self.batch_size, self.epoch_steps, self.workers = batch_size, epoch_steps, workers
        self.predict, self.skip_unreadable = predict, skip_unreadable
        self._splits: Splits | None = None
        self._left_out: set[str] = set()

    @abstractmethod
    def read_splits(self) -> Splits:
        """Find the images of the splits and their classes."""

    @property
    @abstractmethod
    def dataset_name(self) -> str:
        """What the protocol calls the data."""

    @property
    def splits(self) -> Splits:
        """The images, found at the first use."""
        if self._splits is None:
            self._splits = self.read_splits()
        return self._splits

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, in the order of the labels; none where only the images of `predict` are read."""
        return [] if self.only_predicts else self.splits.class_names

    def prepare_like(self, preprocessing: dict[str, Any]) -> None:
        """Do to every image what a checkpoint says was done in training."""
        plain: dict[str, Any] = {**preprocessing}
        for name in ("mean", "std"):
            plain[name] = tuple(plain[name])
        self._preprocessing = Preprocessing(**plain)

    def preprocessing(self) -> dict[str, Any]:
        """How an image becomes the network's input, in plain values, for checkpoints and exported models."""
        return self._preprocessing.plain()

    def protocol(self) -> dict[str, Any]:
        """How the figures of this data were measured, for metrics.json."""
        splits = self.splits
        counts = {f"{name}_images": len(getattr(splits, name)) for name in ("train", "val", "test")}
        sizes = {"image_size": self._preprocessing.image_size, "crop_ratio": self._preprocessing.crop_ratio}
        classes = {"dataset": self.dataset_name, "classes": len(splits.class_names)}
        told = {**classes, **counts, **sizes, **splits.notes}
        if self.skip_unreadable:  # those that were damaged behind their headers, too
            told["left_out"] = told["left_out"] + len(self._left_out)
        return told

    def setup(self, stage: str | None = None) -> None:
        """Find the images, before anything is trained.

        Raises:
            UserError: what is wrong with them, or a batch that is larger than the training set.
        """
        self.seed = torch.initial_seed()
        if self.only_predicts:
            return
        count = len(self.splits.train)
        if stage == "fit" and self.batch_size > count:
            raise UserError(f"data.batch_size is {self.batch_size}, but there are only {count} training images")
        log.info("%s: %d classes, %d training images", self.dataset_name, len(self.class_names), count)

    def _workers(self) -> Workers:
        pin = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return Workers(self.workers, pin, self._report)

    def _report(self, lines: list[str]) -> None:
        for line in lines:
            if line not in self._left_out:
                self._left_out.add(line)
                log.warning("left out %s; %d so far", line, len(self._left_out))

    def train_dataloader(self) -> ImageStepLoader:
        """Batches of one pass, or of `epoch_steps` steps; batch i depends on the seed and i alone."""
        transform = training_transform(self.augmentation, self._preprocessing)
        make = TrainingBatches(
            self.splits.train, transform, self.batch_size, self.seed, *self._ranks(), self.skip_unreadable
        )
        return ImageStepLoader(make, self.epoch_steps or make.epoch_steps, self._workers())

    def val_dataloader(self) -> ImageEvaluationLoader:
        """The validation images, each once."""
        return self._held_out(self.splits.val)

    def test_dataloader(self) -> ImageEvaluationLoader:
        """The test images, each once."""
        return self._held_out(self.splits.test)

    def predict_dataloader(self) -> ImageEvaluationLoader:
        """The images that `predict` names, else the test images, with their paths where they are files."""
        if self.predict is None:
            return self._held_out(self.splits.test, paths=True)
        return self._held_out(image_files(self.predict, self.skip_unreadable), paths=True)

    def _held_out(self, source: Source, paths: bool = False) -> ImageEvaluationLoader:
        rank, world = self._ranks()
        path_of = source.path if paths and isinstance(source, ImageFiles) else None
        make = EvaluationBatches(source, evaluation_transform(self._preprocessing), self.skip_unreadable, path_of)
        return ImageEvaluationLoader(make, max(1, self.batch_size // world), self._workers(), rank, world)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Normalise on the device; mix training batches there."""
        batch = {**batch, "images": normalise(batch["images"], self._preprocessing)}
        step = batch.pop("step", None)
        if step is not None and self.augmentation.mixes:
            classes = len(self.class_names)
            images, labels = mix(batch["images"], batch["labels"], classes, self.augmentation, self.seed, step)
            batch.update(images=images, labels=labels)
        return batch

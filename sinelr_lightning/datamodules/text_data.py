"""What all text data has in common: its files, the part that is held out, tokens, loaders."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch

from sinelr_lightning.datamodules.loaders import RankedData, StepLoader, seeded_generator
from sinelr_lightning.datamodules.packing import Batch, GroupLoader, Row, RowBatches
from sinelr_lightning.errors import UserError

__all__ = ["TextData"]

Item = TypeVar("Item")


class TextData(RankedData, ABC):
    """What all text data does the same way: its files, the part held out, the loaders.

    A subclass reads a file (`read`), tokenises what it read (`encode`), and brings samples together (`stack`). The
    task hands in its tokenizer by `use_tokenizer`, after `setup` and before it asks for a loader.

    Training goes through the data in a fresh random order each epoch; batch i follows from the seed and i alone.
    Every held-out sample counts once, on one rank.
    """

    def __init__(
        self,
        train: str | None,
        validation: str | None,
        test: str | None,
        validation_share: float,
        max_length: int,
        batch_size: int,
        epoch_steps: int | None,
        limit: int | None,
        seed: int,
    ) -> None:
        super().__init__()
        for name, value, least in (("max_length", max_length, 2), ("batch_size", batch_size, 1)):
            if value < least:
                raise UserError(f"data.{name} must be at least {least}, got {value}")
        for name, value, otherwise in (("epoch_steps", epoch_steps, "one pass"), ("limit", limit, "all records")):
            if value is not None and value < 1:
                raise UserError(f"data.{name} must be at least 1, or null for {otherwise}, got {value}")
        if not 0 < validation_share < 1:
            raise UserError(f"data.validation_share must lie between 0 and 1, got {validation_share}")
        self.train, self.validation, self.test, self.validation_share = train, validation, test, validation_share
        self.max_length, self.batch_size, self.epoch_steps = max_length, batch_size, epoch_steps
        self.limit, self.seed = limit, seed
        self.tokenizer: Any = None
        self._needed: list[str] = []
        self._read: dict[str, list[Any]] = {}
        self._groups: dict[str, list[list[Any]]] = {}

    # -- what a subclass says ------------------------------------------------------------------------------------
    @abstractmethod
    def read(self, path: str | None) -> list[Any]:
        """Read a file, or a folder: records, documents or sentences."""

    @abstractmethod
    def encode(self, split: str, items: list[Any]) -> list[list[Any]]:
        """Tokenise what was read: for each item its samples, which have `ids`; one each for training."""

    @abstractmethod
    def plan(self, lengths: list[int], epoch: int) -> list[Row]:
        """Say which training samples, `lengths` tokens long, make the rows of an epoch, in their order."""

    @abstractmethod
    def stack(self, rows: Sequence[Sequence[Any]], split: str) -> Batch:
        """Bring rows of samples together to a batch."""

    # -- reading and tokenising ----------------------------------------------------------------------------------
    def setup(self, stage: str | None = None) -> None:
        """Read the files of the stage.

        Raises:
            UserError: what is wrong with them, by file and line.
        """
        held = "val" if self.test is None else "test"
        stages = {"fit": ["train", "val"], "validate": ["val"], "test": [held], "predict": [held]}
        self._needed = stages.get(stage or "", ["train", "val", held])
        for split in self._needed:
            self.read_split(split)

    def read_split(self, split: str) -> None:
        """Read "train", "val" or "test", once; the first two together where one is a part of the other."""
        path = {"train": self.train, "val": self.validation, "test": self.test}[split]
        if split in self._read:
            return
        if split == "test" or (split == "val" and path is not None):
            self._read[split] = self.read(path)
            return
        items = self.read(self.train)
        if self.validation is None:
            items, self._read["val"] = self._hold_out(items)
        self._read["train"] = items[: self.limit]

    def _hold_out(self, items: list[Item]) -> tuple[list[Item], list[Item]]:
        """Draw the held-out part by the seed; both parts keep the order of the file.

        It is a share of the records, and of documents, which differ much in length, one of their text.
        """
        sizes = [len(item[1]) if isinstance(item, tuple) else 1 for item in items]
        left = round(self.validation_share * sum(sizes))
        held = set()
        for number in torch.randperm(len(items), generator=seeded_generator(self.seed, -1)).tolist():
            if sizes[number] <= left:
                held.add(number)
                left -= sizes[number]
        held = held or {sizes.index(min(sizes))}
        parts = [[item for number, item in enumerate(items) if (number in held) is out] for out in (False, True)]
        if not parts[0]:
            raise UserError(
                f"{self.source}: has {len(items)} record(s) or file(s), and none to train on once "
                f"data.validation_share = {self.validation_share} is held out; name data.validation, or take more"
            )
        return parts[0], parts[1]

    def use_tokenizer(self, tokenizer: Any) -> None:
        """Tokenise the splits of the stage.

        Args:
            tokenizer: a fast one of Hugging Face.

        Raises:
            UserError: by file and line, a record that the tokenizer or `max_length` does not fit; or a tokenizer that
                has nothing to fill rows up with.
        """
        if tokenizer is not self.tokenizer:
            self.tokenizer, self._groups = tokenizer, {}
        for split in self._needed:
            if split not in self._groups:
                self._groups[split] = self.encode(split, self._read[split])
        _ = self.pad_id  # missing it is told now, not by the first batch

    def check_room(self, vocabulary: int, positions: int | None) -> None:
        """See to it that a model can read every sample.

        Args:
            vocabulary: tokens that the model knows.
            positions: tokens that a sample may have; None for any number.

        Raises:
            UserError: it cannot.
        """
        samples = [sample for groups in self._groups.values() for group in groups for sample in group]
        longest = max(len(sample.ids) for sample in samples)
        if positions is not None and longest > positions:
            raise UserError(f"a sample has {longest} tokens, the model reads {positions}: lower data.max_length")
        largest = max(int(np.max(sample.ids)) for sample in samples)
        if largest >= vocabulary:
            raise UserError(
                f"the tokenizer gives token {largest}, the model knows {vocabulary} tokens, numbered from 0: they "
                "do not belong together, or tokens were added without resizing the model's embedding"
            )

    @property
    def source(self) -> str:
        """What the training data is called."""
        return self.train or "the Python manual"

    @property
    def pad_id(self) -> int:
        """What fills rows up: the tokenizer's padding token, or EOS where it has none; no label is ever on it.

        Raises:
            UserError: it has neither.
        """
        given = self.tokenizer.pad_token_id
        filler = self.tokenizer.eos_token_id if given is None else given
        if filler is None:
            raise UserError("the tokenizer has no padding token and no EOS token; take one with pad_token")
        return filler

    def protocol(self) -> dict[str, Any]:
        """How the figures of this data were measured, for metrics.json."""
        told: dict[str, Any] = {"train": self.source, "validation": self.validation, "test": self.test}
        if self.validation is None:
            told["validation_share"] = self.validation_share
        for split, items in self._read.items():
            told[f"{split}_records"] = len(items)
        for split, groups in self._groups.items():
            told[f"{split}_samples"] = len(groups)
            told[f"{split}_tokens"] = sum(len(sample.ids) for group in groups for sample in group)
        return {**told, "max_length": self.max_length, "batch_size": self.batch_size, "data_seed": self.seed}

    # -- loaders -------------------------------------------------------------------------------------------------
    def train_dataloader(self) -> StepLoader[Batch]:
        """Batches of `epoch_steps` steps, or ⌈rows/batch_size⌉; batch i depends on the seed and i alone.

        Each is whole: where the rows of a pass run out, the next pass begins within the batch.
        """
        samples = [group[0] for group in self._groups["train"]]
        lengths = [len(sample.ids) for sample in samples]
        make = RowBatches(
            lambda epoch: self.plan(lengths, epoch),
            lambda rows: self.stack([[samples[number] for number in row] for row in rows], "train"),
            self.batch_size,
            *self._ranks(),
        )
        return StepLoader(make, self.epoch_steps or make.epoch_steps)

    def val_dataloader(self) -> GroupLoader:
        """The validation samples."""
        return self._held_out("val")

    def test_dataloader(self) -> GroupLoader:
        """The test samples."""
        return self._held_out("val" if self.test is None else "test")

    def _held_out(self, split: str) -> GroupLoader:
        groups = self._groups[split]

        def make(numbers: list[int]) -> Batch:
            batch = self.stack([[sample] for number in numbers for sample in groups[number]], split)
            indices = [number for number in numbers for _ in groups[number]]
            return {**batch, "indices": torch.tensor(indices)}

        rank, world = self._ranks()
        lengths = [max(len(sample.ids) for sample in group) for group in groups]
        return GroupLoader(make, lengths, max(1, self.batch_size // world), rank, world)

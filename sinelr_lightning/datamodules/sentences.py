"""Sentences with classes, and pairs of them, in the tab-separated files of GLUE."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sinelr_lightning.datamodules.packing import Batch, Row, length_grouped, padded
from sinelr_lightning.datamodules.text_data import TextData
from sinelr_lightning.datamodules.text_records import Sentence, read_tsv
from sinelr_lightning.errors import UserError

__all__ = ["SentenceData"]


@dataclass(frozen=True)
class Labelled:
    """A tokenised sentence or pair.

    Attributes:
        number: its place in the split.
        ids: [T].
        types: [T], which sentence of the pair each token is of; empty where the tokenizer does not say.
        label: number of its class.
    """

    number: int
    ids: list[int]
    types: list[int]
    label: int


class SentenceData(TextData):
    """Sentences, or pairs of them, to tell the class of.

    The files are tab-separated and have a header with `label` and one or two columns of text. The classes are the
    labels of the training file, in the order of their names, or of their values where all are whole numbers.

    A batch holds, int64 [B, T], `input_ids` and `segments`, 1 on tokens and 0 on padding, which is at the right, and
    int64 [B], `labels`, the numbers of the classes, and `indices` into the split. `token_type_ids` [B, T] are there
    where the tokenizer tells the two sentences of a pair apart by them.

    Args:
        train: file of the training sentences.
        validation: file; null for a part of `train` that is held out of training.
        test: file; null for the validation sentences.
        validation_share: how much of `train` is held out without `validation`.
        max_length: in tokens; what is longer is cut by the tokenizer.
        batch_size: sentences a step, over all processes.
        epoch_steps: steps between two validations; null for as many as one pass over the training sentences needs,
            ⌈sentences/batch_size⌉: each batch is whole, the last of them may begin the next pass.
        limit: how many training sentences are used, from the first on; null for all.
        seed: of the order of the sentences and of what is held out.

    Raises:
        UserError: a value out of its range; from `setup`, what is wrong with the files, by line: among it a label
            that the training file does not have, or a training file of one class.
    """

    def __init__(
        self,
        train: str,
        validation: str | None = None,
        test: str | None = None,
        validation_share: float = 0.1,
        max_length: int = 128,
        batch_size: int = 32,
        epoch_steps: int | None = None,
        limit: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(train, validation, test, validation_share, max_length, batch_size, epoch_steps, limit, seed)
        self.class_names: list[str] = []

    def setup(self, stage: str | None = None) -> None:
        """Read the files of the stage, and that of the training for its classes."""
        super().setup(stage)
        self.read_split("train")
        for split in self._needed:
            for sentence in self._read[split]:
                if sentence.label not in self.class_names:
                    raise UserError(
                        f"{sentence.where}: label {sentence.label} is none of {self.train}, which has "
                        f"{', '.join(self.class_names)}"
                    )

    def read(self, path: str | None) -> list[Sentence]:
        """Read sentences; those of the training file say which classes there are."""
        sentences = read_tsv(str(path))
        if path == self.train:
            self.class_names = class_order({sentence.label for sentence in sentences})
            if len(self.class_names) < 2:
                raise UserError(f"{path}: has only one label, {self.class_names[0]}; at least two are needed")
        return sentences

    def encode(self, split: str, items: list[Sentence]) -> list[list[Labelled]]:
        """Tokenise sentences with the tokenizer's own special tokens."""
        columns = [list(column) for column in zip(*(item.texts for item in items), strict=True)]
        made = self.tokenizer(*columns, truncation=True, max_length=self.max_length)
        types = made.get("token_type_ids") or [[]] * len(items)
        numbers = {name: number for number, name in enumerate(self.class_names)}
        rows = zip(range(len(items)), made["input_ids"], types, (numbers[item.label] for item in items), strict=True)
        return [[Labelled(*row)] for row in rows]

    def plan(self, lengths: list[int], epoch: int) -> list[Row]:
        """One sentence a row, those of similar lengths together."""
        return length_grouped(lengths, self.batch_size, self.seed, epoch)

    def stack(self, rows: Sequence[Sequence[Labelled]], split: str) -> Batch:
        """Rows of ids and segments, with their classes."""
        samples = [row[0] for row in rows]
        batch = {
            "input_ids": padded([sample.ids for sample in samples], self.pad_id),
            "segments": padded([[1] * len(sample.ids) for sample in samples], 0),
            "labels": torch.tensor([sample.label for sample in samples]),
            "indices": torch.tensor([sample.number for sample in samples]),
        }
        if any(any(sample.types) for sample in samples):
            batch["token_type_ids"] = padded([sample.types for sample in samples], 0)
        return batch


def class_order(labels: set[str]) -> list[str]:
    """Sort the names of classes, by their values where all are whole numbers: 2 before 10."""
    try:
        return sorted(labels, key=int)
    except ValueError:
        return sorted(labels)

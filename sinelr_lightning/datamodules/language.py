"""Text for language models: records of prompts and answers, conversations, multiple choice, or plain text."""

import logging
from collections.abc import Sequence
from typing import Any

import torch

from sinelr_lightning.datamodules.packing import (
    Batch,
    Row,
    TooLong,
    fit_samples,
    length_grouped,
    pack,
    stack_rows,
)
from sinelr_lightning.datamodules.text_data import TextData
from sinelr_lightning.datamodules.text_records import (
    Document,
    Record,
    holds_records,
    python_manual,
    read_documents,
    read_records,
)
from sinelr_lightning.datamodules.tokenization import (
    Form,
    Group,
    Sample,
    Template,
    choose_template,
    show_samples,
    text_rows,
    tokenize_records,
)
from sinelr_lightning.errors import UserError

__all__ = ["LanguageData"]

log = logging.getLogger(__name__)


class LanguageData(TextData):
    """Text to fine-tune a language model on.

    A file is one of records (`.jsonl`, an object a line, or `.json`, a list of objects; `text_records.read_records`
    says which fields they have), whose answers alone are trained, or of plain text (`.txt`, `.md`, or a folder of
    them), of which every token is.

    A batch holds, int64 [B, T]: `input_ids`; `labels`, −100 where nothing is trained, not shifted; `segments`, 1, 2,
    … for the samples of a row and 0 for padding; `position_ids`, from 0 on in each sample. A held-out batch is not
    packed and holds, int64 [B], `indices`, the number of each row's sample, and `choice` and `answer`. A sample of
    multiple choice has a row for each choice, all in one batch: `choice` is the row's and `answer` the right one;
    both are −1 for other samples. So the rows with `choice == answer` are those whose labels are the true ones.

    Args:
        train: file or folder; null for the topics of Python's own manual, which need no download.
        validation: file or folder; null for a part of `train` that is held out of training.
        test: file or folder; null for the validation samples.
        validation_share: how much of `train` is held out without `validation`: of the records, or of the text, by
            whole documents or topics.
        template: "chat" for the tokenizer's own, "alpaca" for prompts in the form of Alpaca, "auto" for chat where
            the tokenizer has it.
        max_length: tokens a row; no sample is longer.
        too_long: what is done with longer records: "error", "drop", or "truncate" at the end.
        packing: several samples a training row, as many as fit; else one a row, those of similar length together.
        batch_size: rows a step, over all processes; samples, where they are held out.
        epoch_steps: steps between two validations; null for the whole batches that one pass takes.
        limit: how many training records or documents are used, from the first on; null for all.
        preview: how many training samples are printed before the training, what is trained in green.
        seed: of the order of the samples and of what is held out.

    Raises:
        UserError: a value out of its range; from `setup` and `use_tokenizer`, what is wrong with the files, by line.
    """

    def __init__(
        self,
        train: str | None = None,
        validation: str | None = None,
        test: str | None = None,
        validation_share: float = 0.1,
        template: Template = "auto",
        max_length: int = 512,
        too_long: TooLong = "error",
        packing: bool = True,
        batch_size: int = 8,
        epoch_steps: int | None = None,
        limit: int | None = None,
        preview: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(train, validation, test, validation_share, max_length, batch_size, epoch_steps, limit, seed)
        if too_long not in ("error", "drop", "truncate"):
            raise UserError(f"data.too_long is {too_long!r}; error, drop and truncate are accepted")
        if template not in ("auto", "chat", "alpaca"):
            raise UserError(f"data.template is {template!r}; auto, chat and alpaca are accepted")
        if preview < 0:
            raise UserError(f"data.preview must be at least 0, got {preview}")
        self.template, self.too_long, self.packing, self.preview = template, too_long, packing, preview

    def read(self, path: str | None) -> list[Record] | list[Document]:
        """Read records or documents, whichever the file holds."""
        if path is None:
            return python_manual()
        return read_records(path) if holds_records(path) else read_documents(path)

    def encode(self, split: str, items: list[Any]) -> list[Group]:
        """Tokenise records in the template's form, documents as rows."""
        training = split == "train"
        if not isinstance(items[0], Record):
            return text_rows(items, self.tokenizer, self.max_length, rest=not training)
        template = choose_template(self.tokenizer, self.template)
        groups = tokenize_records(items, self.tokenizer, template, choices=not training)
        return fit_samples(groups, self.max_length, self.too_long)

    def use_tokenizer(self, tokenizer: Any) -> None:
        """Tokenise the splits of the stage, say how much there is to train on, and show what `preview` asks for."""
        super().use_tokenizer(tokenizer)
        if "train" not in self._groups:
            return
        samples = [group[0] for group in self._groups["train"]]
        tokens, trained = (sum(counts) for counts in zip(*((len(s.ids), s.trained) for s in samples), strict=True))
        log.info("%s: %d training samples, %d tokens, %d of them trained", self.source, len(samples), tokens, trained)
        if self.preview and self._ranks()[0] == 0:
            show_samples(samples[: self.preview], tokenizer)

    @property
    def form(self) -> Form:
        """What records are written in, or "text" for documents."""
        records = isinstance(next(iter(self._read.values()))[0], Record)
        return choose_template(self.tokenizer, self.template) if records else "text"

    def plan(self, lengths: list[int], epoch: int) -> list[Row]:
        """Packed rows, or one sample a row."""
        if self.packing:
            return pack(lengths, self.max_length, self.seed, epoch)
        return length_grouped(lengths, self.batch_size, self.seed, epoch)

    def stack(self, rows: Sequence[Sequence[Sample]], split: str) -> Batch:
        """Rows of ids, labels, positions and segments; held out, with the choices too."""
        if split == "train":
            return stack_rows(rows, self.pad_id, self.max_length if self.packing else None)
        marks = {name: torch.tensor([getattr(row[0], name) for row in rows]) for name in ("choice", "answer")}
        return {**stack_rows(rows, self.pad_id), **marks}

    def protocol(self) -> dict[str, Any]:
        """How the figures of this data were measured, for metrics.json."""
        told = {**super().protocol(), "too_long": self.too_long, "packing": self.packing}
        if self.tokenizer is not None:
            told["template"] = choose_template(self.tokenizer, self.template)
        return told

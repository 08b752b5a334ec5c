"""Samples as rows of batches, packed or alone: each batch a pure function of the seed and its number."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from sinelr_lightning.datamodules.loaders import EvaluationLoader, seeded_generator, share
from sinelr_lightning.datamodules.tokenization import UNTRAINED, Group, Sample
from sinelr_lightning.errors import UserError

__all__ = [
    "Batch",
    "GroupLoader",
    "Row",
    "RowBatches",
    "TooLong",
    "fit_samples",
    "length_grouped",
    "pack",
    "padded",
    "stack_rows",
]

log = logging.getLogger(__name__)

Batch = dict[str, Tensor]
Row = list[int]
"""The numbers of the samples in one row of a batch."""
TooLong = Literal["error", "drop", "truncate"]

MEGA = 50  # batches whose samples are sorted by length together: little padding, and still much chance


def fit_samples(groups: list[Group], max_length: int, too_long: TooLong) -> list[Group]:
    """Leave no sample longer than `max_length` tokens.

    Args:
        groups: the samples, record by record; a record is dropped as a whole.
        max_length: in tokens.
        too_long: "error"; "drop" leaves the record out; "truncate" cuts at the end. The last two log how many.

    Raises:
        UserError: with file and line: a sample that is too long; one that is cut and has no trained token left;
            choices that would be cut, for they might no longer differ; or no record is left.
    """
    kept: list[Group] = []
    long: list[Sample] = []
    for group in groups:
        longest = max(group, key=lambda sample: len(sample.ids))
        if len(longest.ids) > max_length:
            long.append(longest)
            if too_long == "drop":
                continue
            group = _cut(group, longest, max_length, too_long)
        kept.append(group)
    if long:
        log.warning(
            "%s %d of %d samples longer than data.max_length = %d tokens, the first: %s (%d tokens)",
            "left out" if too_long == "drop" else "cut",
            len(long),
            len(groups),
            max_length,
            long[0].where,
            len(long[0].ids),
        )
    if not kept:
        raise UserError(f"{long[0].where} and all others are longer than data.max_length = {max_length}; raise it")
    return kept


def _cut(group: Group, longest: Sample, max_length: int, too_long: TooLong) -> Group:
    cuttable = longest.choice < 0
    told = f"{longest.where}: has {len(longest.ids)} tokens, more than data.max_length = {max_length}"
    if too_long == "error" or not cuttable:
        remedy = "drop or truncate" if cuttable else "drop (choices are not cut, for they might no longer differ)"
        raise UserError(f"{told}; raise data.max_length, or set data.too_long to {remedy}")
    group = [replace(sample, ids=sample.ids[:max_length], labels=sample.labels[:max_length]) for sample in group]
    if not all(sample.trained for sample in group):
        raise UserError(f"{told}, and no trained one among these; raise it, or set data.too_long to drop")
    return group


def pack(lengths: Sequence[int], max_length: int, seed: int, epoch: int) -> list[Row]:
    """Put samples of `lengths` ≤ `max_length` tokens together into rows of at most `max_length`, in random order.

    Best fit, longest first: the number of rows is the same in every epoch, and seldom above the least possible by
    more than a few in a hundred. Which samples of one length go where is drawn anew, and so is the order of the rows.
    """
    generator = seeded_generator(seed, epoch)
    drawn = torch.randperm(len(lengths), generator=generator).tolist()
    rows: list[Row] = []
    free: list[list[Row]] = [[] for _ in range(max_length + 1)]  # rows by the number of tokens that they still hold
    some = 0  # bit n is set where free[n] has a row: the tightest fit is found at once
    for number in sorted(drawn, key=lambda number: -lengths[number]):
        fitting = some >> lengths[number]
        if fitting:
            room = lengths[number] + (fitting & -fitting).bit_length() - 1
            row = free[room].pop()
            if not free[room]:
                some ^= 1 << room
        else:
            room, row = max_length, []
            rows.append(row)
        row.append(number)
        free[room - lengths[number]].append(row)
        some |= 1 << (room - lengths[number])
    return [rows[number] for number in torch.randperm(len(rows), generator=generator).tolist()]


def length_grouped(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[Row]:
    """Order samples for batches of similar lengths, one sample a row.

    They are shuffled, sorted by length within stretches of 50 batches, and the batches shuffled. Where `batch_size`
    does not divide their number, batches reach from one epoch into the next: the first samples of this one complete
    the batch that the last one began, and the last ones begin the next.
    """
    generator = seeded_generator(seed, epoch)
    drawn = torch.randperm(len(lengths), generator=generator).tolist()
    head = min(-epoch * len(lengths) % batch_size, len(drawn))
    tail = len(drawn) - (len(drawn) - head) % batch_size
    batches: list[list[int]] = []
    for begin in range(head, tail, MEGA * batch_size):
        stretch = sorted(drawn[begin : min(begin + MEGA * batch_size, tail)], key=lambda number: lengths[number])
        batches += [stretch[at : at + batch_size] for at in range(0, len(stretch), batch_size)]
    mixed = [batches[number] for number in torch.randperm(len(batches), generator=generator).tolist()]
    order = [*drawn[:head], *(number for batch in mixed for number in batch), *drawn[tail:]]
    return [[number] for number in order]


def stack_rows(rows: Sequence[Sequence[Sample]], pad: int, length: int | None = None) -> Batch:
    """Bring rows of samples together, padded at the right to `length`, or to the longest of them.

    Each int64 [B, T]: `input_ids`; `labels`, −100 where nothing is trained; `segments`, 1, 2, 3, … for the samples of
    a row and 0 for padding; `position_ids`, from 0 on in each sample. The labels are not shifted. The first of each
    sample is −100: it would be predicted from the sample before it.
    """
    size = length or max(sum(len(sample.ids) for sample in row) for row in rows)
    shape = (len(rows), size)
    ids, labels = torch.full(shape, pad), torch.full(shape, UNTRAINED)
    segments, positions = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
    for number, row in enumerate(rows):
        begin = 0
        for segment, sample in enumerate(row, 1):
            end = begin + len(sample.ids)
            ids[number, begin:end] = torch.from_numpy(sample.ids)
            labels[number, begin + 1 : end] = torch.from_numpy(sample.labels[1:])
            segments[number, begin:end] = segment
            positions[number, begin:end] = torch.arange(end - begin)
            begin = end
    return {"input_ids": ids, "labels": labels, "position_ids": positions, "segments": segments}


def padded(sequences: Sequence[Any], value: int) -> Tensor:
    """Bring sequences of whole numbers together: int64 [B, T], filled up at the right with `value`."""
    filled = torch.full((len(sequences), max(map(len, sequences))), value)
    for row, sequence in zip(filled, sequences, strict=True):
        row[: len(sequence)] = torch.as_tensor(sequence)
    return filled


class RowBatches:
    """Step → batch. The epochs' rows follow one another without a gap, and each batch is the next `batch_size` rows.

    So every batch is whole and every sample comes once an epoch; where `batch_size` does not divide the rows, a batch
    holds the last rows of one epoch and the first of the next.

    Args:
        rows: epoch → its rows, the same number in each.
        stack: rows → batch.
        batch_size: rows a batch, over all processes.
        rank, world: this process and the number of processes.
    """

    def __init__(
        self,
        rows: Callable[[int], list[Row]],
        stack: Callable[[list[Row]], Batch],
        batch_size: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._rows = lru_cache(maxsize=2)(rows)
        self._stack, self.batch_size, self.rank, self.world = stack, batch_size, rank, world
        self.count = len(self._rows(0))

    @property
    def epoch_steps(self) -> int:
        """Batches in one pass over the data, the last of which may begin the next."""
        return -(-self.count // self.batch_size)

    def __call__(self, step: int) -> Batch:
        """Make the batch of this step, or this rank's share of it.

        Raises:
            UserError: the batch cannot be shared evenly.
        """
        drawn = torch.arange(step * self.batch_size, (step + 1) * self.batch_size)
        numbers = share(drawn, self.rank, self.world).tolist()
        return self._stack([self._rows(number // self.count)[number % self.count] for number in numbers])


class GroupLoader(EvaluationLoader[Batch]):
    """An `EvaluationLoader` with `size` samples a batch, those of similar lengths together, the longest first.

    All ranks have equally many batches, for processes that share a model's weights out run each together. A rank with
    one fewer has its last a second time; scores are noted by sample, so each still counts once.

    Args:
        make: sample numbers → batch.
        lengths: of all samples.
        size: samples a batch.
        rank, world: this process and the number of processes.
    """

    def __init__(
        self, make: Callable[[list[int]], Batch], lengths: Sequence[int], size: int, rank: int = 0, world: int = 1
    ) -> None:
        super().__init__(lambda number: make([self.order[number]]), len(lengths), rank, world)
        self.batches, self.size = make, size
        self.order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
        self.count = -(-len(lengths) // (world * size))  # of batches, as the rank with most samples needs

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Batch]:
        mine = [self.order[number] for number in self.numbers]
        batches = [mine[begin : begin + self.size] for begin in range(0, len(mine), self.size)]
        return (self.batches(batches[min(number, len(batches) - 1)]) for number in range(self.count))

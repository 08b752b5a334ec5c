"""Loaders whose batches follow from their number alone, so that a run can stop and go on anywhere."""

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, Generic, TypeVar

import lightning.pytorch as L
import torch
from torch import Tensor

from sinelr_lightning.errors import UserError

__all__ = [
    "EvaluationLoader",
    "RankedData",
    "StepLoader",
    "index_loader",
    "seeded_generator",
    "share",
    "training_inputs",
]

Batch = TypeVar("Batch")


class StepLoader(Generic[Batch]):
    """`steps` batches an epoch, batch number i (counted over all epochs) made by `make(i)`.

    `make` is pure: it draws from a generator seeded by i (`seeded_generator`), so the number of the next batch is the
    whole state. Lightning saves it in every checkpoint and gives it back before the first batch of a resumed run.
    Each rank calls `make` with the same i and takes its `share` of what was drawn, so that two ranks with half the
    batch each see what one rank sees with the whole.

    Args:
        make: batch number → batch.
        steps: batches an epoch, the length of the loader.

    Raises:
        UserError: steps < 1.
    """

    def __init__(self, make: Callable[[int], Batch], steps: int) -> None:
        if steps < 1:
            raise UserError(f"data.epoch_steps must be at least 1 training step, got {steps}")
        self.make = make
        self.steps = steps
        self._next = 0

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        """Hand out `steps` batches from the next one on.

        Always `steps`, also after `load_state_dict` in mid-epoch: Lightning counts the batches of the interrupted
        epoch itself, and after an epoch cut short by `limit_train_batches` the next one must be whole.
        """
        for _ in range(self.steps):
            number = self._next
            self._next += 1
            yield self.make(number)

    def state_dict(self) -> dict[str, int]:
        """`{"next": number of the next batch}`."""
        return {"next": self._next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on with the batch that `state` names."""
        self._next = state["next"]


class EvaluationLoader(Generic[Batch]):
    """Samples 0 … count − 1, each on exactly one rank: rank r takes r, r + world, r + 2·world, …

    It is no `DataLoader`, so Lightning injects no sampler into it, which would repeat samples to even out the ranks.

    Args:
        make: sample number → batch.
        count: number of samples.
        rank: this process, 0 ≤ rank < world.
        world: number of processes.

    Raises:
        UserError: fewer samples than processes; a process without a sample would miss the exchange of the scores.
    """

    def __init__(self, make: Callable[[int], Batch], count: int, rank: int = 0, world: int = 1) -> None:
        if count < 1:
            raise UserError("there is no sample to evaluate")
        if count < world:
            raise UserError(
                f"{count} samples cannot be evaluated by {world} processes: set trainer.devices × trainer.num_nodes "
                f"to at most {count}"
            )
        self.make = make
        self.numbers = range(rank, count, world)

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[Batch]:
        return (self.make(number) for number in self.numbers)


def seeded_generator(seed: int, number: int, device: str | torch.device = "cpu") -> torch.Generator:
    """Make the generator of batch (or step) `number` in a run with `seed`: the same on every rank, new for each."""
    # Both numbers go through one odd multiplier, so that (0, 1) and (1, 0) do not meet; 63 bits are what torch takes.
    mixed = (seed * 0x9E3779B97F4A7C15 + number * 0xBF58476D1CE4E5B9 + 1) % (1 << 63)
    return torch.Generator(device).manual_seed(mixed)


def share(rows: Tensor, rank: int = 0, world: int = 1) -> Tensor:
    """Take this rank's rows of a batch that every rank drew whole: rank, rank + world, …

    The shares are equal, so the mean over ranks of the gradients of their mean losses is the gradient of the whole:
    `share(torch.arange(4), rank=1, world=2)` is `[1, 3]`.

    Raises:
        UserError: the rows cannot be divided evenly.
    """
    if len(rows) % world:
        raise UserError(
            f"a batch of {len(rows)} cannot be shared evenly by {world} processes; take a multiple of {world}"
        )
    return rows[rank::world]


def index_loader(count: int, batch_size: int, steps: int, seed: int, rank: int, world: int) -> StepLoader[Tensor]:
    """Endless batches of indices below `count`, drawn evenly; batch i depends on the seed and i alone.

    Args:
        count: of what is indexed.
        batch_size: indices a batch, over all processes.
        steps: batches an epoch.
        seed: of the run.
        rank, world: this process and the number of processes.
    """

    def make(number: int) -> Tensor:
        return share(torch.randint(count, (batch_size,), generator=seeded_generator(seed, number)), rank, world)

    return StepLoader(make, steps)


class RankedData(L.LightningDataModule):
    """Data that gives each process its share, and all of it where there is no Trainer.

    Attributes:
        predict: where the samples to predict are, where they come from elsewhere.
    """

    predict: str | None = None

    @property
    def only_predicts(self) -> bool:
        """Whether this is a prediction of samples from elsewhere, for which the data itself need not be there."""
        return self.predict is not None and self.trainer is not None and bool(self.trainer.predicting)

    def _ranks(self) -> tuple[int, int]:
        """Give this process's number, and how many processes there are."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)


def training_inputs(datamodule: L.LightningDataModule, count: int) -> list[Any]:
    """What the network gets in the first `count` training batches: the same on every process.

    Of a tuple or list that is its first item, of a mapping its first floating-point tensor, after the data's own
    `on_after_batch_transfer`.

    Raises:
        UserError: a mapping without such a tensor.
    """
    trainer = datamodule.trainer
    if isinstance(datamodule, RankedData):
        datamodule.trainer = None  # without it a batch is whole, and no rank's share
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # a shuffling loader must choose the same everywhere, and training its own order
            batches = list(islice(datamodule.train_dataloader(), count))
        return [_input(datamodule.on_after_batch_transfer(batch, 0)) for batch in batches]
    finally:
        datamodule.trainer = trainer


def _input(batch: Any) -> Any:
    if isinstance(batch, Mapping):
        for value in batch.values():
            if isinstance(value, Tensor) and value.is_floating_point():
                return value
        raise UserError(f"a batch of training data has no floating-point tensor among {', '.join(map(str, batch))}")
    return batch[0] if isinstance(batch, tuple | list) else batch

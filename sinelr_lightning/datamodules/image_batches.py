"""Images as batches: each one a pure function of its number, made here or in worker processes."""

import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from threading import Thread
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sinelr_lightning.datamodules.augmentation import seeded
from sinelr_lightning.datamodules.loaders import EvaluationLoader, StepLoader, seeded_generator, share
from sinelr_lightning.errors import UserError

__all__ = [
    "Batch",
    "EvaluationBatches",
    "ImageEvaluationLoader",
    "ImageStepLoader",
    "Source",
    "TrainingBatches",
    "Workers",
]

Batch = dict[str, Any]
Transform = Callable[[Image.Image], Tensor]


class Source(Protocol):
    """Numbered images; one that survives pickling, for worker processes."""

    def __len__(self) -> int:
        """Number of images."""
        ...

    def read(self, index: int) -> tuple[Image.Image, int | None]:
        """Give the image in RGB and the number of its class, None where that is not known."""
        ...


def stack(read: Callable[[int], tuple[Tensor, int | None]], indices: Iterable[int], skip: bool) -> Batch:
    """Bring images together: `images` uint8 [B, 3, S, S], `labels` [B] where known, `indices` [B], `skipped`.

    Raises:
        UserError: an image cannot be read; with `skip`, its line goes into `skipped` and its row is left out.
    """
    images, labels, done, skipped = [], [], [], []
    for index in indices:
        try:
            image, label = read(index)
        except UserError as error:
            if not skip:
                raise
            skipped.append(str(error))
            continue
        images.append(image)
        labels += [] if label is None else [label]
        done.append(index)
    batch: Batch = {"indices": torch.tensor(done), "skipped": skipped}
    if images:
        batch["images"] = torch.stack(images)
    if labels:
        batch["labels"] = torch.tensor(labels)
    return batch


@dataclass(frozen=True)
class TrainingBatches:
    """Step → batch. An epoch of the data is a fresh permutation of all images, less the last partial batch.

    The permutation follows from (seed, epoch), the random changes of an image from (seed, epoch, index): neither
    depends on the number of workers or ranks. `step` in the batch tells the mixing which one it is.
    """

    source: Source
    transform: Transform
    batch_size: int  # over all ranks
    seed: int
    rank: int = 0
    world: int = 1
    skip: bool = False

    @property
    def epoch_steps(self) -> int:
        """Batches in one pass over the data."""
        return len(self.source) // self.batch_size

    def __call__(self, step: int) -> Batch:
        """Make the batch of this step, or this rank's share of it.

        Raises:
            UserError: an unreadable image, or with `skip` a batch of nothing else.
        """
        epoch, position = divmod(step, self.epoch_steps)
        order = _permutation(self.seed, epoch, len(self.source))
        drawn = share(order[position * self.batch_size :][: self.batch_size], self.rank, self.world)
        batch = stack(partial(self._read, epoch), drawn.tolist(), self.skip)
        if "images" not in batch:
            raise UserError(f"no image of a whole batch can be read; the first: {batch['skipped'][0]}")
        return {**batch, "step": step}

    def _read(self, epoch: int, index: int) -> tuple[Tensor, int | None]:
        image, label = self.source.read(index)
        with seeded(self.seed, epoch * len(self.source) + index):
            return self.transform(image), label


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, count: int) -> Tensor:
    # Numbers below zero, where no image's own stream lies.
    return torch.randperm(count, generator=seeded_generator(seed, -1 - epoch))


@dataclass(frozen=True)
class EvaluationBatches:
    """Indices → batch of images without random changes, and with `path_of` their `paths`."""

    source: Source
    transform: Transform
    skip: bool = False
    path_of: Callable[[int], Path] | None = None

    def __call__(self, indices: Sequence[int]) -> Batch:
        """Make the batch of these images.

        Raises:
            UserError: an image that cannot be read, unless `skip`.
        """
        batch = stack(self._read, indices, self.skip)
        if self.path_of is not None:
            batch["paths"] = [str(self.path_of(index)) for index in batch["indices"].tolist()]
        return batch

    def _read(self, index: int) -> tuple[Tensor, int | None]:
        image, label = self.source.read(index)
        return self.transform(image), label


@dataclass(frozen=True)
class Workers:
    """Who makes batches, and who hears of unreadable images.

    Args:
        count: worker processes, 0 to make the batches here.
        pin: put them into page-locked memory, for copies to a GPU.
        report: takes the lines of what was skipped.
    """

    count: int = 0
    pin: bool = False
    report: Callable[[list[str]], None] = lambda lines: None

    def run(self, make: Callable[[Any], Batch], numbers: Sequence[Any]) -> Iterator[Batch]:
        """Give `make(number)` for each number, in order.

        Raises:
            UserError: what `make` raises, in a worker too as the one line it is.
        """
        for batch in self._loader(make, numbers) if self.count else map(make, numbers):
            if isinstance(batch, UserError):
                raise batch
            skipped = batch.pop("skipped")
            if skipped:
                self.report(skipped)
            yield batch

    def _loader(self, make: Callable[[Any], Batch], numbers: Sequence[Any]) -> DataLoader:
        return DataLoader(
            _Made(make),
            sampler=numbers,
            batch_size=None,
            num_workers=self.count,
            pin_memory=self.pin,
            worker_init_fn=_leave_signals,
            # Without its own, a DataLoader draws from the global generator, and the run would depend on the workers.
            generator=torch.Generator(),
        )


class _Made(Dataset):
    """What a worker runs: a user's mistake travels as a value, for torch would wrap a traceback around it."""

    def __init__(self, make: Callable[[Any], Batch]) -> None:
        self.make = make

    def __getitem__(self, index: Any) -> Batch | UserError:
        try:
            return self.make(index)
        except UserError as error:
            return error


def _leave_signals(worker: int) -> None:
    """Leave Ctrl-C and SLURM's signals, which reach the whole group, to the main process.

    A run that wants to finish its step would find its workers gone, or its own handlers, which a fork inherits,
    called once in each of them. SIGTERM from the parent is how multiprocessing ends a worker, and still does.
    """
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = os.getppid()
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


class ImageStepLoader(StepLoader[Batch]):
    """A `StepLoader` whose batches may be made by workers. What they prepared ahead is not part of the state."""

    def __init__(self, make: Callable[[int], Batch], steps: int, workers: Workers) -> None:
        super().__init__(make, steps)
        self.workers = workers

    def __iter__(self) -> Iterator[Batch]:
        """Hand out `steps` batches from the next one on."""
        for batch in self.workers.run(self.make, range(self._next, self._next + self.steps)):
            self._next += 1
            yield batch


class ImageEvaluationLoader(EvaluationLoader[Batch]):
    """An `EvaluationLoader` with `size` samples a batch: rank r takes the samples r, r + world, … in turn.

    A batch without one readable image is left out.
    """

    def __init__(self, make: EvaluationBatches, size: int, workers: Workers, rank: int = 0, world: int = 1) -> None:
        super().__init__(lambda number: make([number]), len(make.source), rank, world)
        self.batches, self.size, self.workers = make, size, workers

    def __len__(self) -> int:
        return -(-len(self.numbers) // self.size)

    def __iter__(self) -> Iterator[Batch]:
        pieces = [self.numbers[begin : begin + self.size] for begin in range(0, len(self.numbers), self.size)]
        return (batch for batch in self.workers.run(self.batches, pieces) if "images" in batch)

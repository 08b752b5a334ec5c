"""Tables with a column to predict."""

import logging
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sinelr_lightning.datamodules.csv_table import Encoding, Kind, Rows, read_rows
from sinelr_lightning.datamodules.loaders import EvaluationLoader, RankedData, StepLoader, index_loader
from sinelr_lightning.errors import UserError

__all__ = ["TableData"]

log = logging.getLogger(__name__)

Batch = dict[str, Tensor]


class TableData(RankedData):
    """The rows of a CSV file, or of a table that comes with scikit-learn: no download.

    A batch holds `x`, float32 [B, F], as it is written (the task standardises), and `y`, int64 [B] labels or float32
    [B] numbers; held-out batches also `indices`, int64 [B]. Rows to predict from another file have no `y`.

    Args:
        table: CSV file with a header, or breast_cancer, diabetes, iris or wine.
        target: name of the column to predict; null for the last one.
        kind: whether that is a class or a number; auto takes words, and up to 20 whole numbers, for classes.
        validation_share, test_share: of the rows, drawn with seed 0, of each class alike.
        batch_size: rows a step, over all processes.
        epoch_steps: steps between two validations; null for as many as one pass over the training rows has.
        predict: CSV file of rows for `sinelr predict`, with or without the target; null for the test rows.

    Raises:
        UserError: a value out of its range; from `setup`, what is wrong with the file, by line.
    """

    def __init__(
        self,
        table: str = "breast_cancer",
        target: str | None = None,
        kind: Kind = "auto",
        validation_share: float = 0.2,
        test_share: float = 0.2,
        batch_size: int = 32,
        epoch_steps: int | None = None,
        predict: str | None = None,
    ) -> None:
        super().__init__()
        if kind not in ("auto", "class", "number"):
            raise UserError(f"data.kind is {kind!r}; auto, class and number are accepted")
        if batch_size < 1:
            raise UserError(f"data.batch_size must be at least 1, got {batch_size}")
        if epoch_steps is not None and epoch_steps < 1:
            raise UserError(f"data.epoch_steps must be at least 1, or null for one pass, got {epoch_steps}")
        if not (validation_share > 0 and test_share > 0 and validation_share + test_share < 1):
            raise UserError(
                "data.validation_share and data.test_share must be positive and leave rows to train on, got "
                f"{validation_share} and {test_share}"
            )
        self.table, self.target, self.kind = table, target, kind
        self.shares = validation_share, test_share
        self.batch_size, self.epoch_steps, self.predict = batch_size, epoch_steps, predict
        self.encoding: Encoding | None = None
        self.parts: dict[str, Batch] = {}
        self._seed = 0

    def setup(self, stage: str | None = None) -> None:
        """Read the table and divide its rows.

        Raises:
            UserError: what is wrong with it, by line, or a part that would have no row.
        """
        self._seed = torch.initial_seed()
        if self.only_predicts or self.parts:
            return
        rows = read_rows(self.table)
        encoding = self.encoding = Encoding.of(rows, self.target, self.kind)
        x, y = torch.from_numpy(encoding.encode(rows)), torch.from_numpy(encoding.targets(rows))
        for name, chosen in zip(
            ("train", "val", "test"), self._divided(y.numpy(), bool(encoding.classes)), strict=True
        ):
            if not len(chosen):
                raise UserError(f"{self.table}: {len(y)} rows leave none for {name}: take more, or other shares")
            self.parts[name] = {"x": x[chosen], "y": y[chosen], "indices": torch.from_numpy(chosen)}
        what = f"{len(encoding.classes)} classes" if encoding.classes else "a number"
        log.info("%s: %d rows of %d features, %s to predict", self.table, len(x), x.shape[1], what)

    def _divided(self, y: np.ndarray, by_class: bool) -> list[np.ndarray]:
        """Numbers of the rows of each part."""
        random = np.random.RandomState(0)  # its streams never change, unlike those of default_rng
        groups = [np.flatnonzero(y == label) for label in np.unique(y)] if by_class else [np.arange(len(y))]
        parts: list[list[np.ndarray]] = [[], [], []]
        for group in groups:
            val, test = (round(share * len(group)) for share in self.shares)
            pieces = np.split(random.permutation(group), [len(group) - val - test, len(group) - test])
            for part, piece in zip(parts, pieces, strict=True):
                part.append(piece)
        return [np.sort(np.concatenate(part)) for part in parts]

    def encode_like(self, encoding: Encoding) -> None:
        """Make features of the rows to predict as a checkpoint's table had them."""
        self.encoding = encoding

    # -- loaders -----------------------------------------------------------------------------------------------------
    def train_dataloader(self) -> StepLoader[Batch]:
        """Batches of rows drawn evenly; batch i depends on the seed and i alone."""
        train = self.parts["train"]
        count = len(train["x"])
        steps = self.epoch_steps or -(-count // self.batch_size)
        numbers = index_loader(count, self.batch_size, steps, self._seed, *self._ranks())

        def make(number: int) -> Batch:
            chosen = numbers.make(number)
            return {"x": train["x"][chosen], "y": train["y"][chosen]}

        return StepLoader(make, steps)

    def val_dataloader(self) -> EvaluationLoader[Batch]:
        """The validation rows, each once."""
        return self._held_out(self.parts["val"])

    def test_dataloader(self) -> EvaluationLoader[Batch]:
        """The test rows, each once."""
        return self._held_out(self.parts["test"])

    def predict_dataloader(self) -> EvaluationLoader[Batch]:
        """The rows of `predict`, numbered by their lines, else the test rows."""
        if self.predict is None:
            return self.test_dataloader()
        if self.encoding is None:
            raise UserError("data.predict needs a checkpoint, which knows the columns: give --ckpt_path")
        rows: Rows = read_rows(self.predict)
        x = torch.from_numpy(self.encoding.encode(rows))
        return self._held_out({"x": x, "indices": torch.tensor(rows.lines)})

    def _held_out(self, part: Batch) -> EvaluationLoader[Batch]:
        rank, world = self._ranks()
        # At least one batch for each process, if there are rows enough.
        size = max(1, min(self.batch_size, len(part["x"]) // world))
        batches = [
            {name: value[i : i + size] for name, value in part.items()} for i in range(0, len(part["x"]), size)
        ]
        return EvaluationLoader(batches.__getitem__, len(batches), rank, world)

    def protocol(self) -> dict[str, Any]:
        """How the figures of this data were measured, for metrics.json."""
        assert self.encoding is not None
        counts = {f"{name}_rows": len(part["x"]) for name, part in self.parts.items()}
        return {"table": self.table, "target": self.encoding.target, **counts}

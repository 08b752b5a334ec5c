"""Classes or numbers from the rows of a table."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from sinelr_lightning.datamodules.csv_table import Encoding
from sinelr_lightning.datamodules.table import TableData
from sinelr_lightning.errors import UserError
from sinelr_lightning.layers import LinearFactory, SineLowRank
from sinelr_lightning.models.mlp import MLP
from sinelr_lightning.tasks.base import ExportParts, Task
from sinelr_lightning.tasks.schedule import Schedule

__all__ = ["TabularTask"]


class TabularTask(Task):
    """A multilayer perceptron that predicts a column of a table, its hidden layers from `linear`.

    Classes: loss is cross-entropy, scores are `loss` and accuracy, `acc`. A number: the loss is the squared error in
    standard deviations of the training rows, scores are `loss`, the root of the mean squared error in the column's
    own unit, `rmse`, and the coefficient of determination 1 − Σ(y − ŷ)²/Σ(y − ȳ)², `r2`, where the y differ. The
    network standardises its features by the training rows'.

    Args:
        features: number of features: columns of numbers, and a feature for each word of a column of words.
        classes: number of classes; 0 where the target is a number.
        linear: factory of the hidden layers; the first layer and the head stay dense.
        depth, width, dropout: of the network, see `models.MLP`.
        optimizer, schedule, weight_decay: see `Task`.

    Raises:
        UserError: a value out of its range; from `setup`, a table with other features or classes, or weights in half
            precision, which would round the features and what is to be predicted.
    """

    def __init__(
        self,
        features: int = 30,
        classes: int = 2,
        linear: LinearFactory = SineLowRank(rank=4),  # noqa: B008 (frozen)
        depth: int = 2,
        width: int = 256,
        dropout: float = 0.0,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
        schedule: Schedule = Schedule("cosine", warmup=50, final=0.01),  # noqa: B008 (frozen)
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(optimizer, schedule, weight_decay)
        if features < 1 or depth < 1 or width < 2:
            raise UserError(
                f"features and depth must be at least 1 and width at least 2, got {features}, {depth} and {width}"
            )
        if classes < 0 or classes == 1:
            raise UserError(f"model.classes must be at least 2, or 0 for a number, got {classes}")
        if not 0 <= dropout < 1:
            raise UserError(f"model.dropout must be in [0, 1), got {dropout}")
        self.features, self.classes = features, classes
        self.network = MLP(features, classes or 1, linear, depth, width, dropout)
        self.encoding: Encoding | None = None
        self._rows: list[list[Any]] = []

    # -- the table's form, which a checkpoint carries ----------------------------------------------------------------
    def setup(self, stage: str) -> None:
        """Take the form of the table, and standardise by its training rows if none were seen before.

        Raises:
            UserError: it has other features or classes, or the weights are in half precision.
        """
        data = self.data(TableData)
        if str(self.trainer.precision) in ("16-true", "bf16-true"):
            raise UserError(f"trainer.precision {self.trainer.precision} rounds a table's numbers: take bf16-mixed")
        if data.only_predicts:
            return  # the checkpoint knows the form
        assert data.encoding is not None
        fresh = self.encoding is None
        self._take(data.encoding)
        if fresh:
            train = data.parts["train"]
            self.network.standardise(train["x"], None if self.classes else train["y"][:, None])

    def _take(self, encoding: Encoding) -> None:
        if self.encoding is not None and self.encoding != encoding:
            raise UserError(
                f"the table is not the checkpoint's; they differ in {_difference(self.encoding, encoding)}"
            )
        for name, here, there in (
            ("features", self.features, len(encoding.features)),
            ("classes", self.classes, len(encoding.classes)),
        ):
            if here != there:
                raise UserError(f"the table has {there} {name}, the model {here}: set model.{name} to {there}")
        self.encoding = encoding

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the form of the table, so that prediction and export need no table."""
        assert self.encoding is not None
        checkpoint["encoding"] = self.encoding.plain()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the form back.

        Raises:
            UserError: the table at hand has another one.
        """
        super().on_load_checkpoint(checkpoint)
        self._take(Encoding.from_plain(checkpoint["encoding"]))
        if self._trainer is not None and self.data(TableData).only_predicts:
            assert self.encoding is not None
            self.data(TableData).encode_like(self.encoding)

    # -- training and evaluation -------------------------------------------------------------------------------------
    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, classes], or numbers [B, 1], of rows [B, features]."""
        return self.network(x)

    def _losses(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The loss of each row, [B]."""
        if self.classes:
            return F.cross_entropy(outputs.float(), y, reduction="none")
        return ((outputs.float()[:, 0] - y) / self.network.out_scale).square()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Mean loss over the batch."""
        return self._losses(self(batch["x"]), batch["y"]).mean()

    def score_samples(self, batch: dict[str, Tensor], stage: str) -> None:
        """Note loss, target and guess of each row."""
        outputs = self(batch["x"])
        guesses = outputs.argmax(1) if self.classes else outputs[:, 0]
        columns = (self._losses(outputs, batch["y"]), batch["y"], guesses)
        table = torch.stack([column.double() for column in columns], 1).tolist()
        for number, (loss, target, guess) in zip(batch["indices"].tolist(), table, strict=True):
            self.score(stage, number, loss=loss, target=target, guess=guess)

    def combine(self, samples: dict[int, dict[str, float]]) -> dict[str, float]:
        """Figures over all rows, each counted once."""
        rows = [[s["loss"], s["target"], s["guess"]] for s in samples.values()]
        loss, target, guess = torch.tensor(rows, dtype=torch.float64).unbind(1)
        if self.classes:
            return {"loss": loss.mean().item(), "acc": (target == guess).double().mean().item()}
        error, spread = (target - guess).square(), (target - target.mean()).square().sum()
        figures = {"loss": loss.mean().item(), "rmse": error.mean().sqrt().item()}
        return figures if spread == 0 else {**figures, "r2": 1 - (error.sum() / spread).item()}

    def details(self, stage: str) -> dict[str, Any]:
        """The number of rows."""
        return {"rows": len(self.scores.get(stage, {}))}

    # -- prediction --------------------------------------------------------------------------------------------------
    def on_predict_start(self) -> None:
        """Begin with none."""
        self._rows = []

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Note number and prediction of each row; a file's rows are numbered by its lines."""
        outputs, numbers = self(batch["x"]).float(), batch["indices"].tolist()
        if not self.classes:
            values = outputs[:, 0].tolist()
            self._rows += [[number, f"{value:.6g}"] for number, value in zip(numbers, values, strict=True)]
            return
        assert self.encoding is not None
        shares, guesses = outputs.softmax(1).max(1)
        for number, guess, share in zip(numbers, guesses.tolist(), shares.tolist(), strict=True):
            self._rows.append([number, self.encoding.classes[guess], f"{share:.6f}"])

    def on_predict_epoch_end(self) -> None:
        """Write the rows of all processes, in their order, as one CSV."""
        assert self.encoding is not None
        head = ["row", self.encoding.target, *(["probability"] if self.classes else [])]
        self.write_predictions(head, self._rows, "rows")

    # -- what is said about the run ----------------------------------------------------------------------------------
    def protocol(self) -> dict[str, Any]:
        """How the rows were read."""
        return self.data(TableData).protocol()

    def export_parts(self) -> ExportParts:
        """The network, rows [N, features] → logits or numbers, with the names of features and classes."""
        assert self.encoding is not None
        what = f"logits [N, {self.classes}]" if self.classes else f"[N, 1], {self.encoding.target} in its own unit"
        metadata = {
            "input": f"rows [N, {self.features}] of the features, as the table has them; column=word is 1 or 0",
            "output": what,
            "features": self.encoding.features,
            "class_names": list(self.encoding.classes),
        }
        noise = torch.randn(7, self.features, generator=torch.Generator().manual_seed(0))
        return ExportParts(self.network, noise * self.network.scale.cpu() + self.network.mean.cpu(), metadata)

    def closing_lines(self, run: Path) -> list[str]:
        """Commands that use the network."""
        return [f"sinelr test --ckpt_path {run}", f"sinelr predict --ckpt_path {run} --data.predict FILE.csv"]


def _difference(one: Encoding, other: Encoding) -> str:
    """Where two forms differ."""
    if one.target != other.target:
        return f"the target, {one.target} and {other.target}"
    if one.classes != other.classes:
        return f"the classes, {', '.join(sorted(set(one.classes) ^ set(other.classes))[:5])}"
    return ", ".join(sorted(set(one.features) ^ set(other.features))[:5]) or "the order of their columns"

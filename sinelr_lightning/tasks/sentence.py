"""Classification of sentences and of pairs of them, as in GLUE."""

from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.classification import multiclass_f1_score, multiclass_matthews_corrcoef

from sinelr_lightning.datamodules.sentences import SentenceData
from sinelr_lightning.errors import UserError
from sinelr_lightning.tasks.adapted import AdaptedTask

__all__ = ["SentenceTask"]


class SentenceTask(AdaptedTask):
    """Classifies sentences by a language model with an adapter and a head that is trained whole.

    Figures are `loss` (nats a sample), `acc`, `f1` (mean over the classes) and `mcc` (Matthews' correlation).

    Args:
        classes: number of classes; those of the data.
        adapted: as in `AdaptedTask`.

    Raises:
        UserError: the data has another number of classes, or what `AdaptedTask` refuses.
    """

    model_class: ClassVar[str] = "AutoModelForSequenceClassification"
    task_type: ClassVar[str] = "SEQ_CLS"
    heads: ClassVar[tuple[str, ...]] = ("classifier", "score")
    monitor: ClassVar[str] = "val/acc"
    mode: ClassVar[Literal["min", "max"]] = "max"

    def __init__(self, classes: int = 2, **adapted: Any) -> None:
        super().__init__(**adapted)
        self.classes = classes
        self.class_names: list[str] = []

    def model_options(self) -> dict[str, Any]:
        """The number of outputs."""
        return {"num_labels": self.hparams["classes"]}

    def setup(self, stage: str) -> None:
        """Have the data cut into tokens, and take the names of its classes.

        Raises:
            UserError: it has another number of classes.
        """
        data = self.data(SentenceData)
        self.read(data)
        if len(data.class_names) != self.classes:
            raise UserError(
                f"the data has {len(data.class_names)} classes, the model {self.classes}: set model.classes"
            )
        self._take_class_names(list(data.class_names))

    def _take_class_names(self, names: list[str]) -> None:
        """Note the names, in the order of the outputs; a checkpoint and the data must agree.

        Raises:
            UserError: they do not.
        """
        if self.class_names and self.class_names != names:
            raise UserError(
                f"the checkpoint and the data name the classes otherwise: {', '.join(self.class_names)} and "
                f"{', '.join(names)}"
            )
        self.class_names = names

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the names of the classes."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["classes"] = {"names": self.class_names}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the names of the classes back."""
        super().on_load_checkpoint(checkpoint)
        self._take_class_names(checkpoint["classes"]["names"])

    # -- training and evaluation -------------------------------------------------------------------------------------
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """Logits [B, classes]."""
        inputs = {
            name: batch[name] for name in ("input_ids", "token_type_ids") if name in batch
        }  # the latter of pairs
        return self.network(**inputs, attention_mask=(batch["segments"] > 0).long()).logits

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Mean loss over the batch."""
        return F.cross_entropy(self(batch).float(), batch["labels"])

    def score_samples(self, batch: dict[str, Tensor], stage: str) -> None:
        """Note loss and guess of each sample."""
        logits, labels = self(batch).float(), batch["labels"]
        losses = F.cross_entropy(logits, labels, reduction="none")
        table = torch.stack([losses.double(), labels.double(), logits.argmax(1).double()], 1).tolist()
        for number, (loss, label, guess) in zip(batch["indices"].tolist(), table, strict=True):
            self.score(stage, number, loss=loss, label=label, guess=guess)

    def combine(self, samples: dict[int, dict[str, float]]) -> dict[str, float]:
        """Figures over all samples, each counted once."""
        if not samples:
            raise UserError("the evaluation has no sample")
        rows = [[s["loss"], s["label"], s["guess"]] for s in samples.values()]
        loss, label, guess = torch.tensor(rows, dtype=torch.float64).unbind(1)
        label, guess = label.long(), guess.long()
        return {
            "loss": loss.mean().item(),
            "acc": (label == guess).double().mean().item(),
            "f1": multiclass_f1_score(guess, label, self.classes, average="macro").item(),
            "mcc": multiclass_matthews_corrcoef(guess, label, self.classes).item(),
        }

    def details(self, stage: str) -> dict[str, Any]:
        """The number of samples."""
        return {"samples": len(self.scores.get(stage, {}))}

    # -- what is said about the run ----------------------------------------------------------------------------------
    def protocol(self) -> dict[str, Any]:
        """The base, and how the data were read."""
        return {**super().protocol(), **self.data(SentenceData).protocol()}

    def closing_lines(self, run: Path) -> list[str]:
        """Commands that use the classifier."""
        return [f"sinelr test --ckpt_path {run}", *super().closing_lines(run)]

"""Image classification: any network by name, with the weights that patterns choose in factorized form."""

import logging
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torchmetrics.functional.classification import binary_calibration_error, multiclass_confusion_matrix

from sinelr_lightning.datamodules.image_data import ImageData
from sinelr_lightning.datamodules.loaders import training_inputs
from sinelr_lightning.errors import UserError, first_line
from sinelr_lightning.layers import Conversion, Dense, LinearFactory, SineLowRank, convert
from sinelr_lightning.layers.evaluation import evaluating
from sinelr_lightning.models.networks import image_network
from sinelr_lightning.progress import progress_bar
from sinelr_lightning.rendering import confusion_picture
from sinelr_lightning.tasks.base import ExportParts, Task
from sinelr_lightning.tasks.schedule import Schedule

__all__ = ["ClassificationTask"]

CALIBRATION_BINS = 15

log = logging.getLogger(__name__)


class ClassificationTask(Task):
    """A network that names the class of an image, converted by `linear` where `include` says (Ji et al. 2025, §4.1).

    Loss: cross-entropy. Scores over all samples: accuracy of the first and the first five guesses (`acc1`, `acc5`),
    loss, and expected calibration error (`ece`, Guo et al. 2017, eq. 3, 15 bins); accuracy by class and the confusion
    matrix in metrics.json and TensorBoard.

    Args:
        network: `vit` for our compact one, a classification model of torchvision, or `timm/NAME`.
        network_args: arguments of the network's constructor, such as image_size, patch_size, width, depth.
        pretrained: start from the library's trained weights.
        classes: number of classes.
        linear: factory of the layers that are converted.
        include, exclude: patterns over the names of layers; feed-forward layers by default, as in the paper.
        ranks: pattern → rank, for layers with one of their own.
        init: draw the converted layers "fresh", or "fit" them to the pretrained weights.
        budget: share of the dense network's parameters, from which each layer's rank is chosen (`layers.budget`).
        calibration_batches: training batches over which a fit and a budget measure what the layers give out; 0 goes
            by the weights alone.
        label_smoothing: share of the target that is spread over all classes.
        top5: predict names the first five guesses.
        optimizer, schedule, weight_decay: see `Task`.
    """

    monitor: ClassVar[str] = "val/acc1"
    mode: ClassVar[Literal["min", "max"]] = "max"

    def __init__(
        self,
        network: str = "vit",
        network_args: dict[str, Any] | None = None,
        pretrained: bool = False,
        classes: int = 10,
        linear: LinearFactory = SineLowRank(rank=8),  # noqa: B008 (frozen)
        include: list[str] = ["*.mlp.*"],  # noqa: B006 (never changed)
        exclude: list[str] = [],  # noqa: B006 (never changed)
        ranks: dict[str, int] = {},  # noqa: B006 (never changed)
        init: Literal["fresh", "fit"] = "fresh",
        budget: float | None = None,
        calibration_batches: int = 0,
        label_smoothing: float = 0.0,
        top5: bool = False,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
        schedule: Schedule = Schedule("cosine", warmup=100, final=0.01),  # noqa: B008 (frozen)
        weight_decay: float = 0.05,
    ) -> None:
        super().__init__(optimizer, schedule, weight_decay)
        if classes < 2:
            raise UserError(f"model.classes must be at least 2, got {classes}")
        if not 0 <= label_smoothing < 1:
            raise UserError(f"model.label_smoothing must be in [0, 1), got {label_smoothing}")
        if not pretrained and (init == "fit" or budget is not None):
            raise UserError("model.init fit and model.budget need trained weights: set model.pretrained to true")
        if budget is not None and ranks:
            raise UserError("model.budget chooses all ranks: set it or model.ranks, not both")
        if calibration_batches < 0:
            raise UserError(f"model.calibration_batches must not be negative, got {calibration_batches}")
        self._network_arguments: dict[str, Any] = {"name": network, "classes": classes, "arguments": network_args}
        self._conversion: dict[str, Any] = {"factory": linear, "include": include, "exclude": exclude}
        self.ranks, self.budget, self.calibration_batches = ranks, budget, calibration_batches
        self.classes, self.pretrained, self.init = classes, pretrained, init
        self.label_smoothing, self.top5 = label_smoothing, top5
        self.network = self._make()
        self.class_names: list[str] = [str(number) for number in range(classes)]
        self.preprocessing: dict[str, Any] = {}
        self._wants_trained = pretrained  # weights, until they are here or others have come
        self._data_names: list[str] = []
        self._rows: list[list[Any]] = []

    def _make(self, *, trained: bool = False) -> nn.Module:
        """The network, fresh or with the library's weights, converted; with what stays dense in the log."""
        try:
            network = image_network(pretrained=trained, of_trained=self.pretrained, **self._network_arguments)
            if isinstance(self._conversion["factory"], Dense):
                return network  # as its library begins it
            conversion = self._convert_trained(network) if trained else self._convert_fresh(network)
        except (ValueError, ModuleNotFoundError) as error:
            raise UserError(str(error)) from error
        except (OSError, RuntimeError, pickle.UnpicklingError) as error:
            if not trained:
                raise
            raise UserError(
                f"the trained weights of {self._network_arguments['name']} cannot be had ({first_line(error)}); put "
                f"them into {torch.hub.get_dir()}/checkpoints, or set model.pretrained to false"
            ) from error
        log.info("%s", conversion)
        return network

    def _convert_fresh(self, network: nn.Module) -> Conversion:
        # A checkpoint brings the ranks that a budget chose; all that such layers need is to be there.
        return convert(network, ranks=self.ranks if self.budget is None else {"*": 1}, **self._conversion)

    def _convert_trained(self, network: nn.Module) -> Conversion:
        device = self.trainer.strategy.root_device
        network.to(device)  # a fit of a large layer takes a minute on a CPU
        calibration = None
        if self.calibration_batches and (self.init == "fit" or self.budget is not None):
            inputs = training_inputs(self.data(ImageData), self.calibration_batches)
            calibration = [images.to(device) for images in inputs]
        with progress_bar(self.init == "fit" and self.trainer.is_global_zero) as show:
            return convert(
                network, init=self.init, ranks=self.ranks, budget=self.budget, calibration=calibration, progress=show,
                **self._conversion,
            )  # fmt: skip

    # -- the classes, which a checkpoint carries ------------------------------------------------------------------
    def setup(self, stage: str) -> None:
        """Take names and preprocessing from the data, and the trained weights where a run begins with them.

        Raises:
            UserError: the data has other classes than the model, or images of a size that the network does not take.
        """
        data = self.data(ImageData)
        names = list(data.class_names)
        if names and len(names) != self.classes:
            raise UserError(f"the data has {len(names)} classes, the model {self.classes}: set model.classes")
        if self._wants_trained and not self.from_checkpoint:
            self.network, self._wants_trained = self._make(trained=True), False
        if not data.only_predicts:
            self._check_size(data.preprocessing()["image_size"])
        # An images-only prediction knows no classes; the checkpoint does.
        self._data_names = names
        self.class_names, self.preprocessing = names or self.class_names, data.preprocessing()

    def _check_size(self, side: int) -> None:
        """Let one black image through, before anything is trained."""
        try:
            with evaluating(self.network), torch.no_grad():
                device = next(self.network.parameters()).device
                self.network(torch.zeros(1, 3, side, side, device=device))
        except (RuntimeError, AssertionError, ValueError) as error:
            name = self._network_arguments["name"]
            raise UserError(
                f"the network {name} does not take images [3, {side}, {side}] ({first_line(error)}): set "
                "model.network_args or data.image_size"
            ) from error

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store names and preprocessing, so that prediction and export need neither data nor flags."""
        checkpoint["classes"] = {"names": self.class_names, "preprocessing": self.preprocessing}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take names and preprocessing back.

        Raises:
            UserError: the data at hand has other classes.
        """
        super().on_load_checkpoint(checkpoint)
        self._wants_trained = False
        names, preprocessing = checkpoint["classes"]["names"], checkpoint["classes"]["preprocessing"]
        if self._data_names and self._data_names != names:
            differ = sorted(set(self._data_names) ^ set(names))[:5] or ["their order"]
            raise UserError(f"the checkpoint has other classes than the data; they differ in {', '.join(differ)}")
        self.class_names, self.preprocessing = names, preprocessing
        if self._trainer is not None and self.data(ImageData).only_predicts:
            self.data(ImageData).prepare_like(preprocessing)

    # -- training and evaluation ----------------------------------------------------------------------------------
    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, classes] of images [B, C, H, W]."""
        return self.network(images)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Loss of one batch; labels are numbers [B], or shares [B, classes] where images are mixed."""
        return F.cross_entropy(self.network(batch["images"]), batch["labels"], label_smoothing=self.label_smoothing)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Score one batch of the validation images."""
        self._score_images(batch, "val")

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Score one batch of the test images."""
        self._score_images(batch, "test")

    def _score_images(self, batch: dict[str, Any], stage: str) -> None:
        logits = self.network(batch["images"]).float()
        labels = batch["labels"]
        guesses = logits.topk(min(5, self.classes)).indices
        columns = {
            "acc1": guesses[:, 0] == labels,
            "acc5": (guesses == labels[:, None]).any(1),
            "loss": F.cross_entropy(logits, labels, reduction="none"),
            "confidence": logits.softmax(1).amax(1),
            "label": labels,
            "guess": guesses[:, 0],
        }
        rows = torch.stack([column.double() for column in columns.values()], 1).tolist()
        for number, row in zip(batch["indices"].tolist(), rows, strict=True):
            self.score(stage, number, **dict(zip(columns, row, strict=True)))

    def combine(self, samples: dict[int, dict[str, float]]) -> dict[str, float]:
        """Accuracies, loss and calibration error over all images, each counted once on however many processes."""
        if not samples:
            raise UserError("no image of the evaluation could be read")
        columns = {name: _column(samples, name) for name in ("acc1", "acc5", "loss", "confidence")}
        means = {name: columns[name].mean().item() for name in ("acc1", "acc5", "loss")}
        correct = columns["acc1"].long()
        ece = binary_calibration_error(columns["confidence"], correct, n_bins=CALIBRATION_BINS, norm="l1")
        return {**means, "ece": ece.item()}

    def confusion(self, stage: str) -> Tensor:
        """Counts [classes, classes] of the last evaluation: row true class, column first guess."""
        samples = self.scores[stage]
        return multiclass_confusion_matrix(
            _column(samples, "guess").long(), _column(samples, "label").long(), self.classes
        )

    def on_validation_epoch_end(self) -> None:
        """Log the figures, and show the confusion matrix."""
        super().on_validation_epoch_end()
        self._show_confusion("val")

    def on_test_epoch_end(self) -> None:
        """Log the figures, and show the confusion matrix."""
        super().on_test_epoch_end()
        self._show_confusion("test")

    def _show_confusion(self, stage: str) -> None:
        board = self.board("add_image")
        if board is not None and self.trainer.is_global_zero:
            picture = confusion_picture(self.confusion(stage), self.class_names)
            tag = f"{stage}/confusion, row true, column guessed"
            board.add_image(tag, picture, self.global_step, dataformats="HWC")

    def details(self, stage: str) -> dict[str, Any]:
        """Accuracy by class with the number of its images, and the confusion matrix of up to 100 classes."""
        if not self.scores.get(stage):
            return {}
        matrix = self.confusion(stage)
        counts, correct = matrix.sum(1).tolist(), matrix.diagonal().tolist()
        by_class = {
            # ImageNet has two classes of one name.
            name if self.class_names.count(name) == 1 else f"{name} ({number})": {
                "acc1": right / count if count else None, "images": count,
            }
            for number, (name, right, count) in enumerate(zip(self.class_names, correct, counts, strict=True))
        }  # fmt: skip
        return {"classes": by_class, **({"confusion": matrix.tolist()} if self.classes <= 100 else {})}

    # -- prediction -------------------------------------------------------------------------------------------------
    def on_predict_start(self) -> None:
        """Begin with none."""
        self._rows = []

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Note file, class and probability of each image; of the first five guesses with `top5`."""
        probabilities = self.network(batch["images"]).float().softmax(1)
        shares, guesses = probabilities.topk(min(5, self.classes) if self.top5 else 1)
        # Images that are no files are named by their place in the test set.
        names = batch.get("paths") or [f"test/{number}" for number in batch["indices"].tolist()]
        for name, row, numbers in zip(names, shares.tolist(), guesses.tolist(), strict=True):
            named = [(self.class_names[number], f"{share:.6f}") for number, share in zip(numbers, row, strict=True)]
            self._rows.append([str(name), *(value for pair in named for value in pair)])

    def on_predict_epoch_end(self) -> None:
        """Write the rows of all processes, in the order of the files, as one CSV."""
        head = ["class", "probability"]
        if self.top5:
            head = [f"{name}{number}" for number in range(1, min(5, self.classes) + 1) for name in head]
        self.write_predictions(["file", *head], self._rows, "images")

    # -- what is said about the run ---------------------------------------------------------------------------------
    def protocol(self) -> dict[str, Any]:
        """How the data were read."""
        return self.data(ImageData).protocol()

    def export_parts(self) -> ExportParts:
        """The network, images [N, 3, S, S] → logits [N, classes], with class names and preprocessing."""
        side = self.preprocessing["image_size"]
        metadata = {
            "input": f"images [N, 3, {side}, {side}]: red, green and blue, (x / 255 - mean) / std, of the image's "
            "centre, resized with antialiasing until its shorter side has round(image_size / crop_ratio) pixels and "
            "its longer one as many as that makes, rounded down; see preprocessing",
            "output": f"logits [N, {self.classes}], softmax gives probabilities of class_names",
            "class_names": self.class_names,
            "preprocessing": self.preprocessing,
        }
        images = torch.randn(7, 3, side, side, generator=torch.Generator().manual_seed(0))
        return ExportParts(self.network, images, metadata)

    def closing_lines(self, run: Path) -> list[str]:
        """Commands that use the network."""
        return [f"sinelr test --ckpt_path {run}", f"sinelr export --ckpt_path {run} --out {run}/model.onnx"]


def _column(samples: Mapping[int, Mapping[str, float]], name: str) -> Tensor:
    return torch.tensor([values[name] for values in samples.values()], dtype=torch.float64)

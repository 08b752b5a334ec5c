"""The classification task: figures, checks, what it stores and writes."""

import csv
import os

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error
from toy import quiet_trainer

from sinelr_lightning.datamodules import DigitsData, ImageFolderData
from sinelr_lightning.errors import UserError
from sinelr_lightning.layers import FactorizedLayer, SineLowRank
from sinelr_lightning.models import VisionTransformer
from sinelr_lightning.runs import load_task
from sinelr_lightning.tasks import ClassificationTask, Schedule

SMALL = {"image_size": 8, "patch_size": 4, "width": 16, "depth": 1, "heads": 2}
DEEPER = {"network_args": {**SMALL, "patch_size": 2, "width": 32, "depth": 2}}


def task(**options):
    return ClassificationTask(**{"network_args": SMALL, "linear": SineLowRank(2), **options})


def picture(path, value, size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run over digits and its checkpoint."""
    folder = tmp_path_factory.mktemp("digits")
    torch.manual_seed(0)
    one = task(
        **DEEPER,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=4e-3),
        schedule=Schedule("cosine", warmup=20, final=0.01),
    )
    trainer = quiet_trainer(folder, max_steps=200, num_sanity_val_steps=0)
    trainer.fit(one, DigitsData(batch_size=128, epoch_steps=200))
    trainer.save_checkpoint(folder / "run.ckpt")
    return trainer, one, folder / "run.ckpt"


def test_it_learns_digits(trained):
    trainer, one, _ = trained
    assert trainer.callback_metrics["val/acc1"] > 0.85
    assert isinstance(one.network, VisionTransformer)
    converted = [name for name, module in one.network.named_modules() if isinstance(module, FactorizedLayer)]
    assert converted == [f"blocks.{block}.mlp.{layer}" for block in (0, 1) for layer in ("fc1", "fc2")]


class Prescribed(nn.Module):
    """Gives out the logits that the brightness of an image numbers."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, images):
        return self.logits[images[:, 0, 0, 0].long()]


class Numbered(DigitsData):
    """Image i of the evaluation is of brightness i."""

    def on_after_batch_transfer(self, batch, dataloader_idx):
        images = batch["indices"].float()[:, None, None, None].expand(-1, 3, 8, 8)
        return {**batch, "images": images}


def test_figures_are_those_of_torchmetrics_over_all_images_with_a_last_partial_batch(tmp_path):
    data = Numbered(batch_size=50)
    data.setup("test")
    labels = torch.tensor(data.splits.test.labels)
    logits = torch.randn(len(labels), 10)
    logits[torch.arange(len(labels)), labels] += 1.5
    one = task()
    one.network = Prescribed(logits)
    trainer = quiet_trainer(tmp_path)
    trainer.test(one, data, verbose=False)
    got = {name.removeprefix("test/"): float(value) for name, value in trainer.callback_metrics.items()}
    probabilities = logits.softmax(1)
    assert len(labels) % 50 and got == pytest.approx({
        "acc1": float(multiclass_accuracy(logits, labels, 10, average="micro")),
        "acc5": float(multiclass_accuracy(logits, labels, 10, average="micro", top_k=5)),
        "loss": float(nn.functional.cross_entropy(logits, labels)),
        "ece": float(multiclass_calibration_error(probabilities, labels, 10, n_bins=15, norm="l1")),
    }, abs=1e-6)  # fmt: skip
    details, guesses = one.details("test"), logits.argmax(1)
    threes = guesses[labels == 3]
    assert details["classes"]["3"] == {
        "acc1": pytest.approx(float((threes == 3).double().mean())),
        "images": len(threes),
    }
    counts = np.zeros((10, 10), int)
    np.add.at(counts, (labels.numpy(), guesses.numpy()), 1)  # row true class, column guess
    assert details["confusion"] == counts.tolist()


def test_mixed_labels_are_shares_of_the_classes():
    one = task(classes=3, label_smoothing=0.0)
    images, shares = torch.randn(4, 3, 8, 8), torch.rand(4, 3).softmax(1)
    loss = one.training_step({"images": images, "labels": shares}, 0)
    torch.testing.assert_close(loss, -(shares * one(images).log_softmax(1)).sum(1).mean())


def test_the_confusion_matrix_is_shown(trained, tmp_path):
    shown = {}

    class Board:
        def add_image(self, name, picture, step, dataformats):
            shown[name] = (picture, step, dataformats)

    class Logger:
        experiment = Board()

    trainer, one, _ = trained
    one.trainer = trainer
    trainer.loggers, kept = [Logger()], trainer.loggers
    try:
        one._show_confusion("val")
    finally:
        trainer.loggers = kept
    (picture, step, order) = shown["val/confusion, row true, column guessed"]
    assert picture.ndim == 3 and picture.shape[2] == 3 and step == 200 and order == "HWC"


def test_a_checkpoint_knows_classes_and_preprocessing(trained):
    _, one, checkpoint = trained
    again = load_task(checkpoint)
    assert again.class_names == list("0123456789") and again.preprocessing == one.preprocessing
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(again(images), one.eval()(images))
    parts = again.export_parts()
    assert parts.network(parts.example).shape == (7, 10)
    assert parts.metadata["class_names"] == again.class_names and "mean" in parts.metadata["preprocessing"]


def test_a_checkpoint_with_other_classes_is_refused(tmp_path):
    for name, classes in (("pets", ("cat", "dog")), ("farm", ("cat", "cow"))):
        for value, kind in enumerate(classes):
            for number in range(3):
                picture(tmp_path / name / kind / f"{number}.png", 40 * value + number)

    def data(name):
        return ImageFolderData(str(tmp_path / name), image_size=8, batch_size=2, epoch_steps=1)

    trainer = quiet_trainer(tmp_path, max_steps=1, num_sanity_val_steps=0)
    trainer.fit(task(classes=2), data("pets"))
    trainer.save_checkpoint(tmp_path / "pets.ckpt")
    with pytest.raises(UserError, match="other classes than the data; they differ in cow, dog"):
        quiet_trainer(tmp_path).test(task(classes=2), data("farm"), ckpt_path=tmp_path / "pets.ckpt", verbose=False)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"classes": 1}, "model.classes must be at least 2, got 1"),
        ({"init": "fit"}, "model.init fit and model.budget need trained weights"),
        ({"label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\), got 1.0"),
        ({"network": "vit_b_61", "network_args": None}, "unknown network 'vit_b_61'.*vit_b_16"),
        ({"network_args": {**SMALL, "dpeth": 1}}, "dpeth"),
        ({"include": ["*.mpl.*"]}, r"\*\.mpl\.\*"),
        ({"ranks": {"*.attention.*": 3}}, r"\*\.attention\.\*"),
    ],
)
def test_mistakes_of_the_model_are_named(options, words):
    with pytest.raises(UserError, match=words):
        task(**options)


def test_data_that_do_not_suit_the_network_are_named(tmp_path):
    with pytest.raises(UserError, match=r"the data has 10 classes, the model 7: set model\.classes"):
        quiet_trainer(tmp_path).fit(task(classes=7), DigitsData())
    with pytest.raises(UserError, match=r"does not take images \[3, 16, 16\].*model.network_args or data.image_size"):
        quiet_trainer(tmp_path).fit(task(), DigitsData(image_size=16))


def rows(path):
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.reader(file))


def predicted(trained, folder, images, **options):
    one = load_task(trained[2])
    for name, value in options.items():
        setattr(one, name, value)
    trainer = quiet_trainer(folder)
    trainer.predict(one, DigitsData(batch_size=3, predict=str(images)), return_predictions=False)
    return rows(folder / "predictions.csv"), one


def test_predictions_of_a_file_a_flat_and_a_nested_folder(trained, tmp_path):
    digits = DigitsData()
    digits.setup("test")
    for number in range(4):
        digits.splits.test.read(number)[0].save(tmp_path / f"{number}.png")
        nested = tmp_path / "nested" / "deep" / f"{number}.png"
        nested.parent.mkdir(parents=True, exist_ok=True)
        digits.splits.test.read(number)[0].save(nested)
    one_file, _ = predicted(trained, tmp_path / "a", tmp_path / "2.png")
    flat, one = predicted(trained, tmp_path / "b", tmp_path / "nested" / "deep")
    nested, _ = predicted(trained, tmp_path / "c", tmp_path / "nested")
    assert one_file[0] == flat[0] == ["file", "class", "probability"]
    assert [row[0] for row in flat[1:]] == [
        str(tmp_path / "nested" / "deep" / f"{number}.png") for number in range(4)
    ]
    assert nested == flat and one_file[1][1:] == flat[3][1:] and len(one_file) == 2
    batch = next(iter(digits.test_dataloader()))
    images = digits.on_after_batch_transfer(batch, 0)["images"][:4]
    shares, guesses = one(images).softmax(1).max(1)
    assert [row[1] for row in flat[1:]] == [str(int(guess)) for guess in guesses]
    assert [float(row[2]) for row in flat[1:]] == pytest.approx(shares.tolist(), abs=1e-5)


def test_the_first_five_guesses(trained, tmp_path):
    DigitsData().splits.test.read(0)[0].save(tmp_path / "0.png")
    (head, row), _ = predicted(trained, tmp_path / "a", tmp_path / "0.png", top5=True)
    assert head == ["file", *(f"{name}{n}" for n in range(1, 6) for name in ("class", "probability"))]
    shares = [float(share) for share in row[2::2]]
    assert len(set(row[1::2])) == 5 and shares == sorted(shares, reverse=True) and sum(shares) <= 1 + 1e-5


def test_test_images_that_are_no_files_are_named_by_their_place(trained, tmp_path):
    quiet_trainer(tmp_path).predict(load_task(trained[2]), DigitsData(batch_size=100), return_predictions=False)
    names = [row[0] for row in rows(tmp_path / "predictions.csv")[1:]]
    assert len(names) == 359 and {"test/0", "test/358"} <= set(names)


def test_images_from_elsewhere_have_the_names_and_preprocessing_of_the_checkpoint(trained, tmp_path):
    digits = DigitsData()
    for number in range(5):
        digits.splits.test.read(number)[0].save(tmp_path / f"{number}.png")
    known, _ = predicted(trained, tmp_path / "a", tmp_path)
    checkpoint = torch.load(trained[2], weights_only=True)
    checkpoint["classes"]["names"] = list("abcdefghij")
    torch.save(checkpoint, tmp_path / "letters.ckpt")
    other = ImageFolderData("nowhere", batch_size=3, predict=str(tmp_path))  # other size, mean and deviation
    trainer = quiet_trainer(tmp_path / "b")
    trainer.predict(task(**DEEPER), other, return_predictions=False, ckpt_path=tmp_path / "letters.ckpt")
    here = rows(tmp_path / "b" / "predictions.csv")
    assert [row[2] for row in here] == [row[2] for row in known]
    assert [row[1] for row in here[1:]] == ["abcdefghij"[int(row[1])] for row in known[1:]]


def test_a_file_name_may_be_any_bytes(trained, tmp_path):
    DigitsData().splits.test.read(0)[0].save(tmp_path / "0.png")
    (tmp_path / "0.png").rename(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    predicted(trained, tmp_path / "a", tmp_path)
    assert b"caf\xe9.png," in (tmp_path / "a" / "predictions.csv").read_bytes()


def test_classes_of_one_name_are_told_apart():
    one = task(classes=3)
    one.class_names = ["crane", "ox", "crane"]
    one.scores["val"] = {n: {"label": n, "guess": 0} for n in range(3)}
    assert list(one.details("val")["classes"]) == ["crane (0)", "ox", "crane (2)"]

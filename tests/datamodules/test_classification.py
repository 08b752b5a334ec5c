import logging

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from lightning.pytorch.cli import LightningArgumentParser
from pictures import fill, write_cifar10
from PIL import Image
from torch import nn

from sinelr_lightning.datamodules import DigitsData, ImageFolderData, TorchvisionData
from sinelr_lightning.datamodules.augmentation import PLAIN, RECIPE, Augmentation
from sinelr_lightning.errors import UserError


def on_device(data, loader):
    return [data.on_after_batch_transfer(batch, 0) for batch in loader]


@pytest.fixture(scope="module")
def digits():
    data = DigitsData()
    data.setup("fit")
    return data


def test_digits_are_divided_by_class_and_whole(digits):
    splits = digits.splits
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [1078, 360, 359]
    for part, share in ((splits.train, 0.6), (splits.val, 0.2), (splits.test, 0.2)):
        counts, whole = np.bincount(part.labels), np.array([178, 182, 177, 183, 181, 182, 181, 179, 174, 180])
        assert (np.abs(counts - share * whole) < 1).all()
    images = np.concatenate([part.grey for part in (splits.train, splits.val, splits.test)])
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) == 1797  # no digit is in two splits
    assert np.unique(images).tolist() == np.rint(np.arange(17) * 255 / 16).astype(int).tolist()
    assert digits.class_names == list("0123456789")
    assert np.array_equal(DigitsData().splits.train.grey, splits.train.grey)


def test_digits_are_normalised_by_their_own_statistics(digits):
    batches = on_device(digits, digits.train_dataloader())
    assert len(batches) == 1078 // 64
    images = torch.cat([batch["images"] for batch in batches])
    assert images.shape[1:] == (3, 8, 8) and images.dtype == torch.float32
    assert abs(images.mean()) < 0.01 and abs(images.std() - 1) < 0.01
    assert batches[0]["labels"].dtype == torch.int64 and set(batches[0]) == {"images", "labels", "indices"}
    assert digits.augmentation == PLAIN


def test_digits_say_what_they_are(digits):
    assert digits.protocol() == {
        "dataset": "digits",
        "classes": 10,
        "train_images": 1078,
        "val_images": 360,
        "test_images": 359,
        "image_size": 8,
        "crop_ratio": 1.0,
    }
    assert digits.preprocessing()["image_size"] == 8 and digits.preprocessing()["std"] == [0.3754] * 3
    assert DigitsData(image_size=16).preprocessing()["image_size"] == 16


def folder(place):
    fill(place / "train", ant=6, bee=5)
    fill(place / "val", ant=3, bee=2)
    return str(place)


def test_mixed_labels_are_soft_in_training_alone(tmp_path):
    data = ImageFolderData(folder(tmp_path), image_size=8, batch_size=4)
    data.setup("fit")
    (first, second) = on_device(data, data.train_dataloader())
    for batch in (first, second):
        assert batch["images"].shape == (4, 3, 8, 8) and batch["labels"].shape == (4, 2)
        assert batch["labels"].sum(1).tolist() == pytest.approx([1.0] * 4)
    held_out = on_device(data, data.val_dataloader())
    assert [batch["labels"].tolist() for batch in held_out] == [[0, 0, 0, 1], [1]]
    assert [batch["indices"].tolist() for batch in held_out] == [[0, 1, 2, 3], [4]]
    # Image i of a class has grey i: the second ant, normalised.
    red = (1 / 255 - 0.485) / 0.229
    assert held_out[0]["images"][1, 0].unique().tolist() == pytest.approx([red])


def test_a_second_setup_gives_the_same_batches(tmp_path):
    def batches(workers):
        torch.manual_seed(11)
        data = ImageFolderData(folder(tmp_path), image_size=8, batch_size=4, epoch_steps=5, workers=workers)
        data.setup("fit")
        return on_device(data, data.train_dataloader())

    first, second = batches(0), batches(1)
    assert len(first) == 5
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one["images"], other["images"]) and torch.equal(one["labels"], other["labels"])


def test_the_folder_says_how_it_was_divided(tmp_path):
    data = ImageFolderData(str(fill(tmp_path / "photos", ant=6, bee=5)), hold=3, batch_size=2)
    assert data.class_names == ["ant", "bee"]
    assert data.protocol() == {
        "dataset": "photos",
        "classes": 2,
        "train_images": 7,
        "val_images": 4,
        "test_images": 4,
        "image_size": 224,
        "crop_ratio": 0.875,
        "hold": 3,
        "test_is_val": True,
    }


def test_a_file_cut_off_behind_its_header(tmp_path, caplog):
    place = fill(tmp_path, ant=4, bee=4)
    Image.effect_noise((64, 64), 50).save(place / "ant/01.png")
    whole = (place / "ant/01.png").read_bytes()
    (place / "ant/01.png").write_bytes(whole[: len(whole) // 2])
    options = {"image_size": 8, "batch_size": 4, "hold": 4, "augmentation": PLAIN, "epoch_steps": 3}
    data = ImageFolderData(str(place), **options)
    data.setup("fit")
    with pytest.raises(UserError, match=rf"^{place}/ant/01.png: cannot be read as an image .*truncated"):
        list(data.train_dataloader())
    data = ImageFolderData(str(place), skip_unreadable=True, **options)
    data.setup("fit")
    with caplog.at_level(logging.WARNING):
        batches = list(data.train_dataloader())
    assert len(batches) == 3 and sum(len(batch["images"]) for batch in batches) < 12
    assert all(0 not in batch["indices"].tolist() for batch in batches)  # the first to train on is the damaged one
    assert caplog.text.count("left out") == 1 and "ant/01.png" in caplog.text and "; 1 so far" in caplog.text
    assert data.protocol()["left_out"] == 1


class Named(L.LightningModule):
    """Predicts the mean of each image, under its path."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def predict_step(self, batch, batch_idx):
        self.names = self.trainer.datamodule.class_names
        return dict(zip(batch["paths"], batch["images"].mean((1, 2, 3)).tolist(), strict=True))


@pytest.mark.parametrize("what", [None, "flat", "flat/b.png", "nested"])
def test_prediction_goes_over_files(tmp_path, what):
    for name in ("flat/a.png", "flat/b.png", "nested/c/d.png", "nested/e.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), 255).save(tmp_path / name)
    # The training data need not be there where other images are named.
    root = folder(tmp_path / "data") if what is None else "/nowhere"
    data = ImageFolderData(root, image_size=4, batch_size=3, predict=what and str(tmp_path / what))
    model = Named()
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    predicted = {path: value for batch in trainer.predict(model, datamodule=data) for path, value in batch.items()}
    files = {
        None: [f"data/val/{name}" for name in ("ant/00", "ant/01", "ant/02", "bee/00", "bee/01")],
        "flat": ["flat/a", "flat/b"],
        "flat/b.png": ["flat/b"],
        "nested": ["nested/c/d", "nested/e"],
    }[what]
    assert list(predicted) == [f"{tmp_path}/{name}.png" for name in files]
    assert model.names == (["ant", "bee"] if what is None else [])


def test_two_processes_divide_batches_and_images(tmp_path, monkeypatch):
    place, drawn, seen = folder(tmp_path), [], []
    for rank in range(2):
        torch.manual_seed(2)
        data = ImageFolderData(place, image_size=8, batch_size=4, augmentation=PLAIN)
        data.setup("fit")
        whole = torch.cat([batch["indices"] for batch in data.train_dataloader()])
        monkeypatch.setattr(data, "_ranks", lambda rank=rank: (rank, 2))
        drawn += [batch["indices"] for batch in data.train_dataloader()]
        seen += [batch["indices"].tolist() for batch in data.val_dataloader()]
    assert sorted(torch.cat(drawn).tolist()) == sorted(whole.tolist())
    assert seen == [[0, 2], [4], [1, 3]]


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    write_cifar10(tmp_path, monkeypatch)
    return {"root": str(tmp_path), "batch_size": 4}


def test_cifar10_validates_on_the_test_images(cifar):
    data = TorchvisionData(**cifar)
    data.prepare_data()
    data.setup("fit")
    assert data.class_names == [f"class {number}" for number in range(10)]
    said = data.protocol()
    assert (said["train_images"], said["val_images"], said["test_images"], said["test_is_val"]) == (20, 6, 6, True)
    (first, *_), (held_out, _) = on_device(data, data.train_dataloader()), on_device(data, data.val_dataloader())
    assert first["images"].shape == (4, 3, 32, 32)
    assert held_out["labels"].tolist() == [0, 1, 2, 3]
    pixel = torch.tensor(np.asarray(data.splits.test.read(1)[0])[3, 5] / 255)
    expected = (pixel - torch.tensor([0.4914, 0.4822, 0.4465])) / torch.tensor([0.2470, 0.2435, 0.2616])
    assert torch.allclose(held_out["images"][1, :, 3, 5], expected.float(), atol=1e-5)


def test_training_images_can_be_held_out(cifar):
    data = TorchvisionData(hold=5, **cifar)
    said = data.protocol()
    assert (said["train_images"], said["val_images"], said["test_images"]) == (16, 4, 6)
    assert said["hold"] == 5 and said["test_is_val"] is False
    assert not set(data.splits.train.indices) & set(data.splits.val.indices)


def test_usual_settings_follow_the_data_set_and_can_be_changed():
    assert TorchvisionData("ImageNet").augmentation == RECIPE
    assert TorchvisionData("ImageNet").preprocessing()["image_size"] == 224
    assert TorchvisionData("MNIST").augmentation.flip == 0 and TorchvisionData().augmentation.crop == "padded"
    changed = TorchvisionData(
        "MNIST", image_size=64, crop_ratio=0.5, mean=(0, 0, 0), std=(1, 1, 1), augmentation=PLAIN
    )
    assert changed.preprocessing() == {
        "image_size": 64, "crop_ratio": 0.5, "mean": [0, 0, 0], "std": [1, 1, 1], "interpolation": "bilinear",
    }  # fmt: skip
    assert changed.augmentation == PLAIN


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        (DigitsData, ["--data.augmentation.padding=2"], Augmentation("none", 0.08, 2, 0.0, 0, 9, 0.0, 0.0, 0.0)),
        (ImageFolderData, ["--data.root=x", "--data.augmentation.mixup=0"], Augmentation(mixup=0.0)),
        (TorchvisionData, ["--data.augmentation.crop=none"], Augmentation(crop="none")),
        (TorchvisionData, ["--data.mean=[0,0,0]"], TorchvisionData().augmentation),
    ],
)
def test_the_command_line_changes_single_values(kind, options, expected):
    parser = LightningArgumentParser()
    parser.add_lightning_class_args(kind, "data")
    made = parser.instantiate(parser.parse_args(options))["data"]
    assert made.augmentation == expected


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: DigitsData(batch_size=0), "data.batch_size must be at least 1, got 0"),
        (lambda: DigitsData(workers=-1), "data.workers must be at least 0"),
        (lambda: DigitsData(epoch_steps=0), "data.epoch_steps must be at least 1, or null"),
        (lambda: ImageFolderData("x", hold=1), "data.hold must be at least 2"),
        (lambda: TorchvisionData(hold=1), "data.hold must be at least 2, or null"),
        (lambda: TorchvisionData("cifar"), "unknown torchvision data set 'cifar'"),
        (lambda: DigitsData(batch_size=2000).setup("fit"), "data.batch_size is 2000, but there are only 1078"),
        (lambda: ImageFolderData("/nowhere").setup("fit"), "/nowhere: no such folder"),
    ],
)
def test_bad_options(make, words):
    with pytest.raises(UserError, match=words):
        make()

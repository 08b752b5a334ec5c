import pickle

import numpy as np
import pytest
import torchvision
from pictures import write_cifar10
from PIL import Image

from sinelr_lightning.datamodules.torchvision_sources import DATASETS, TorchvisionImages, find_entry, open_split
from sinelr_lightning.errors import UserError


@pytest.mark.parametrize("name", DATASETS)
def test_each_data_set_knows_its_splits_and_can_name_its_classes(name):
    entry, made = DATASETS[name], getattr(torchvision.datasets, name)
    for split in (entry.train, entry.val, entry.test):
        if split is None:
            continue
        options = {"download": False} if entry.downloads else {}
        # A split that torchvision does not know is a ValueError that lists those it knows.
        with pytest.raises((RuntimeError, OSError)):
            made("/nowhere", **split, **options)
    assert "download" in made.__init__.__code__.co_varnames or not entry.downloads


def test_cifar10_is_read(tmp_path, monkeypatch):
    write_cifar10(tmp_path, monkeypatch)
    dataset = open_split("CIFAR10", {"train": True}, str(tmp_path), download=False)
    images = TorchvisionImages(dataset, "CIFAR10", [19, 2])
    assert len(images) == 2 and len(TorchvisionImages(dataset, "CIFAR10")) == 20
    image, label = images.read(0)
    assert image.size == (32, 32) and label == 3
    raw = pickle.loads((tmp_path / "cifar-10-batches-py/data_batch_5").read_bytes())["data"][3]
    assert np.array_equal(np.asarray(image), raw.reshape(3, 32, 32).transpose(1, 2, 0))


def test_grey_becomes_rgb_and_a_damaged_image_is_named():
    class Pairs(list):
        def __getitem__(self, index):
            if index == 1:
                raise OSError("image file is truncated")
            return super().__getitem__(index)

    images = TorchvisionImages(Pairs([(Image.new("L", (2, 2), 9), np.int64(4)), None]), "Food101")
    image, label = images.read(0)
    assert image.getpixel((0, 0)) == (9, 9, 9) and label == 4 and type(label) is int
    with pytest.raises(UserError, match=r"^Food101: image 1 cannot be read \(image file is truncated\)$"):
        images.read(1)


@pytest.mark.parametrize(
    ("name", "words"),
    [("cifar-10", "did you mean CIFAR10"), ("FasionMNIST", "did you mean FashionMNIST"), ("imagenet", "ImageNet"),
     ("Pictures of cats", "known are CIFAR10, CIFAR100")],
)  # fmt: skip
def test_an_unknown_name_is_told_near_ones(name, words):
    with pytest.raises(UserError, match=f"unknown torchvision data set '{name}'; .*{words}") as error:
        find_entry(name)
    assert "\n" not in str(error.value)


def test_without_files_the_folder_is_named(tmp_path):
    with pytest.raises(
        UserError, match=rf"^{tmp_path}/here: the files of CIFAR10 are expected.*download: true"
    ) as error:
        open_split("CIFAR10", {"train": True}, str(tmp_path / "here"), download=False)
    assert "\n" not in str(error.value) and "download=True" not in str(error.value)
    with pytest.raises(UserError, match=rf"^{tmp_path}: the files of ImageNet .*ILSVRC2012_devkit_t12"):
        open_split("ImageNet", {"split": "train"}, str(tmp_path), download=True)


def test_without_network_the_folder_is_named(tmp_path, monkeypatch):
    def offline(*args, **options):
        raise OSError("<urlopen error [Errno -3] Temporary failure in name resolution>")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    with pytest.raises(
        UserError, match=rf"^{tmp_path}: the files of CIFAR10 .*cannot be downloaded.*name resol"
    ) as error:
        open_split("CIFAR10", {"train": True}, str(tmp_path), download=True)
    assert "\n" not in str(error.value)

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from sinelr_lightning.datamodules.augmentation import (
    PLAIN,
    RECIPE,
    Augmentation,
    Preprocessing,
    evaluation_transform,
    mix,
    normalise,
    seeded,
    training_transform,
)
from sinelr_lightning.errors import UserError


def noise(width, height):
    return Image.fromarray(np.random.RandomState(0).randint(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", [(50, 40), (33, 71), (32, 32), (37, 37)])
@pytest.mark.parametrize("ratio", [0.875, 1.0])
def test_evaluation_is_torchvisions_resize_and_centre_crop(size, ratio):
    mode = v2.InterpolationMode.BICUBIC
    reference = v2.Compose([v2.Resize(round(32 / ratio), mode), v2.CenterCrop(32), v2.PILToTensor()])
    made = evaluation_transform(Preprocessing(32, ratio, interpolation="bicubic"))(noise(*size))
    assert made.dtype == torch.uint8 and torch.equal(made, reference(noise(*size)))


def test_without_augmentation_training_images_are_those_of_the_evaluation():
    settings = Preprocessing(32)
    assert torch.equal(
        training_transform(PLAIN, settings)(noise(50, 40)), evaluation_transform(settings)(noise(50, 40))
    )


def test_normalised_values_are_the_formula():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    made = normalise(images, Preprocessing(mean=(0.5, 0.1, 0.0), std=(0.5, 0.2, 2.0)))
    assert made.dtype == torch.float32
    assert made.flatten().tolist() == pytest.approx([-1.0, 0.5, 0.5])


def test_a_padded_crop_shifts_by_at_most_the_padding():
    image = noise(20, 12)  # its shorter side fits: no resizing
    transform = training_transform(Augmentation("padded", padding=3, flip=0, randaugment=0), Preprocessing(12))
    padded = np.pad(np.asarray(image), ((3, 3), (3, 3), (0, 0)))
    places = set()
    for number in range(40):
        with seeded(0, number):
            made = transform(image).permute(1, 2, 0).numpy()
        found = [
            (top, left)
            for top in range(7)
            for left in range(15)
            if np.array_equal(padded[top : top + 12, left : left + 12], made)
        ]
        assert len(found) == 1
        places |= set(found)
    assert len(places) > 20 and max(top for top, _ in places) == 6 and min(left for _, left in places) <= 1


def test_flip_and_resized_crop_and_erasing():
    settings = Preprocessing(16, mean=(0.0, 0.2, 1.0))
    image = noise(16, 16)
    flipped = training_transform(Augmentation("none", flip=1.0, randaugment=0), Preprocessing(16, 1.0))(image)
    assert torch.equal(flipped.flip(-1), v2.functional.pil_to_tensor(image))
    white = Image.new("RGB", (64, 64), (7, 7, 7))
    assert (training_transform(Augmentation(randaugment=0), settings)(white) == 7).all()
    with seeded(0, 0):
        erased = training_transform(Augmentation(randaugment=0, erasing=1.0), settings)(white)
    changed = (erased != 7).all(0)
    assert 0.01 < changed.float().mean() < 0.5
    assert erased[:, changed].unique(dim=1).flatten().tolist() == [0, 51, 255]


def test_randaugment_changes_what_a_crop_leaves_alone():
    image, changed = noise(16, 16), 0
    plain = training_transform(PLAIN, Preprocessing(16, 1.0))(image)
    strong = training_transform(Augmentation("none", flip=0, randaugment=2), Preprocessing(16, 1.0))
    for number in range(20):
        with seeded(0, number):
            changed += not torch.equal(strong(image), plain)
    assert changed > 10


def test_draws_follow_from_the_numbers_and_leave_the_global_generator_alone():
    transform = training_transform(RECIPE, Preprocessing(16))
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with seeded(5, 6):
        first = transform(noise(64, 64))
    assert torch.equal(torch.rand(3), expected)
    with seeded(5, 6):
        assert torch.equal(transform(noise(64, 64)), first)
    with seeded(5, 7):
        assert not torch.equal(transform(noise(64, 64)), first)


def test_mixup_blends_with_the_neighbour_and_labels_say_how_much():
    images = torch.eye(4).view(4, 4, 1, 1).repeat(1, 1, 2, 2)
    labels = torch.arange(4)
    mixed, soft = mix(images, labels, 4, Augmentation(mixup=0.8, cutmix=0), 0, 3)
    assert soft.shape == (4, 4) and soft.sum(1).tolist() == pytest.approx([1] * 4)
    assert torch.allclose(mixed[:, :, 0, 0], soft)  # image i has 1 in channel i alone, as its label
    share = soft[0, 0].item()
    assert 0 < share < 1
    assert torch.allclose(soft, share * torch.eye(4) + (1 - share) * torch.eye(4).roll(1, 0))


def test_cutmix_pastes_a_rectangle_of_the_labels_area():
    images = torch.eye(3).view(3, 3, 1, 1).repeat(1, 1, 10, 10)
    for step in range(5):
        mixed, soft = mix(images, torch.arange(3), 3, Augmentation(mixup=0, cutmix=1.0), 0, step)
        assert set(mixed.unique().tolist()) <= {0.0, 1.0}
        assert torch.allclose(mixed.mean((2, 3)), soft)


def test_a_batch_takes_either_by_its_step():
    images = torch.eye(3).view(3, 3, 1, 1).repeat(1, 1, 10, 10)
    torch.manual_seed(0)
    kinds = [mix(images, torch.arange(3), 3, RECIPE, 0, step)[0] for step in range(40)]
    blended = [bool(((made > 0) & (made < 1)).any()) for made in kinds]
    assert 8 < sum(blended) < 32
    assert torch.equal(kinds[7], mix(images, torch.arange(3), 3, RECIPE, 0, 7)[0])
    assert not any(torch.equal(kinds[7], made) for made in kinds[:7])


def test_defaults_are_the_recipe_of_vit():
    assert RECIPE.mixes and not PLAIN.mixes
    assert (RECIPE.crop, RECIPE.flip, RECIPE.randaugment, RECIPE.magnitude) == ("resized", 0.5, 2, 9)
    assert (RECIPE.erasing, RECIPE.mixup, RECIPE.cutmix) == (0.0, 0.2, 1.0)


def test_preprocessing_is_plain():
    assert Preprocessing(32, 1.0).plain() == {
        "image_size": 32,
        "crop_ratio": 1.0,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "interpolation": "bilinear",
    }


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (Preprocessing, {"image_size": 0}, "data.image_size must be at least 1"),
        (Preprocessing, {"crop_ratio": 0.0}, "data.crop_ratio"),
        (Preprocessing, {"crop_ratio": 1.1}, "data.crop_ratio"),
        (Preprocessing, {"std": (1.0, 0.0, 1.0)}, "data.mean and data.std take three"),
        (Preprocessing, {"mean": (1.0, 0.0)}, "data.mean and data.std take three"),
        (Preprocessing, {"interpolation": "cubic"}, "bilinear or bicubic, got 'cubic'"),
        (Augmentation, {"crop": "centre"}, "resized, padded or none, got 'centre'"),
        (Augmentation, {"min_area": 0.0}, "min_area"),
        (Augmentation, {"flip": 1.5}, "augmentation.flip must be a probability"),
        (Augmentation, {"erasing": -0.1}, "augmentation.erasing must be a probability"),
        (Augmentation, {"padding": -1}, "augmentation.padding must not be negative"),
        (Augmentation, {"randaugment": -1}, "augmentation.randaugment must not be negative"),
        (Augmentation, {"mixup": -1.0}, "augmentation.mixup must not be negative"),
        (Augmentation, {"cutmix": -1.0}, "augmentation.cutmix must not be negative"),
        (Augmentation, {"magnitude": 31}, "augmentation.magnitude must be 0 to 30"),
    ],
)
def test_bad_values(make, options, words):
    with pytest.raises(UserError, match=words):
        make(**options)

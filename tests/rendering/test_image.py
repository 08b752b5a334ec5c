import math

import numpy as np
import pytest
import torch
from PIL import Image

from sinelr_lightning.rendering import depth_image, save_png, side_by_side, to_uint8


def test_to_uint8_rounds_and_clips():
    image = torch.tensor([-1.0, 0, 0.5, 1, 2, 1 / 255, 0.9 / 255])
    assert to_uint8(image).tolist() == [0, 0, 128, 255, 255, 1, 1]


def test_worked_depth_colours():
    colours = depth_image(torch.tensor([[1.0, 4, 1.6, 0.5, 100, math.inf]]), near=1.0, far=4.0)[0] * 255
    near, far = torch.tensor([254.0, 244, 182]), torch.tensor([7.0, 2, 51])
    middle = torch.tensor([200, 48.5, 95])
    expected = torch.stack([near, far, middle, near, far, far])
    torch.testing.assert_close(colours, expected, rtol=0, atol=1e-3)


def test_nearer_is_brighter_at_every_step():
    depth = torch.linspace(1, 50, 300, dtype=torch.float64)
    colours = depth_image(depth[None], near=1.0, far=math.inf)[0]
    brightness = colours @ torch.tensor([0.2126, 0.7152, 0.0722], dtype=torch.float64)
    assert colours.dtype == torch.float64
    assert (brightness.diff() < 0).all()


def test_side_by_side():
    left, right = torch.zeros(4, 3, 3), torch.ones(4, 2, 3)
    joined = side_by_side(left, right)
    assert joined.shape == (4, 5, 3) and joined[:, 3:].min() == 1 and joined[:, :3].max() == 0
    with pytest.raises(ValueError, match=r"one height, not \[4, 5\]"):
        side_by_side(left, torch.zeros(5, 3, 3))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_save_png(tmp_path, dtype):
    pixels = torch.randint(0, 256, (5, 7, 3), dtype=torch.uint8)
    path = save_png(tmp_path / "new" / "a.png", pixels if dtype == torch.uint8 else pixels / 255)
    with Image.open(path) as image:
        assert image.size == (7, 5) and image.format == "PNG"
        assert np.array_equal(image, pixels)
    assert [f.name for f in path.parent.iterdir()] == ["a.png"]

import numpy as np
import pytest
import torch
from PIL import Image

from sinelr_lightning.datamodules import images as module
from sinelr_lightning.datamodules.images import downsampled, image_size, list_images, load_images
from sinelr_lightning.errors import UserError


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, dtype=np.uint8)).save(path)
    return path


def plain(path, width=8, height=4, value=100):
    return save(path, np.full((height, width, 3), value))


def test_list_images_sorts_and_skips_what_is_no_image(tmp_path):
    for name in ("b.PNG", "a.jpg", "c.JPEG", "d.webp", "sub/e.png"):
        plain(tmp_path / name)
    plain(tmp_path / ".hidden.png")
    plain(tmp_path / ".cache/f.png")
    (tmp_path / "notes.txt").write_text("x")
    found = [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)]
    assert found == ["a.jpg", "b.PNG", "c.JPEG", "d.webp", "sub/e.png"]


def test_list_images_of_nothing(tmp_path):
    with pytest.raises(UserError, match="holds no image"):
        list_images(tmp_path)
    with pytest.raises(UserError, match="nowhere: no such folder"):
        list_images(tmp_path / "nowhere")


def test_load_images_keeps_the_pixels_in_order(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 5, 3), dtype=np.uint8)
    paths = [save(tmp_path / f"{i}.png", pixels[i]) for i in range(2)]
    loaded = load_images(paths)
    assert loaded.dtype == torch.uint8
    assert loaded.shape == (2, 3, 5, 3)
    assert torch.equal(loaded, torch.from_numpy(pixels))


def test_transparency_over_white_over_black_and_dropped(tmp_path):
    path = save(tmp_path / "a.png", [[[255, 0, 0, 127], [10, 20, 30, 0], [1, 2, 3, 255]]])
    assert load_images([path], "white")[0, 0].tolist() == [[255, 128, 128], [255, 255, 255], [1, 2, 3]]
    assert load_images([path], "black")[0, 0].tolist() == [[127, 0, 0], [0, 0, 0], [1, 2, 3]]
    assert load_images([path])[0, 0].tolist() == [[255, 0, 0], [10, 20, 30], [1, 2, 3]]


def test_grey_becomes_rgb(tmp_path):
    path = save(tmp_path / "a.png", [[7, 200]])
    assert load_images([path])[0, 0].tolist() == [[7, 7, 7], [200, 200, 200]]


def test_palette_with_a_transparent_entry_over_white(tmp_path):
    image = Image.fromarray(np.array([[0, 1]], dtype=np.uint8), mode="P")
    image.putpalette([50, 60, 70, 1, 2, 3])
    image.save(tmp_path / "a.png", transparency=0)
    assert load_images([tmp_path / "a.png"], "white")[0, 0].tolist() == [[255, 255, 255], [1, 2, 3]]


def test_exif_orientation_is_ignored(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90°
    Image.new("RGB", (8, 4)).save(tmp_path / "a.jpg", exif=exif)
    assert load_images([tmp_path / "a.jpg"]).shape == (1, 4, 8, 3)
    assert image_size(tmp_path / "a.jpg") == (4, 8)


def test_unequal_sizes_name_the_first_that_differs(tmp_path):
    paths = [plain(tmp_path / "a.png"), plain(tmp_path / "b.png", 6, 5), plain(tmp_path / "c.png", 7, 7)]
    with pytest.raises(UserError, match=r"b\.png: 6 × 5 pixels, but a\.png has 8 × 4"):
        load_images(paths)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_truncated_image_is_named(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3))
    good, bad = save(tmp_path / f"a.{suffix}", noise), save(tmp_path / f"b.{suffix}", noise)
    bad.write_bytes(bad.read_bytes()[:-1500])
    with pytest.raises(UserError, match=rf"b\.{suffix}: cannot be read as an image"):
        load_images([good, bad])


def test_unreadable_and_missing_images_are_named(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image at all")
    for name in ("a.png", "b.png"):
        with pytest.raises(UserError, match=f"{name}: cannot be read as an image"):
            load_images([tmp_path / name])
        with pytest.raises(UserError, match=f"{name}: cannot be read as an image"):
            image_size(tmp_path / name)


def test_sixteen_bits_of_grey_are_refused_rather_than_clipped(tmp_path):
    Image.fromarray(np.array([[1000, 60000]], dtype=np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="more than 8 bits"):
        load_images([tmp_path / "a.png"])


def test_factor_averages_areas_after_compositing(tmp_path):
    """White where transparent and black elsewhere: half of each 2 × 2 block is 127.5."""
    block = [[[0, 0, 0, 255], [0, 0, 0, 0]], [[0, 0, 0, 0], [0, 0, 0, 255]]]
    path = save(tmp_path / "a.png", np.tile(block, (1, 2, 1)))
    assert load_images([path], "white", 2)[0, 0].tolist() == [[128, 128, 128]] * 2


def test_factor_one_is_the_folder_itself(tmp_path):
    plain(tmp_path / "images/a.png")
    assert downsampled(tmp_path / "images", 1) == downsampled(tmp_path / "images", None) == tmp_path / "images"


def test_downsampled_is_made_once_with_rounded_sizes(tmp_path):
    for index, name in enumerate(("a.jpg", "b.JPG", "sub/c.png")):
        plain(tmp_path / "images" / name, 63, 47, 60 * index)
    folder = downsampled(tmp_path / "images", 4)
    assert folder == tmp_path / "images_4"
    made = list_images(folder)
    assert [path.relative_to(folder).as_posix() for path in made] == ["a.png", "b.png", "sub/c.png"]
    loaded = load_images(made)
    assert loaded.shape == (3, 12, 16, 3)  # 47/4 = 11.75, 63/4 = 15.75
    assert loaded[:, 5, 5, 0].tolist() == pytest.approx([0, 60, 120], abs=1)
    before = made[0].stat().st_mtime_ns
    assert downsampled(tmp_path / "images", 4) == folder
    assert made[0].stat().st_mtime_ns == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "images_4"]  # nothing temporary is left


def test_a_present_folder_is_used_without_the_full_size_images(tmp_path):
    plain(tmp_path / "images_8/a.png")
    assert downsampled(tmp_path / "images", 8) == tmp_path / "images_8"
    with pytest.raises(UserError, match="images_4: no such folder of images; there is images_8"):
        downsampled(tmp_path / "images", 4)
    with pytest.raises(UserError, match="images: no such folder of images; there is images_8"):
        downsampled(tmp_path / "images", 1)


def test_a_present_folder_with_another_count(tmp_path):
    for name in ("images/a.png", "images/b.png", "images_2/a.png"):
        plain(tmp_path / name)
    with pytest.raises(UserError, match="images_2: holds 1 images, but images holds 2"):
        downsampled(tmp_path / "images", 2)


@pytest.mark.parametrize("factor", [0, -2])
def test_factor_below_one(tmp_path, factor):
    with pytest.raises(UserError, match=f"factor: {factor}"):
        downsampled(tmp_path / "images", factor)


def test_names_that_differ_only_in_their_suffix(tmp_path):
    plain(tmp_path / "images/a.png")
    plain(tmp_path / "images/a.jpg")
    with pytest.raises(UserError, match="differ only in their suffix"):
        downsampled(tmp_path / "images", 2)


def test_an_unreadable_image_leaves_no_half_made_folder(tmp_path):
    plain(tmp_path / "images/a.png")
    (tmp_path / "images/b.png").write_bytes(b"garbage")
    with pytest.raises(UserError, match=r"b\.png: cannot be read"):
        downsampled(tmp_path / "images", 2)
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_a_place_that_cannot_be_written_to_is_named(tmp_path):
    plain(tmp_path / "images/a.png")
    (tmp_path / "images_2").write_text("a file in the way")
    with pytest.raises(UserError, match="images_2: cannot be written"):
        downsampled(tmp_path / "images", 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "images_2"]


def test_of_two_at_once_the_second_uses_the_folder_of_the_first(tmp_path, monkeypatch):
    plain(tmp_path / "images/a.png", value=10)
    shrink = module._shrink

    def while_another_finishes(*args):
        plain(tmp_path / "images_2/a.png", 4, 2, value=200)
        return shrink(*args)

    monkeypatch.setattr(module, "_shrink", while_another_finishes)
    folder = downsampled(tmp_path / "images", 2)
    monkeypatch.undo()
    assert load_images(list_images(folder))[0, 0, 0].tolist() == [200, 200, 200]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "images_2"]

import numpy as np
import pytest
from PIL import Image, ImageOps

from sinelr_lightning.datamodules.image_files import ImageFiles, find_images, read_rgb, to_rgb, unreadable
from sinelr_lightning.errors import UserError

WHITE, HALF = (255, 255, 255), 102  # an alpha of 102/255 = 0.4


def row(path):
    return [tuple(pixel) for pixel in np.asarray(read_rgb(path))[0].tolist()]


def image(values, mode="L"):
    return Image.fromarray(np.array([values], dtype=np.uint8), mode if mode in ("RGB", "RGBA") else None)


def palette():
    made = Image.new("P", (2, 1))
    made.putpalette([10, 20, 30, 200, 100, 0])
    made.putdata([0, 1])
    return made


def wide(values, dtype):
    return Image.fromarray(np.array([values], dtype=dtype))


@pytest.mark.parametrize(
    ("name", "picture", "options", "pixels"),
    [
        ("grey.png", image([0, 100, 255]), {}, [(0,) * 3, (100,) * 3, WHITE]),
        ("grey_alpha.png", Image.merge("LA", (image([100, 100]), image([HALF, 0]))), {}, [(193,) * 3, WHITE]),
        ("rgba.png", image([(255, 0, 0, HALF), (9, 9, 9, 0), (1, 2, 3, 255)], "RGBA"), {},
         [(255, 153, 153), WHITE, (1, 2, 3)]),
        ("palette.png", palette(), {}, [(10, 20, 30), (200, 100, 0)]),
        ("palette.gif", palette(), {"transparency": 1}, [(10, 20, 30), WHITE]),
        ("palette_alpha.png", palette(), {"transparency": bytes([255, HALF])}, [(10, 20, 30), (233, 193, 153)]),
        ("clear.png", image([(1, 2, 3), (4, 5, 6)], "RGB"), {"transparency": (4, 5, 6)}, [(1, 2, 3), WHITE]),
        ("wide.png", wide([0, 256, 32768, 65535], np.uint16), {}, [(0,) * 3, (1,) * 3, (128,) * 3, WHITE]),
        ("wide.tif", wide([0, 256, 32768, 65535], np.uint16), {}, [(0,) * 3, (1,) * 3, (128,) * 3, WHITE]),
        ("wide.pgm", wide([0, 256, 32768, 65535], np.uint16), {}, [(0,) * 3, (1,) * 3, (128,) * 3, WHITE]),
        ("signed.tif", wide([-(2**31), 0, 2**30, 2**31 - 1], np.int32), {},
         [(0,) * 3, (128,) * 3, (191,) * 3, WHITE]),
        ("bits.png", image([0, 255]).convert("1"), {}, [(0,) * 3, WHITE]),
        ("cmyk.tif", Image.new("CMYK", (1, 1), (0, 255, 255, 0)), {}, [(255, 0, 0)]),
        ("lab.tif", Image.new("LAB", (1, 1), (255, 128, 128)), {}, [(254, 255, 254)]),
    ],
)  # fmt: skip
def test_every_mode_becomes_eight_bit_rgb(tmp_path, name, picture, options, pixels):
    picture.save(tmp_path / name, **options)
    read = read_rgb(tmp_path / name)
    assert read.mode == "RGB"
    assert row(tmp_path / name) == pixels


def test_modes_that_no_file_holds():
    assert to_rgb(Image.new("La", (1, 1), (51, HALF))).getpixel((0, 0)) == (204,) * 3  # 51/0.4 grey, 0.6 of white
    assert to_rgb(wide([0, 65535], np.int32)).getpixel((1, 0)) == WHITE


def test_a_jpeg_of_four_inks(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    assert np.abs(np.asarray(read_rgb(tmp_path / "a.jpg"), int) - (255, 0, 0)).max() <= 3


@pytest.mark.parametrize(("bits", "format", "codes"), [(16, 2, [0, 127, 255]), (32, 1, [255, 0, 128])])
def test_tiff_tags_say_the_range(tmp_path, bits, format, codes):
    values = np.array([[-(2 ** (bits - 1)), -1, 2 ** (bits - 1) - 1]])
    if bits == 32:
        values = np.array([[2**32 - 1, 0, 2**31]])
    path = tmp_path / "a.tif"
    dtype = np.dtype(f"<{'i' if format == 2 else 'u'}{bits // 8}")
    path.write_bytes(tiff(values.astype(dtype), bits, format))
    assert [pixel[0] for pixel in row(path)] == codes


def tiff(values, bits, format):
    """A one-strip little-endian grey TIFF, which Pillow cannot write in these types."""
    height, width = values.shape
    data = values.tobytes()
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, 1), (273, 8), (277, 1), (278, height),
            (279, len(data)), (339, format)]  # fmt: skip
    head = b"II*\0" + (8 + len(data)).to_bytes(4, "little")
    entries = b"".join(
        tag.to_bytes(2, "little") + b"\4\0" + (1).to_bytes(4, "little") + value.to_bytes(4, "little")
        for tag, value in tags
    )
    return head + data + len(tags).to_bytes(2, "little") + entries + bytes(4)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(tmp_path, orientation):
    stored = Image.fromarray(np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 10)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(np.asarray(read_rgb(tmp_path / "a.png")), expected)


def test_floating_point_is_refused(tmp_path):
    Image.new("F", (2, 2), 0.5).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match=r"a\.tif: has floating-point values; 8, 16 or 32 bits"):
        read_rgb(tmp_path / "a.tif")


def damaged(folder):
    """Files that are no images, as {name: bytes}."""
    Image.effect_noise((64, 64), 50).save(folder / "whole.jpg")
    Image.effect_noise((64, 64), 50).save(folder / "whole.png")
    return {
        "cut.jpg": (folder / "whole.jpg").read_bytes()[:1000],
        "cut.png": (folder / "whole.png").read_bytes()[:1000],
        "text.jpg": b"<html>404 not found</html>",
        "empty.png": b"",
    }


@pytest.mark.parametrize("name", ["cut.jpg", "cut.png", "text.jpg", "empty.png", "missing.jpg"])
def test_a_damaged_file_is_named_in_one_line(tmp_path, name):
    files = damaged(tmp_path)
    if name in files:
        (tmp_path / name).write_bytes(files[name])
    with pytest.raises(UserError) as error:
        read_rgb(tmp_path / name)
    assert str(error.value).startswith(f"{tmp_path / name}: ") and "\n" not in str(error.value)
    assert str(error.value).count(name) == 1


def test_headers_tell_what_is_no_image(tmp_path):
    for name, content in damaged(tmp_path).items():
        (tmp_path / name).write_bytes(content)
    names = sorted(path.name for path in tmp_path.iterdir())
    wrong = unreadable(ImageFiles(tmp_path, names))
    assert [names[number] for number in wrong] == ["empty.png", "text.jpg"]
    assert (
        wrong[names.index("text.jpg")] == f"{tmp_path}/text.jpg: is no image, or none of a format that Pillow reads"
    )


def test_of_many_files_some_evenly_spaced_are_looked_at(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"no image")
    assert list(unreadable(ImageFiles(tmp_path, ["a.jpg"] * 10), limit=4)) == [0, 3, 6, 9]
    assert list(unreadable(ImageFiles(tmp_path, ["a.jpg"] * 4), limit=4)) == [0, 1, 2, 3]


def test_images_are_found_at_any_depth(tmp_path):
    for name in ("b.JPG", "a/c.png", "a/deep/er/d.webp", "e.txt", ".hidden/f.png", ".g.png", "linked/h.png"):
        (tmp_path / "real" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "real" / name).touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link").symlink_to(tmp_path / "real" / "a")
    assert find_images(tmp_path / "real") == ["a/c.png", "a/deep/er/d.webp", "b.JPG", "linked/h.png"]
    assert find_images(tmp_path / "folder") == ["link/c.png", "link/deep/er/d.webp"]


def test_files_keep_their_names_and_labels(tmp_path):
    files = ImageFiles(tmp_path, ["ä/ö.png", "b.png", "c.png"], [4, 5, 6])
    part = files.only(np.array([True, False, True]))
    assert [part.path(number) for number in range(len(part))] == [tmp_path / "ä/ö.png", tmp_path / "c.png"]
    assert part.labels is not None and part.labels.tolist() == [4, 6]
    Image.new("L", (2, 2), 7).save(tmp_path / "c.png")
    read, label = part.read(1)
    assert read.getpixel((0, 0)) == (7, 7, 7) and label == 6
    assert ImageFiles(tmp_path, ["c.png"]).read(0)[1] is None

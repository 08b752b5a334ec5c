import logging

import pytest
from pictures import fill
from PIL import Image

from sinelr_lightning.datamodules.image_folder import image_files, read_image_folder
from sinelr_lightning.errors import UserError


def names(source):
    return [source.path(number).relative_to(source.root).as_posix() for number in range(len(source))]


def test_train_val_test_as_they_are(tmp_path):
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        fill(tmp_path / split, cat=count, ant=count)
    splits = read_image_folder(str(tmp_path))
    assert splits.class_names == ["ant", "cat"] and splits.notes == {"test_is_val": False}
    assert names(splits.train) == ["ant/00.png", "ant/01.png", "ant/02.png", "cat/00.png", "cat/01.png", "cat/02.png"]
    assert splits.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert splits.val.root == tmp_path / "val" and splits.test.root == tmp_path / "test"
    assert len(splits.val) == 4 and len(splits.test) == 2


@pytest.mark.parametrize("name", ["valid", "validation"])
def test_other_names_of_the_validation_images(tmp_path, name):
    for split, count in (("train", 3), (name, 2)):
        fill(tmp_path / split, cat=count, ant=count)
    splits = read_image_folder(str(tmp_path))
    assert splits.class_names == ["ant", "cat"] and splits.val.root == tmp_path / name and len(splits.val) == 4


def test_without_test_the_validation_images_serve(tmp_path):
    fill(tmp_path / "train", a=2, b=2)
    fill(tmp_path / "val", a=1, b=1)
    splits = read_image_folder(str(tmp_path))
    assert splits.test is splits.val and splits.notes == {"test_is_val": True}


def test_every_nth_image_of_a_class_is_held_out(tmp_path):
    splits = read_image_folder(str(fill(tmp_path, a=5, b=3)), hold=3)
    assert names(splits.val) == ["a/00.png", "a/03.png", "b/00.png"]
    assert names(splits.train) == ["a/01.png", "a/02.png", "a/04.png", "b/01.png", "b/02.png"]
    assert splits.train.labels.tolist() == [0, 0, 0, 1, 1] and splits.val.labels.tolist() == [0, 0, 1]
    assert splits.notes == {"hold": 3, "test_is_val": True}


def test_without_val_training_images_are_held_out(tmp_path):
    fill(tmp_path / "train", a=4, b=4)
    fill(tmp_path / "test", a=1, b=1)
    splits = read_image_folder(str(tmp_path), hold=2)
    assert names(splits.val) == ["a/00.png", "a/02.png", "b/00.png", "b/02.png"]
    assert splits.test.root == tmp_path / "test" and splits.notes == {"hold": 2, "test_is_val": False}


def test_a_class_may_be_called_train_and_have_folders_of_its_own(tmp_path):
    fill(tmp_path, bus=2, train=2)
    fill(tmp_path / "train", steam=2)
    splits = read_image_folder(str(tmp_path), hold=2)
    assert splits.class_names == ["bus", "train"]
    assert names(splits.train) == ["bus/01.png", "train/01.png", "train/steam/01.png"]


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ({}, r"PLACE: no such folder of images"),
        ({"a": 0}, r"PLACE: holds only one class, a"),
        ({"a": 2}, r"PLACE: holds only one class, a; at least two"),
        ({"a": 2, "b": 0}, r"PLACE/b: holds no image \(jpg, jpeg, .*are read\)"),
        ({"a": 2, "b": 1}, r"PLACE/b: holds one image; two are needed.*data\.hold"),
        ({"val/a": 2, "val/b": 2}, r"PLACE: has val but no train"),
        ({"train/a": 2}, r"PLACE/train: holds only one class"),
        ({"train/a": 2, "train/b": 2, "val/a": 1}, r"PLACE/val: holds only one class"),
        ({"train/a": 2, "train/b": 2, "train/c": 2, "val/a": 1, "val/d": 1, "val/b": 1},
         r"PLACE/val: its classes differ from those of PLACE/train: it lacks c and adds d$"),
        ({"train/a": 2, "train/b": 2, "val/a": 1, "val/b": 1, "test/a": 1, "test/b": 1, "test/c": 1},
         r"PLACE/test: its classes differ from those of PLACE/train: it adds c$"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_folder_is_said_with_its_path(tmp_path, made, words):
    place = tmp_path / "photos"
    for name, count in made.items():
        (place / name).mkdir(parents=True)
        fill(place, **{name: count})
    with pytest.raises(UserError, match=words.replace("PLACE", str(place))) as error:
        read_image_folder(str(place))
    assert "\n" not in str(error.value)


def test_loose_images_are_no_class(tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=rf"{tmp_path}: holds no folder of a class.*{tmp_path}/CLASS/"):
        read_image_folder(str(tmp_path))


def test_an_unreadable_file_stops_or_is_left_out(tmp_path, caplog):
    fill(tmp_path, a=4, b=3)
    for name in ("a/01.png", "b/00.png"):
        (tmp_path / name).write_text("no image")
    with pytest.raises(UserError, match=rf"^{tmp_path}/a/01.png: is no image.*\(and 1 more\); data.skip_unreadable"):
        read_image_folder(str(tmp_path), hold=2)
    with caplog.at_level(logging.WARNING):
        splits = read_image_folder(str(tmp_path), hold=2, skip=True)
    assert f"left out 2 unreadable image(s), the first: {tmp_path}/a/01.png" in caplog.text
    # What is held out is counted over the readable ones.
    assert names(splits.val) == ["a/00.png", "a/03.png", "b/01.png"]
    assert names(splits.train) == ["a/02.png", "b/02.png"]
    for number in range(3):
        (tmp_path / f"b/0{number}.png").write_text("no image")
    with pytest.raises(UserError, match=rf"{tmp_path}/b: holds no readable image"):
        read_image_folder(str(tmp_path), skip=True)


def test_images_to_predict_are_a_file_or_a_folder(tmp_path):
    fill(tmp_path, a=2)
    Image.new("L", (4, 4)).save(tmp_path / "z.png")
    assert names(image_files(str(tmp_path))) == ["a/00.png", "a/01.png", "z.png"]
    single = image_files(str(tmp_path / "z.png"))
    assert len(single) == 1 and single.path(0) == tmp_path / "z.png" and single.read(0)[1] is None
    with pytest.raises(UserError, match="nowhere: no such image or folder of images"):
        image_files(str(tmp_path / "nowhere"))
    (tmp_path / "bare").mkdir()
    with pytest.raises(UserError, match=r"bare: holds no image"):
        image_files(str(tmp_path / "bare"))
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(UserError, match=r"text\.png: is no image"):
        image_files(str(tmp_path / "text.png"))

"""Folders that are whole or not there, and never in the place of what somebody else put there."""

import os

import pytest

from sinelr_lightning.errors import UserError
from sinelr_lightning.files import user_folder


def write(place, **files):
    with user_folder(place) as folder:
        for name, text in files.items():
            (folder / name).write_text(text)


def read(place):
    return {path.name: path.read_text() for path in place.iterdir() if not path.name.startswith(".")}


@pytest.mark.parametrize("there", [False, True], ids=["new", "empty"])
def test_an_earlier_one_is_replaced(tmp_path, there):
    place = tmp_path / "out"
    if there:
        place.mkdir()
    write(place, config="1", weights="2")
    write(place, config="3")
    assert read(place) == {"config": "3"} and list(tmp_path.iterdir()) == [place]


def test_a_link_to_an_earlier_one_stays_a_link(tmp_path):
    write(tmp_path / "real", config="1")
    (tmp_path / "link").symlink_to("real")
    write(tmp_path / "link", config="2")
    assert (tmp_path / "link").is_symlink() and read(tmp_path / "real") == {"config": "2"}
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("name", ["config.json", "adapter_config.json"])
def test_what_others_wrote_is_not_replaced(tmp_path, name):
    place = tmp_path / "proj"
    (place / "src").mkdir(parents=True)
    (place / name).write_text("{}")
    with pytest.raises(UserError, match="proj exists and is no earlier export: name another folder"):
        write(place, config="1")
    assert {path.name for path in place.iterdir()} == {"src", name} and list(tmp_path.iterdir()) == [place]


@pytest.mark.parametrize("late", [False, True], ids=["before", "meanwhile"])
def test_nor_is_what_they_added_to_ours(tmp_path, late):
    place = tmp_path / "out"
    write(place, config="1")
    if not late:
        (place / "notes").mkdir()
    with pytest.raises(UserError, match="out holds notes, which no export wrote"), user_folder(place) as folder:
        assert late, "it is told at once"
        (folder / "config").write_text("2")
        (place / "notes").mkdir()
    assert read(place / "notes") == {} and (place / "config").read_text() == "1"
    assert list(tmp_path.iterdir()) == [place]


def test_a_failure_leaves_no_folder(tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="No space"), user_folder(tmp_path / "mine" / "a" / "b" / "out"):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == [tmp_path / "mine"] and not list((tmp_path / "mine").iterdir())


def test_a_failure_keeps_the_earlier_one(tmp_path, monkeypatch):
    place = tmp_path / "out"
    write(place, config="1")
    replace = os.replace

    def once(source, target):
        if target == place and source.joinpath("other").exists():
            raise OSError(5, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", once)
    with pytest.raises(UserError, match="out cannot be written: Input/output error"):
        write(place, other="2")
    assert read(place) == {"config": "1"} and list(tmp_path.iterdir()) == [place]


@pytest.mark.parametrize("name", ["x" * 300, "x" * 300 + "/out"])
def test_a_name_that_is_too_long_is_told(tmp_path, name):
    with pytest.raises(UserError, match="cannot be written: File name too long"):
        write(tmp_path / name, config="1")
    assert not list(tmp_path.iterdir())

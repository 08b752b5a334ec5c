import importlib
import logging

import pytest
import torch
from PIL import Image

from sinelr_lightning.errors import UserError
from sinelr_lightning.rendering import save_video

COLOURS = torch.tensor([[200, 30, 40], [20, 180, 60], [30, 60, 220]], dtype=torch.uint8)


def film(count=7, height=33, width=51):
    """Frames made one by one: three vertical stripes of known colours and a white bar that moves."""
    for i in range(count):
        frame = COLOURS.repeat_interleave(width // 3, 0).expand(height, width, 3).clone()
        frame[2 * i : 2 * i + 2] = 255
        yield frame


def without_av(monkeypatch):
    def refuse(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", refuse)


def files(folder):
    return sorted(f.name for f in folder.iterdir())


def test_mp4_plays_in_a_browser(tmp_path):
    av = pytest.importorskip("av")
    path = save_video(tmp_path / "a.mp4", film(), fps=24)
    assert path == tmp_path / "a.mp4" and files(tmp_path) == ["a.mp4"]
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        codec = stream.codec_context
        assert (codec.name, codec.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 24)
        assert (codec.width, codec.height) == (52, 34)
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(decoded) == 7
    last = torch.from_numpy(decoded[-1]).int()
    for stripe, column in enumerate([8, 25, 42]):
        assert (last[25, column] - COLOURS[stripe].int()).abs().max() < 6
    assert last[13, 25].min() > 215 and (last[33, 51] - COLOURS[2].int()).abs().max() < 12  # the bar, the padding
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")  # faststart


def test_without_av_a_webp_is_written_and_said(tmp_path, monkeypatch, caplog):
    without_av(monkeypatch)
    with caplog.at_level(logging.WARNING):
        path = save_video(tmp_path / "a.mp4", film(), fps=20)
    assert path == tmp_path / "a.webp" and files(tmp_path) == ["a.webp"]
    (record,) = caplog.records
    assert 'pip install "sinelr-lightning[video]"' in record.getMessage() and "a.webp" in record.getMessage()
    with Image.open(path) as image:
        assert (image.format, image.n_frames, image.size) == ("WEBP", 7, (51, 33))
        image.seek(3)
        image.load()
        assert image.info["duration"] == 50


@pytest.mark.parametrize("name, kind", [("a.webp", "WEBP"), ("a.GIF", "GIF")])
def test_animated_formats(tmp_path, name, kind):
    path = save_video(tmp_path / name, film(), fps=10)
    with Image.open(path) as image:
        assert (image.format, image.n_frames, image.info["loop"]) == (kind, 7, 0)


def test_a_folder_gets_numbered_pngs_and_replaces_its_own(tmp_path):
    folder = tmp_path / "deep" / "frames"
    assert save_video(folder, film(3)) == folder
    assert files(folder) == ["0000.png", "0001.png", "0002.png"]
    save_video(folder, film(2))
    assert files(folder) == ["0000.png", "0001.png"] and files(folder.parent) == ["frames"]
    with Image.open(folder / "0001.png") as image:
        assert image.getpixel((0, 2)) == (255, 255, 255) and image.getpixel((0, 0)) == (200, 30, 40)


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match=r"thesis\.tex"):
        save_video(tmp_path, film(2))
    assert files(tmp_path) == ["thesis.tex"]
    with pytest.raises(UserError, match="is a file"):
        (tmp_path / "name").write_text("")
        save_video(tmp_path / "name", film(2))


def test_a_file_that_appears_in_the_folder_meanwhile_is_not_deleted(tmp_path):
    folder = save_video(tmp_path / "frames", film(1))

    def slow():
        yield from film(2)
        (folder / "notes.txt").write_text("mine")

    with pytest.raises(UserError, match="notes"):
        save_video(folder, slow())
    assert files(folder) == ["0000.png", "notes.txt"] and files(tmp_path) == ["frames"]


def test_an_unknown_suffix_names_what_is_accepted(tmp_path):
    with pytest.raises(UserError, match=r"\.avi; accepted are \.mp4, \.webp, \.gif, or a folder"):
        save_video(tmp_path / "a.avi", film())


@pytest.mark.parametrize("name", ["a.mp4", "a.webp", "frames"])
def test_a_renderer_that_fails_leaves_the_old_file(tmp_path, name):
    if name == "a.mp4":
        pytest.importorskip("av")
    path = save_video(tmp_path / name, film(2))
    before = path.read_bytes() if path.is_file() else files(path)

    def broken():
        yield from film(2)
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        save_video(path, broken())
    assert (path.read_bytes() if path.is_file() else files(path)) == before
    assert files(tmp_path) == [name]


@pytest.mark.parametrize("name", ["a.mp4", "a.webp", "frames"])
@pytest.mark.parametrize(
    "frames, message",
    [
        ([], "at least one frame"),
        ([torch.zeros(4, 4, 3)], "uint8"),
        ([torch.zeros(4, 4, 3, dtype=torch.uint8), torch.zeros(4, 6, 3, dtype=torch.uint8)], "one size"),
    ],
    ids=["none", "float", "sizes"],
)
def test_frames_that_are_no_film(tmp_path, name, frames, message):
    with pytest.raises(ValueError, match=message):
        save_video(tmp_path / name, frames)
    assert files(tmp_path) == []


def test_frames_are_streamed(tmp_path):
    pytest.importorskip("av")
    alive = []

    def watched():
        import weakref

        for frame in film(12):
            alive[:] = [reference for reference in alive if reference() is not None]
            assert len(alive) <= 2
            alive.append(weakref.ref(frame))
            yield frame
            del frame

    save_video(tmp_path / "a.mp4", watched())
    save_video(tmp_path / "frames", watched())

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toy import ToyTask

from sinelr_lightning import runs
from sinelr_lightning.errors import UserError


def put(path, content=b"", age=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (1_000_000 - age, 1_000_000 - age))
    return path


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Run a: versions 2 (last), 9 (best, last), 10 (nothing yet). Run b: version 0, written before."""
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "runs/a/version_2/checkpoints/last.ckpt", age=20)
    put(tmp_path / "runs/a/version_9/checkpoints/last.ckpt", age=10)
    put(tmp_path / "runs/a/version_9/checkpoints/best.ckpt", age=11)
    (tmp_path / "runs/a/version_10").mkdir()
    put(tmp_path / "runs/b/version_0/checkpoints/last.ckpt", age=100)
    return tmp_path


@pytest.mark.parametrize(
    ("given", "name", "found"),
    [
        ("last", "a", "runs/a/version_9/checkpoints/last.ckpt"),
        ("best", "a", "runs/a/version_9/checkpoints/best.ckpt"),
        ("last", "b", "runs/b/version_0/checkpoints/last.ckpt"),
        ("last", None, "runs/a/version_9/checkpoints/last.ckpt"),
        ("runs/a", None, "runs/a/version_9/checkpoints/best.ckpt"),
        ("runs/a/version_2", None, "runs/a/version_2/checkpoints/last.ckpt"),
        ("runs/a/version_9/", "b", "runs/a/version_9/checkpoints/best.ckpt"),
        ("runs/a/version_2/checkpoints", None, "runs/a/version_2/checkpoints/last.ckpt"),
        ("runs/a/version_2/checkpoints/last.ckpt", None, "runs/a/version_2/checkpoints/last.ckpt"),
    ],
)
def test_checkpoints_are_found_over_all_versions_newest_first(tree, given, name, found, caplog):
    caplog.set_level("INFO")
    assert str(runs.resolve_checkpoint(given, name)) == found
    assert f"checkpoint {found}" in caplog.text, "the file taken is told"


def test_what_is_wanted_most_comes_first(tree):
    assert runs.resolve_checkpoint("runs/a", prefer=("last", "best")).name == "last.ckpt"


@pytest.mark.parametrize(
    ("given", "name", "message"),
    [
        ("best", "b", r"no checkpoint found, searched runs/b/version_\*/checkpoints/best.ckpt"),
        ("last", "c", r"searched runs/c/version_\*/checkpoints/last.ckpt"),
        ("runs/a/version_10", None, "best.ckpt or last.ckpt in runs/a/version_10/checkpoints"),
        ("runs/nothing", None, "runs/nothing does not exist: give a file, a run folder"),
    ],
)
def test_without_a_checkpoint_it_stops_and_names_the_places(tree, given, name, message):
    with pytest.raises(UserError, match=message):
        runs.resolve_checkpoint(given, name)


def test_versions_are_numbers(tree):
    assert [path.name for path in runs.versions("runs/a")] == ["version_10", "version_9", "version_2"]
    assert runs.make_version("runs/a") == Path("runs/a/version_11")
    assert runs.make_version("runs/new") == Path("runs/new/version_0")
    put(tree / "runs/new/version_1", b"a file in the way")
    assert runs.make_version("runs/new") == Path("runs/new/version_2") and Path("runs/new/version_2").is_dir()
    with pytest.raises(UserError, match=r"runs/new/version_1/x/version_0 cannot be made: Not a directory"):
        runs.make_version("runs/new/version_1/x")
    assert str(runs.run_folder("runs/a/version_2/checkpoints/last.ckpt")) == "runs/a/version_2"
    assert str(runs.run_folder("elsewhere/moved.ckpt")) == "elsewhere"


def test_unreadable_checkpoints_are_named(tree):
    put(tree / "cut.ckpt", b"PK\x03\x04 cut off")
    torch.save([1, 2], tree / "other.ckpt")
    torch.save({"state_dict": {}, "code": torch.nn.Linear(1, 1)}, tree / "code.ckpt")
    for name, message in [
        ("cut", "not a readable checkpoint"),
        ("other", "no state_dict"),
        ("code", "not a readable"),
    ]:
        with pytest.raises(UserError, match=f"{name}.ckpt is .*{message}" if name != "other" else message):
            runs.load_checkpoint(tree / f"{name}.ckpt")


def test_an_unreadable_configuration_is_named(tree):
    checkpoint = tree / "runs/a/version_2/checkpoints/last.ckpt"
    for content in (b"name: caf\xe9", b"a: [", b"a: \x00"):
        put(tree / "runs/a/version_2/config.yaml", content)
        with pytest.raises(UserError, match=r"version_2/config\.yaml is not readable YAML"):
            runs.load_config(checkpoint)


def test_a_task_needs_nothing_but_its_file(tmp_path):
    task = ToyTask(width=5)
    checkpoint = {
        "state_dict": task.state_dict(),
        "hyper_parameters": dict(task.hparams),
        "pytorch-lightning_version": "2.6.6",
    }
    torch.save(checkpoint, tmp_path / "moved.ckpt")
    again = runs.load_task(tmp_path / "moved.ckpt")
    assert isinstance(again, ToyTask) and again.hparams.width == 5 and not again.training
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), task.parameters(), strict=True))
    assert runs.load_config(tmp_path / "moved.ckpt") == {}

    checkpoint["hyper_parameters"]["_class_path"] = "os.system"
    torch.save(checkpoint, tmp_path / "evil.ckpt")
    with pytest.raises(UserError, match=r"the task os.system, which is not known: import its module first"):
        runs.load_task(tmp_path / "evil.ckpt")


def test_importing_it_is_light():
    code = "import sys, sinelr_lightning.runs; print([m for m in ('torch', 'lightning') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"

"""Every configuration that ships is read; those that can run here are in the README, whose commands run."""

from pathlib import Path

import pytest
import yaml
from pictures import fill, write_cifar10

from sinelr_lightning.cli import main

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
ELSEWHERE = ("classification_cifar10", "classification_cifar100", "classification_imagefolder")  # their data are
RUNNABLE = [path for path in CONFIGS if path.parent.name == "configs" and path.stem not in ELSEWHERE]
EXPERIMENTS = [path for path in CONFIGS if path.parent.name != "cluster"]


def test_there_are_configurations():
    assert len(RUNNABLE) >= 1 and len(EXPERIMENTS) > len(RUNNABLE)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_it_is_read(path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert main(["fit", "--config", str(path), "--print_config"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["model"]["class_path"].endswith(yaml.safe_load(path.read_text())["model"]["class_path"])


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_each_key_is_commented(path):
    values = [
        line
        for line in path.read_text().splitlines()
        if ": " in line and not line.lstrip().startswith(("#", "class_path"))
    ]
    assert [line for line in values if "#" not in line] == []


def takes_two_steps(path, folder, *options):
    small = ["--trainer.max_steps=2", "--trainer.limit_val_batches=0", f"--runs_dir={folder}"]
    assert main(["fit", "--config", str(path), *small, *options]) == 0
    run = folder / path.stem / "version_0"
    assert (run / "checkpoints" / "last.ckpt").is_file() and (run / "config.yaml").is_file()


@pytest.mark.parametrize("path", RUNNABLE, ids=lambda p: p.stem)
def test_the_readme_runs_it(path):  # for two steps: test_readme
    assert f"sinelr fit --config configs/{path.name}\n" in (ROOT / "README.md").read_text()


def test_cifar10_runs_two_steps_on_files_of_its_format(monkeypatch, tmp_path):
    write_cifar10(tmp_path, monkeypatch)
    monkeypatch.setattr("torchvision.datasets.CIFAR10.download", lambda self: None)
    options = ["--data.root", str(tmp_path), "--data.batch_size=4", "--data.workers=1"]
    takes_two_steps(ROOT / "configs" / "classification_cifar10.yaml", tmp_path, *options)


def test_what_cannot_be_downloaded_is_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("https_proxy", "http://localhost:9")
    path = ROOT / "configs" / "classification_cifar100.yaml"
    assert main(["fit", "--config", str(path), "--data.root", str(tmp_path), f"--runs_dir={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert f"error: {tmp_path}: the files of CIFAR100 are expected in this folder" in error
    assert "cannot be downloaded" in error and "Traceback" not in error


def test_a_folder_of_images_runs_two_steps(monkeypatch, tmp_path):
    root = fill(tmp_path / "images", cat=5, dog=5)
    options = ["--data.root", str(root), "--data.batch_size=2", "--data.workers=0", "--model.classes=2"]
    smaller = ["--data.image_size=32", '--model.network_args={"image_size": 32}', "--model.linear.rank=4"]
    scratch = ["--model.pretrained=false", "--model.init=fresh"]
    path = ROOT / "configs" / "classification_imagefolder.yaml"
    takes_two_steps(path, tmp_path, *options, *smaller, *scratch)

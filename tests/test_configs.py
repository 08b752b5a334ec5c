"""Every configuration that ships is read; those that can run here run for two steps."""

from pathlib import Path

import pytest
import yaml

from sinelr_lightning.cli import main

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
RUNNABLE = [path for path in CONFIGS if path.parent.name == "configs"]
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


@pytest.mark.parametrize("path", RUNNABLE, ids=lambda p: p.stem)
def test_it_runs_two_steps(path, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    small = ["--trainer.max_steps=2", "--trainer.limit_val_batches=0", f"--runs_dir={tmp_path}"]
    assert main(["fit", "--config", str(path), *small]) == 0
    run = tmp_path / path.stem / "version_0"
    assert (run / "checkpoints" / "last.ckpt").is_file() and (run / "config.yaml").is_file()

import io
import json

import lightning.pytorch as L
import pytest
import torch
from rich.console import Console
from toy import ToyData, ToyTask

from sinelr_lightning.callbacks import Report


def trainer(folder, report, **options):
    return L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False,
        enable_model_summary=False, default_root_dir=folder, callbacks=[report], **{"max_steps": 30, **options},
    )  # fmt: skip


@pytest.fixture
def report():
    report = Report()
    report.console = Console(file=io.StringIO(), width=40)
    return report


def test_figures_and_protocol_are_written_and_told(tmp_path, report):
    run, task = trainer(tmp_path, report), ToyTask()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()  # there is something to work on
    run.fit(task, ToyData())
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    fit = metrics["fit"]
    assert fit["steps"] == 30 and fit["last"]["step"] == 30 and fit["best"]["step"] in (10, 20, 30)
    assert fit["best"]["val/error"] <= fit["last"]["val/error"]
    assert fit["last"]["val/error"] == pytest.approx(sum(s["error"] for s in fit["samples"].values()) / 5)
    assert metrics["model"] == {"parameters": 53, "dense_parameters": 121, "compression": 53 / 121}
    assert metrics["protocol"]["function"] == "sine"
    assert metrics["protocol"]["versions"]["torch"] == torch.__version__

    text = report.console.file.getvalue()
    assert "53 parameters, 43.80% of the dense model's 121" in text
    assert f"run folder {tmp_path}" in text and f"sinelr test --ckpt_path {tmp_path}" in text
    assert text.index("best: val/error") < text.index("last: val/error")


def test_each_command_keeps_the_figures_of_the_others(tmp_path, report):
    run, task = trainer(tmp_path, report, max_steps=10), ToyTask()
    run.fit(task, ToyData())
    run.validate(task, ToyData(), verbose=False)
    run.test(task, ToyData(), verbose=False)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert {"fit", "validate", "test", "model", "protocol"} == set(metrics)
    assert metrics["validate"]["val/error"] == pytest.approx(metrics["fit"]["last"]["val/error"])
    assert len(metrics["test"]["samples"]) == 5


def test_the_best_and_the_seconds_outlive_a_stop(tmp_path, report):
    report.best, report.best_step, report.seconds = {"val/error": 0.0}, 7, 100.0
    again = Report()
    again.load_state_dict(report.state_dict())
    again.console = report.console
    trainer(tmp_path, again).fit(ToyTask(), ToyData())
    fit = json.loads((tmp_path / "metrics.json").read_text())["fit"]
    assert fit["best"] == {"val/error": 0.0, "step": 7}
    assert fit["seconds"] >= 100


def test_a_trial_of_a_few_steps_writes_nothing(tmp_path, report):
    trainer(tmp_path, report, fast_dev_run=2).fit(ToyTask(), ToyData())
    assert not (tmp_path / "metrics.json").exists()

"""Runs that were stopped, killed or requeued go on through the command line as if nothing had happened."""

import logging
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from toy import Killed
from toy_runs import SINELR, TOY, distance, environment, fit, saving, traced, weights

from sinelr_lightning.cli import main

# Every seventh step, across epochs of ten: most epochs end without a validation.
ODD_VALIDATIONS = ["--trainer.val_check_interval", "7", "--trainer.check_val_every_n_epoch", "null"]


@pytest.mark.parametrize(
    ("die", "minutes", "options"),
    [
        ("train 14", 0, []),  # in mid-epoch, saved by the clock
        ("train 26", 60, []),  # saved by the validation at an epoch's end
        ("train 24", 60, ODD_VALIDATIONS),
        ("train 11", 0, ODD_VALIDATIONS),
        ("train 22", 0, ["--trainer.limit_val_batches", "0"]),  # the clock at the end of an epoch
        ("train 14", 0, ["--trainer.max_steps", "-1", "--trainer.max_epochs", "3"]),
        ("train 12", 0, ["--trainer.accumulate_grad_batches", "2", "--trainer.max_steps", "18"]),
    ],
)  # fmt: skip
def test_a_killed_run_goes_on_as_if_nothing_had_happened(home, die, minutes, options):
    assert fit("--name", "whole", *options, *traced("whole.txt")) == 0
    with pytest.raises(Killed):
        fit("--name", "cut", *options, *traced("first.txt", die=die), *saving(minutes))
    assert fit("--name", "cut", "--ckpt_path", "last", *options, *traced("second.txt"), *saving(minutes)) == 0
    assert [path.name for path in (home / "runs/cut").iterdir()] == ["version_0"]
    assert distance(weights("runs/whole/version_0"), weights("runs/cut/version_0")) <= 1e-7
    # Every loss, learning rate, validation and epoch after the stop is that of the uninterrupted run.
    whole, second = Path("whole.txt").read_text().splitlines(), Path("second.txt").read_text().splitlines()
    assert 3 < len(second) < len(whole)
    assert second == whole[len(whole) - len(second) :]


@pytest.mark.parametrize(("stop", "options"), [("train 14", []), ("train 20", []), ("train 20", ODD_VALIDATIONS)])
def test_a_run_told_to_stop_saves_between_two_steps_and_goes_on(home, stop, options, capfd):
    assert fit("--name", "whole", *traced("whole.txt"), *options) == 0
    assert fit("--name", "cut", *traced("first.txt", stop=stop), *options) == 143
    assert "stopped; go on with: sinelr fit --ckpt_path runs/cut/version_0" in capfd.readouterr().err
    assert main(["fit", "--ckpt_path", "runs/cut", *traced("second.txt")]) == 0
    first, second = Path("first.txt").read_text(), Path("second.txt").read_text()
    both = [line for line in (first + second).splitlines() if not line.startswith("epoch")]
    assert both == [line for line in Path("whole.txt").read_text().splitlines() if not line.startswith("epoch")]
    assert second.splitlines()[-1] == Path("whole.txt").read_text().splitlines()[-1], "the epochs are counted right"
    assert distance(weights("runs/whole/version_0"), weights("runs/cut/version_0")) <= 1e-7


def test_sigkill_and_ctrl_c_from_outside(home, capfd):
    """The real thing, with the console script: SIGKILL in mid-epoch, then Ctrl-C, then on to the end."""
    assert fit("--name", "whole") == 0
    command = [SINELR, "fit", "--config", "toy.yaml", "--name", "cut", "--data.slow", "0.05"]

    def start(trace, *options):
        return subprocess.Popen(
            [*command, *traced(trace), *saving(0), *options], env=environment(), stderr=subprocess.PIPE
        )

    def wait_for(trace, event):
        for _ in range(600):
            if Path(trace).exists() and event in Path(trace).read_text():
                return
            time.sleep(0.05)
        raise AssertionError(f"{event} never came")

    first = start("first.txt")
    wait_for("first.txt", "train 13")
    first.kill()
    assert first.wait() == -signal.SIGKILL
    second = start("second.txt", "--ckpt_path", "last")
    wait_for("second.txt", "train 17")
    second.send_signal(signal.SIGINT)
    error = second.communicate()[1].decode()
    assert second.returncode == 130, error
    assert "go on with: sinelr fit --ckpt_path runs/cut/version_0" in error
    assert "Traceback" not in error
    assert main(["fit", "--ckpt_path", "runs/cut/version_0", "--data.slow", "0"]) == 0
    assert distance(weights("runs/whole/version_0"), weights("runs/cut/version_0")) <= 1e-7


def test_the_command_line_beats_the_checkpoint_and_says_so(home, caplog):
    caplog.set_level(logging.INFO)
    assert fit("--trainer.max_steps", "10", "--model.width", "6", "--model.schedule.kind", "constant") == 0
    caplog.clear()
    more = ["--trainer.max_steps", "12", "--model.optimizer.lr", "0.002"]
    assert main(["fit", "--ckpt_path", "last", "--name", "toy", *more]) == 0
    told = [record.getMessage() for record in caplog.records]
    assert "model.optimizer.lr is 0.002 (0.01 in the checkpoint)" in told
    assert "trainer.max_steps is 12 (10 in the checkpoint)" in told
    assert not any("width" in line for line in told), "what is as in the checkpoint is not told"
    run = home / "runs/toy/version_0"
    checkpoint = weights(run)
    assert checkpoint["hyper_parameters"]["width"] == 6, "the checkpoint beats the default"
    assert checkpoint["global_step"] == 12
    rates = {group["lr"] for group in checkpoint["optimizer_states"][0]["param_groups"]}
    assert rates == {0.002}, "the optimiser's own saved settings must not win"
    # What was in force before is kept beside what is now.
    assert yaml.safe_load((run / "config.yaml").read_text())["trainer"]["max_steps"] == 12
    assert yaml.safe_load((run / "config_until_step_10.yaml").read_text())["trainer"]["max_steps"] == 10


def test_the_users_file_beats_the_checkpoint(home):
    assert fit("--trainer.max_steps", "10", "--model.optimizer.lr", "0.5") == 0
    (home / "toy.yaml").write_text(TOY.replace("max_steps: 35", "max_steps: 12"))
    assert fit("--ckpt_path", "last") == 0
    checkpoint = weights("runs/toy/version_0")
    assert checkpoint["global_step"] == 12
    assert checkpoint["hyper_parameters"]["optimizer"]["init_args"]["lr"] == 0.5, "checkpoint over default"


def test_last_is_looked_for_in_earlier_versions_and_other_checkpoints_start_a_new_one(home, caplog):
    caplog.set_level(logging.INFO)
    assert fit("--trainer.max_steps", "15") == 0
    (home / "runs/toy/version_1").mkdir()  # begun, and nothing saved
    caplog.clear()
    assert fit("--ckpt_path", "last", "--trainer.max_steps", "16") == 0
    assert "checkpoint runs/toy/version_0/checkpoints/last.ckpt" in caplog.text
    assert weights("runs/toy/version_0")["global_step"] == 16
    # From `best` a second branch is trained; what lies in version_0 stays.
    assert fit("--ckpt_path", "best", "--trainer.max_steps", "12") == 0
    assert weights("runs/toy/version_2")["global_step"] == 12
    assert weights("runs/toy/version_0")["global_step"] == 16


def test_another_architecture_stops_before_training(home, capsys):
    assert fit("--trainer.max_steps", "10") == 0
    before = (home / "runs/toy/version_0/config.yaml").read_text()
    assert fit("--ckpt_path", "last", "--model.linear.rank", "2") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "network.0.U is [8, 1] there, [8, 2] here" in error and "'rank': 1" in error
    # The factors of a sine fit into low-rank layers, but are no weights of theirs.
    assert fit("--ckpt_path", "last", "--model.linear", "LowRank") == 2
    assert "linear is SineLowRank there, LowRank here" in capsys.readouterr().err
    assert main(["test", "--ckpt_path", "runs/toy", "--model.linear", "LowRank", "--model.linear.rank", "1"]) == 2
    assert (home / "runs/toy/version_0/config.yaml").read_text() == before
    assert weights("runs/toy/version_0")["global_step"] == 10


def test_a_run_at_its_end_says_so_and_keeps_its_figures(home, capfd):
    assert fit("--trainer.max_steps", "10") == 0
    run = home / "runs/toy/version_0"
    before = [(run / name).read_text() for name in ("config.yaml", "metrics.json")]
    capfd.readouterr()
    assert fit("--ckpt_path", "last", "--trainer.max_steps", "5") == 0
    assert "nothing to train: the run is at step 10, its end" in capfd.readouterr().out
    assert [(run / name).read_text() for name in ("config.yaml", "metrics.json")] == before


def test_nan_stops_with_the_step_and_keeps_the_last_good_state(home, capsys):
    assert fit("--model.poison_step", "14") == 2
    assert "error: the loss is NaN or infinite at step 15" in capsys.readouterr().err
    assert weights("runs/toy/version_0")["global_step"] == 10


def test_a_requeued_job_goes_on_in_its_folder(home, monkeypatch):
    for key, value in {"NNODES": "1", "NTASKS": "1", "NTASKS_PER_NODE": "1", "JOB_ID": "77", "JOB_NAME": "x",
                       "PROCID": "0", "LOCALID": "0", "NODEID": "0"}.items():  # fmt: skip
        monkeypatch.setenv(f"SLURM_{key}", value)
    with pytest.raises(Killed):
        fit(*traced("first.txt", die="train 14"), *saving(0))
    assert fit(*traced("second.txt"), *saving(0)) == 0, "the same command, started again"
    assert [path.name for path in (home / "runs/toy").iterdir()] == ["version_77"]
    assert Path("second.txt").read_text().startswith("train 14 ")


def test_a_requeued_job_that_had_saved_nothing_begins_again_in_its_folder(home, monkeypatch):
    for key, value in {"NNODES": "1", "NTASKS": "1", "NTASKS_PER_NODE": "1", "JOB_ID": "78", "JOB_NAME": "x",
                       "PROCID": "0", "LOCALID": "0", "NODEID": "0"}.items():  # fmt: skip
        monkeypatch.setenv(f"SLURM_{key}", value)
    with pytest.raises(Killed):
        fit(*traced("first.txt", die="train 4"))
    assert (home / "runs/toy/version_78/config.yaml").is_file()
    assert fit("--trainer.max_steps", "12") == 0
    assert weights("runs/toy/version_78")["global_step"] == 12

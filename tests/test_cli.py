"""The `sinelr` command from outside: help, mistakes, run folders, resuming, Lightning's traps."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from toy import Killed

from sinelr_lightning.cli import LIGHTNING_VERBS, VERBS, main, near

TESTS = Path(__file__).parent
SINELR = str(Path(sys.executable).with_name("sinelr"))

# Every seventh step, across epochs of ten: most epochs end without a validation.
ODD_VALIDATIONS = ["--trainer.val_check_interval", "7", "--trainer.check_val_every_n_epoch", "null"]

TOY = """\
model:
  class_path: toy.ToyTask
data:
  class_path: toy.ToyData
trainer:
  accelerator: cpu
  max_steps: 35
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty folder with toy.yaml in it, as the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.yaml").write_text(TOY)
    return tmp_path


def fit(*options):
    return main(["fit", "--config", "toy.yaml", *options])


def weights(run):
    return torch.load(Path(run) / "checkpoints" / "last.ckpt", weights_only=True)


def distance(one, other):
    return max(float((one["state_dict"][k] - other["state_dict"][k]).abs().max()) for k in one["state_dict"])


def traced(file, die="", stop=""):
    return [
        "--trainer.callbacks=toy.Trace", f"--trainer.callbacks.file={file}",
        f"--trainer.callbacks.die={die}", f"--trainer.callbacks.stop={stop}",
    ]  # fmt: skip


def saving(minutes):
    return [
        "--trainer.callbacks+=sinelr_lightning.callbacks.Checkpoint",
        f"--trainer.callbacks.every_minutes={minutes}",
    ]


def environment():
    return {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}


# -- help and mistakes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--help"], ["render", "--help"]])
def test_help_imports_nothing_heavy(arguments):
    code = (
        "import sys; from sinelr_lightning.cli import main; code = main(sys.argv[1:]);"
        "print([m for m in ('torch', 'lightning') if m in sys.modules], code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[] 0", done.stdout
    if arguments == ["--help"]:
        assert all(verb in done.stdout for verb in [*LIGHTNING_VERBS, *VERBS])
    else:
        assert "--ckpt_path" in done.stdout and "--out" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("fti", "unknown command 'fti', did you mean fit?"),
        ("--verson", "unknown option --verson, did you mean --version?"),
        ("render --ckpt_pth x", "unknown option --ckpt_pth, did you mean --ckpt_path"),
        ("fit", "--data, --model missing: give a configuration, --config FILE"),
        ("fit --config nope.yaml", "--config nope.yaml: No such file or directory"),
        ("fit --config broken.yaml", "broken.yaml is not readable YAML"),
        ("fit --config list.yaml", "list.yaml holds no keys"),
        ("fit --config toy.yaml --trainer.max_step 3", "option --trainer.max_step, did you mean --trainer.max_steps"),
        ("fit --config toy.yaml --model.linar LowRank", "model: ToyTask has no key 'linar', did you mean linear?"),
        ("fit --config toy.yaml --model.linear.rnk 3", "SineLowRank has no key 'rnk', did you mean rank?"),
        ("fit --config toy.yaml --model.linear LowRnk", "model.linear: unknown class 'LowRnk', did you mean LowRank"),
        ("fit --config toy.yaml --model ToyTsk", "model: unknown class 'ToyTsk', did you mean ToyTask"),
        ("fit --config toy.yaml --model.width wide", "model.width: expected int. Got value: wide"),
        ("fit --config toy.yaml --model.schedule.kind step", "model.schedule.kind: expected one of ['constant'"),
        ("fit --config key.yaml", "no key 'trainer.max_step', did you mean trainer.max_steps"),
        ("fit --config top.yaml", "no key 'modle', did you mean model?"),
        ("fit --config inner.yaml", "model: ToyTask has no key 'widht', did you mean width?"),
        ("fit --config factory.yaml", "model.linear: SineLowRank has no key 'rnk', did you mean rank?"),
        ("fit --config group.yaml", "schedule has no key 'kid', did you mean kind?"),
        ("fit --config toy.yaml --model.linear LowRank --model.linear.rank 99", "rank 99 is not below min("),
        ("fit --config toy.yaml --data.held_out 0", "there is no sample to evaluate"),
        ("fit --config toy.yaml --ckpt_path last", "searched runs/toy/version_*/checkpoints/last.ckpt"),
        ("fit --ckpt_path nowhere", "checkpoint nowhere does not exist"),
        ("test --ckpt_path empty", "no checkpoint found, searched best.ckpt or last.ckpt in empty/checkpoints"),
        ("fit --config toy.yaml --trainer.max_epochs -5 --trainer.max_steps -1", "max_epochs"),
        ("fit toy.yaml", "'toy.yaml' belongs to no option, did you mean --config toy.yaml?"),
        ("-v", "unknown option -v, choose one of --help, --version"),
        ("fit --config toy.yaml --model.schedule cosine", "model.schedule: 'cosine' is no file; its keys are given"),
        ("fit --config toy.yaml --model.optimizer Adm", "model.optimizer: unknown class 'Adm', did you mean Adam"),
        ("fit --config toy.yaml --model.optimizer.lrr 1", "model.optimizer: Adam has no key 'lrr', did you mean lr?"),
        ("fit --config toy.yaml --model.optimizer.lr fast", "model.optimizer.lr: expected float. Got value: fast"),
        ("fit --config toy.yaml --model.linear.frequency x", "frequency: expected float or one of ['auto']."),
        ("fit --config toy.yaml --seed_everything x", "seed_everything: expected bool or int. Got value: x"),
        ("fit --config toy.yaml --trainer.precision bf17", "'bf16-mixed', '32-true', '64-true'] or one of ['64'"),
        ("fit --config toy.yaml --trainer.devices x", "`devices` selected with `CPUAccelerator` should be"),
        ("fit --config toy.yaml --trainer.default_root_dir out", "default_root_dir is not used: a run lives in"),
        ("fit --config toy.yaml --runs_dir toy.yaml", "run folder toy.yaml/toy/version_0 cannot be made: Not a dir"),
        ("fit --config toy.yaml --ckpt_path=", "--ckpt_path is empty: give a file, a run folder"),
        ("fit --config toy.yaml --ckpt_path toy.yaml", "toy.yaml is not a readable checkpoint: it is of"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_leaves_nothing(home, capsys, arguments, message):
    for name, text in {
        "broken.yaml": "model: A\n data: [",
        "list.yaml": "- model",
        "key.yaml": "model: toy.ToyTask\ndata: toy.ToyData\ntrainer: {max_step: 3}",
        "top.yaml": "modle: toy.ToyTask\ndata: toy.ToyData",
        "inner.yaml": "model: {class_path: toy.ToyTask, init_args: {widht: 3}}\ndata: toy.ToyData",
        "group.yaml": "model: {class_path: toy.ToyTask, init_args: {schedule: {kid: cosine}}}\ndata: toy.ToyData",
        "factory.yaml": "model: {class_path: toy.ToyTask, init_args: {linear: {class_path: SineLowRank, init_args: "
        "{rnk: 2}}}}\ndata: toy.ToyData",
    }.items():
        (home / name).write_text(text)
    (home / "empty").mkdir()
    assert main(arguments.split()) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert error[-1].startswith("error: ") and message in error[-1], error
    assert not any("Traceback" in line for line in error)
    assert not list(home.glob("runs/*/*"))


def test_near_names():
    assert near("fitt", ["fit", "test"]) == ", did you mean fit?"
    assert near("xyz", ["fit", "test"]) == ", choose one of fit, test"
    assert near("xyz", [str(n) for n in range(40)]) == ""


# -- a run and its folder --------------------------------------------------------------------------------------------


def test_a_run_has_its_folder_and_closing_words(home, capfd):
    assert fit("--model.linear", "LowRank", "--model.linear.rank", "2") == 0
    run = home / "runs/toy/version_0"
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["init_args"]["linear"]["init_args"] == {"rank": 2, "spectral": False}
    assert config["name"] == "toy" and config["seed_everything"] == 0
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert list(run.glob("events.*"))
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["protocol"]["seed"] == 0 and metrics["fit"]["steps"] == 35
    out, err = capfd.readouterr()
    assert "run folder runs/toy/version_0" in out and "tensorboard --logdir runs/toy/version_0" in out
    for noise in ("Tip", "GPU available", "Warning", "deprecated", "hp_metric", "┏"):
        assert noise not in out + err
    assert weights(run)["hyper_parameters"]["_class_path"] == "toy.ToyTask"

    # A new fit is a new version; the same seed gives the same weights.
    assert fit("--model.linear", "LowRank", "--model.linear.rank", "2") == 0
    assert distance(weights(run), weights(home / "runs/toy/version_1")) == 0

    # From a folder alone: every argument is known, the best checkpoint is taken, the figures join the others.
    for verb in ("validate", "test", "predict"):
        assert main([verb, "--ckpt_path", str(run)]) == 0
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["validate"]["checkpoint"].endswith("best.ckpt")
    assert metrics["validate"]["val/error"] == pytest.approx(metrics["fit"]["best"]["val/error"])
    assert {"fit", "validate", "test"} <= set(metrics)
    assert {path.name for path in (home / "runs/toy").iterdir()} == {"version_0", "version_1"}
    assert yaml.safe_load((run / "config.yaml").read_text()) == config

    # A file moved away from its folder is enough where the data has defaults.
    shutil.copy(run / "checkpoints/last.ckpt", home / "moved.ckpt")
    assert main(["test", "--ckpt_path", "moved.ckpt", "--data", "toy.ToyData", "--trainer.accelerator", "cpu"]) == 0


def test_ours_step_back_where_the_user_names_his_own(home, capfd):
    off = [
        "--trainer.enable_checkpointing",
        "false",
        "--trainer.enable_progress_bar",
        "false",
        "--trainer.logger",
        "false",
    ]
    assert fit("--trainer.max_steps", "3", *off) == 0
    run = home / "runs/toy/version_0"
    assert {path.name for path in run.iterdir()} == {"config.yaml", "metrics.json"}
    assert "--ckpt_path" not in capfd.readouterr().out, "no command is shown that has no checkpoint to work on"
    own = "--trainer.callbacks=lightning.pytorch.callbacks.ModelCheckpoint"
    assert fit("--trainer.max_steps", "10", own, "--name", "other", "--runs_dir", "elsewhere") == 0
    run = home / "elsewhere/other/version_0"
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["epoch=0-step=10.ckpt"]


@pytest.mark.parametrize(
    "logger",
    [["toy.Silent"], ["CSVLogger", "--trainer.logger.save_dir", "logs"]],
    ids=["no folder", "its own folder"],
)
def test_with_another_logger_the_run_stays_in_its_folder(home, logger):
    assert fit("--trainer.max_steps", "10", "--trainer.logger", *logger) == 0
    kept = {path.name for path in (home / "runs/toy/version_0").iterdir()}
    assert kept == {"config.yaml", "metrics.json", "checkpoints"}
    assert main(["test", "--ckpt_path", "runs/toy"]) == 0


def test_two_runs_that_begin_at_the_same_moment_get_two_folders(home):
    command = [SINELR, "fit", "--config", "toy.yaml", "--trainer.max_steps", "10"]
    started = [subprocess.Popen(command, env=environment()) for _ in range(2)]
    assert [process.wait(timeout=120) for process in started] == [0, 0]
    for version in (0, 1):
        assert len(list((home / f"runs/toy/version_{version}").glob("events.*"))) == 1
        assert weights(home / f"runs/toy/version_{version}")["global_step"] == 10


def test_a_trial_leaves_nothing(home):
    assert fit("--trainer.fast_dev_run", "true") == 0
    assert not (home / "runs").exists()


# -- going on --------------------------------------------------------------------------------------------------------


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


# -- several processes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("launcher", ["script", "torchrun"])
def test_two_ranks_with_half_the_batch_follow_one_with_the_whole(home, launcher):
    assert fit("--name", "one", "--trainer.max_steps", "20") == 0
    if launcher == "torchrun":
        torchrun = str(Path(sys.executable).with_name("torchrun"))
        start = [torchrun, "--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", SINELR]
    else:
        start = [SINELR]
    done = subprocess.run(
        [*start, "fit", "--config", "toy.yaml", "--name", "two", "--trainer.max_steps", "20",
         "--trainer.devices", "2", "--trainer.strategy", "ddp"],
        env=environment(), capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (home / "runs/two").iterdir()] == ["version_0"]
    assert distance(weights("runs/one/version_0"), weights("runs/two/version_0")) <= 1e-6
    one, two = (json.loads((home / f"runs/{name}/version_0/metrics.json").read_text()) for name in ("one", "two"))
    assert two["protocol"]["devices"] == 2
    assert list(two["fit"]["samples"]) == ["0", "1", "2", "3", "4"], "each of the odd number once"
    assert two["fit"]["last"]["val/error"] == pytest.approx(one["fit"]["last"]["val/error"], abs=1e-6)
    assert done.stdout.count("run folder") == 2, "told by one rank: at the start and at the end"


def test_one_checkpoint_measured_by_two_ranks_gives_every_digit_of_one(home):
    assert fit("--trainer.max_steps", "10") == 0
    command = [sys.executable, "-m", "sinelr_lightning", "test", "--ckpt_path", "runs/toy"]
    command += ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    metrics = Path("runs/toy/version_0/metrics.json")
    two = json.loads(metrics.read_text())["test"]
    assert main(["test", "--ckpt_path", "runs/toy", "--trainer.devices", "1", "--trainer.strategy", "auto"]) == 0
    assert json.loads(metrics.read_text())["test"] == two


def test_a_job_that_does_not_agree_with_slurm_stops_before_it_hangs(home, monkeypatch, capsys):
    for key, value in {"NNODES": "2", "NTASKS": "4", "NTASKS_PER_NODE": "2", "JOB_ID": "77", "JOB_NAME": "x"}.items():
        monkeypatch.setenv(f"SLURM_{key}", value)
    assert fit("--trainer.num_nodes", "1", "--trainer.devices", "2") == 2
    assert "trainer.num_nodes is 1 but SLURM gave 2 nodes" in capsys.readouterr().err


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

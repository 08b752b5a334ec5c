"""The `sinelr` command from outside: help, mistakes, run folders, several processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from toy_runs import SINELR, distance, environment, fit, weights

from sinelr_lightning.cli import LIGHTNING_VERBS, VERBS, main, near
from sinelr_lightning.files import atomic_path

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


def write_and_stop(out: str) -> None:
    """Stand for a verb of our own that SIGTERM meets while it writes."""
    with atomic_path(out) as temporary:
        temporary.write_text("half")
        os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_ends_a_verb_of_our_own_without_leftovers(home, monkeypatch):
    monkeypatch.setitem(VERBS, "mesh", ("test_cli:write_and_stop", ""))
    before, files = signal.getsignal(signal.SIGTERM), sorted(home.iterdir())
    with pytest.raises(SystemExit) as stopped:
        main(["mesh", "--out", "a.txt"])
    assert stopped.value.code == 143 and sorted(home.iterdir()) == files
    assert signal.getsignal(signal.SIGTERM) is before


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

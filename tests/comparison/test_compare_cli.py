"""`sinelr compare` on the toy task, with real runs: killed and gone on, and its mistakes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

pytest.importorskip("optuna")

from sinelr_lightning.cli import main
from sinelr_lightning.commands.compare import _settings
from sinelr_lightning.comparison.plan import Case, Plan
from sinelr_lightning.comparison.queue import Queue

TESTS = Path(__file__).parents[1]
TOY = """\
model:
  class_path: toy.ToyTask
  init_args:
    optimizer: {class_path: torch.optim.Adam, init_args: {lr: 0.01}}
data:
  class_path: toy.ToyData
  init_args: {slow: 0.02}
trainer:
  accelerator: cpu
  max_steps: 20
"""
COMMAND = ["compare", "--config", "toy.yaml", "--linear", "SineLowRank,Dense", "--rank", "1", "--seeds", "1"]


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "toy.yaml").write_text(TOY)
    return tmp_path


def figures(text: str) -> list[list[str]]:
    """The table without its seconds."""
    return [line.split("|")[1:-2] for line in text.splitlines() if line.startswith("| ")]


def test_killed_and_gone_on_it_gives_the_same_table(home):
    whole = [*COMMAND, "--lrs", "0.01", "--linear", "SineLowRank:balanced=true"]
    assert main([*whole, "--out", "whole"]) == 0
    process = subprocess.Popen([sys.executable, "-m", "sinelr_lightning", *whole, "--out", "killed"])
    while not list((home / "killed").glob("runs/*/version_0/checkpoints/last.ckpt")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert main([*whole, "--out", "killed"]) == 0
    tables = [figures((home / out / "compare.md").read_text()) for out in ("whole", "killed")]
    assert tables[0] == tables[1] and [row[0].strip() for row in tables[0][1:]] == ["SineLowRank:balanced=true"]
    for name in ("compare.csv", "compare.png"):
        assert (home / "killed" / name).stat().st_size > 100
    assert list((home / "killed" / "tensorboard").glob("*/events*"))
    (run,) = (home / "whole" / "runs").iterdir()
    assert run.name == "SineLowRank_balanced_true_k1_lr0.01_seed0"
    layers = yaml.safe_load((run / "version_0" / "config.yaml").read_text())["model"]["init_args"]["linear"]
    assert layers["init_args"] | {"rank": 1, "balanced": True} == layers["init_args"]


FOREVER = [*COMMAND, "--lrs", "0.01", "--linear", "Dense", "--steps", "1000000"]


def begun(home: Path) -> tuple[subprocess.Popen, int]:
    """A comparison whose run has saved something, and the process that trains it."""
    process = subprocess.Popen([sys.executable, "-m", "sinelr_lightning", *FOREVER])
    while not list(home.glob("comparison/runs/*/version_0/checkpoints/last.ckpt")):
        assert process.poll() is None
        time.sleep(0.05)
    return process, int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])


def lives(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


PARENT = """
import sys
from pathlib import Path
from sinelr_lightning.commands.compare import _logged
child = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
_logged([sys.executable, "-c", child], Path("log"), print)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a child dies with its parent on Linux alone")
def test_killed_it_takes_its_run_along(home):
    process = subprocess.Popen([sys.executable, "-c", PARENT])
    while not ((home / "log").is_file() and (home / "log").read_text().endswith("\n")):
        assert process.poll() is None
        time.sleep(0.05)
    child = int((home / "log").read_text())
    assert lives(child)
    process.kill()
    process.wait()
    until = time.monotonic() + 20
    while lives(child) and time.monotonic() < until:
        time.sleep(0.05)
    assert not lives(child)


@pytest.mark.skipif(sys.platform != "linux", reason="looks the child up in /proc")
def test_sigterm_stops_the_run_and_gives_it_back(home):
    process, child = begun(home)
    process.terminate()
    assert process.wait(60) == 143
    assert not lives(child)
    log = (home / "comparison/logs/Dense_lr0.01_seed0.log").read_text()
    assert "stopped; go on with: sinelr fit --ckpt_path" in log  # it ended by itself, and saved
    plan = json.loads((home / "comparison/claims/plan.json").read_text())
    assert plan["steps"] == 1_000_000


def test_a_budget_in_seconds_with_a_schedule_that_needs_an_end(home):
    (home / "toy.yaml").write_text(TOY + "  max_epochs: 1\n")  # cosine is the toy's own
    plan = Plan((Case("Dense", None),), (0.01,), (0,), "val/error", "min", "toy.yaml", seconds=1)
    assert main(["fit", *_settings(plan.wanted({})[0], plan, home)]) == 0
    version = home / "runs/Dense_lr0.01_seed0/version_0"
    trainer = yaml.safe_load((version / "config.yaml").read_text())["trainer"]
    assert (trainer["max_time"], trainer["max_steps"], trainer["max_epochs"]) == ("00:00:00:01", -1, -1)
    assert json.loads((version / "metrics.json").read_text())["fit"]["steps"] >= 1


def test_a_configuration_that_is_edited(home, capsys, monkeypatch):
    monkeypatch.setattr("sinelr_lightning.commands.compare._train", lambda *_: (1.0, {}))
    assert main(COMMAND) == 0
    (home / "toy.yaml").write_text(TOY.replace("max_steps: 20", "max_steps: 30"))
    for options in ([], ["--storage", "sqlite:///new.db"]):
        assert main([*COMMAND, *options]) == 2
        assert "toy.yaml has changed since comparison" in capsys.readouterr().err


def test_a_configuration_that_is_edited_while_it_runs(home, capsys, monkeypatch):
    def edited(*_):
        (home / "toy.yaml").write_text(TOY + "# more\n")
        return Queue.next(*_)

    class Edited(Queue):
        next = edited

    monkeypatch.setattr("sinelr_lightning.commands.compare.Queue", Edited)
    assert main([*COMMAND, "--lrs", "0.01", "--linear", "Dense"]) == 2
    assert "toy.yaml has changed since the comparison began" in capsys.readouterr().err
    assert not (home / "comparison" / "runs").exists()


MINE = """\
import lightning.pytorch as L
import torch
from torch.utils.data import DataLoader, TensorDataset
from sinelr_lightning.layers import LinearFactory


class Net(L.LightningModule):
    def __init__(self, layers: LinearFactory, width: int = 16, lr: float = 0.01):
        super().__init__()
        self.net = torch.nn.Sequential(layers(8, width), torch.nn.ReLU(), torch.nn.Linear(width, 1))
        self.lr = lr

    def training_step(self, batch, batch_idx):
        return (self.net(batch[0]) - batch[1]).square().mean()

    def validation_step(self, batch, batch_idx):
        self.log("held_out", self.training_step(batch, batch_idx))

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.log("loss", outputs["loss"])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), self.lr)


class Data(L.LightningDataModule):
    def setup(self, stage):
        x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
        self.rows = TensorDataset(x, x.sum(1, keepdim=True).sin())

    def train_dataloader(self):
        return DataLoader(self.rows, batch_size=16)

    val_dataloader = train_dataloader
"""
MINE_CONFIG = """\
model: {class_path: mine.Net, init_args: {lr: 0.03}}
data: {class_path: mine.Data}
trainer: {accelerator: cpu, max_steps: 12}
"""


@pytest.fixture
def mine(home, monkeypatch):
    """A LightningModule and data of one's own, that know nothing of sinelr's tasks, in the current folder."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    (home / "mine.py").write_text(MINE)
    (home / "mine.yaml").write_text(MINE_CONFIG)
    places = ["--where", "model.layers", "--where_lr", "model.lr"]
    return ["compare", "--config", "mine.yaml", "--linear", "SineLowRank,FedPara", "--seeds", "1", *places]


def test_a_lightning_module_of_ones_own(mine, home, capsys):
    goal = ["--metric", "held_out", "--mode", "min", "--rank", "3", "--equal", "parameters", "--lrs", "0.02"]
    assert main([*mine, *goal, "--where", "model.layer"]) == 2
    assert "at rank 3 in model.layer: " in capsys.readouterr().err
    assert main([*mine, *goal]) == 0
    rows = figures((home / "comparison" / "compare.md").read_text())
    assert [row[0].strip() for row in rows[1:]] == ["SineLowRank", "FedPara"]
    assert rows[0][4].strip() == "held_out"
    # A layer 8 → 16 and a dense one 16 → 1: rank 3 has 3·24 + 16 + 17 parameters, FedPara of rank 1 48 + 33.
    assert [row[2].strip() for row in rows[1:]] == ["105", "81"]
    assert "lr: 0.02" in (home / "comparison/runs/SineLowRank_k3_lr0.02_seed0/version_0/config.yaml").read_text()


def test_a_lightning_module_that_names_no_metric(mine, home, capsys):
    assert main(mine) == 2
    assert "metric: Net names none as its `monitor`; say what it logs" in capsys.readouterr().err
    # What training logs is no held-out figure.
    assert main([*mine, "--metric", "loss", "--mode", "min", "--rank", "1"]) == 2
    assert "logged no loss; it logged held_out:" in capsys.readouterr().err
    # A third of the configuration's own rate comes first.
    assert [path.name for path in (home / "comparison" / "runs").iterdir()] == ["SineLowRank_k1_lr0.01_seed0"]


def test_a_module_that_cannot_be_imported(mine, home, capsys):
    (home / "mine.py").write_text("def broken(:\n")
    assert main(mine) == 2
    assert "model.class_path mine.Net cannot be imported: invalid syntax" in capsys.readouterr().err


def test_a_lightning_module_is_resumed(mine, home, capsys):
    options = ["--model.layers=Dense", "--runs_dir=runs"]
    assert main(["fit", "--config", "mine.yaml", *options]) == 0
    assert main(["fit", "--ckpt_path", "runs/mine", "--trainer.max_steps=20"]) == 0
    assert (home / "runs" / "mine" / "version_0" / "checkpoints" / "last.ckpt").is_file()
    assert "held_out" in (home / "runs" / "mine" / "version_0" / "metrics.json").read_text()
    assert main(["export", "--ckpt_path", "runs/mine"]) == 2
    assert (
        "holds a model, which is no task of sinelr_lightning: load it by its class's load_from"
        in capsys.readouterr().err
    )
    assert main(["fit", "--config", "mine.yaml", "--model.layer=Dense"]) == 2
    assert "Net has no key 'layer', did you mean layers" in capsys.readouterr().err


def test_equal_parameters(home, capsys):
    # Two layers, 4 → 32 and 32 → 32: low rank 3 has 3·(36 + 64) = 300 parameters, FedPara of rank 1 twice 100.
    options = ["--lrs", "0.01", "--linear", "LowRank,FedPara,Dense", "--rank", "3", "--equal", "parameters"]
    assert main([*COMMAND, *options, "--options", "--model.width=32 --trainer.max_steps=2"]) == 0
    parameters = [row[2].strip() for row in figures(capsys.readouterr().out)[1:]]
    ranks = {path.name.split("_")[0]: path.name.split("_")[1] for path in (home / "comparison" / "runs").iterdir()}
    assert ranks == {"LowRank": "k3", "FedPara": "k1", "Dense": "lr0.01"}
    assert parameters[:2] == ["397", "297"]


def test_a_metric_that_the_run_does_not_log(home, capsys):
    options = ["--lrs", "0.01", "--linear", "Dense", "--metric", "val/psnr", "--mode", "max"]
    assert main([*COMMAND, *options]) == 2
    assert "logged no val/psnr; it logged val/error" in capsys.readouterr().err


def test_a_diverged_run_counts_as_dead_and_a_wrong_option_ends_it(home, capsys):
    dead = ["--lrs", "0.01", "--linear", "Dense", "--options", "--model.poison_step 3"]
    assert main([*COMMAND, *dead, "--out", "dead"]) == 0
    assert "all died" in (home / "dead" / "compare.md").read_text()
    assert main([*COMMAND, "--lrs", "0.01", "--options", "--trainer.max_step 3", "--out", "wrong"]) == 2
    assert "did you mean --trainer.max_steps" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--config", "nowhere.yaml"], "config nowhere.yaml does not exist"),
        (["--linear", "LowRnk"], "linear: unknown method 'LowRnk', did you mean LowRank"),
        (["--linear", "LowRnk:spectral=true"], "linear: unknown method 'LowRnk', did you mean LowRank"),
        (["--linear", "LowRank:spectral"], "linear: 'spectral' in 'LowRank:spectral': give name=value"),
        (["--linear", "LowRank:rank=3"], "linear: 'rank=3' in 'LowRank:rank=3': give name=value; ranks go to --rank"),
        (["--linear", "LowRank:spectrl=true"], "LowRank:spectrl=true at rank 1 in model.linear: "),
        (["--linear", "Dense,Dense"], "name each method once"),
        (["--seeds", "1,1"], "seeds has one twice: 1, 1"),
        (["--rank", "0"], "rank: 0 is below 1"),
        (["--metric", "val/iou"], "mode: say whether more of val/iou is better (max) or less (min)"),
        (["--mode", "best"], "mode must be max or min"),
        (["--equal", "parametrs"], "equal"),
        (["--steps", "0"], "steps must be at least 1, got 0"),
        (["--steps", "-5"], "steps must be at least 1, got -5"),
        (["--seconds", "-1"], "seconds must be at least 1, got -1"),
        (["--seconds", "2.5"], "seconds: expected int. Got value: 2.5"),
        (["--rank", "1,9"], "SineLowRank at rank 9 in model.linear: "),
        (["--where", "model.linea"], "in model.linea: "),
        (["--equal", "parameters", "--rank", "9"], "SineLowRank cannot have rank 9 here"),
        (
            ["--equal", "parameters", "--linear", "Dense,LowRank"],
            "equal parameters: Dense has no rank; name a method",
        ),
        (
            ["--equal", "parameters", "--linear", "LowRank,FedPara"],
            "FedPara has more parameters at rank 1 than LowRank",
        ),
        (
            ["--equal", "parameters", "--where", "linear"],
            "where linear: equal parameters are counted for settings of",
        ),
        (["--steps", "5", "--seconds", "3"], "give steps or seconds, not both"),
        (["--storage", "nosuch://x"], "storage nosuch://x cannot be opened"),
    ],
)
def test_mistakes_are_one_line(options, message, home, capsys):
    assert main([*COMMAND, *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert not (home / "comparison").exists()


def test_a_rate_is_needed(home, capsys):
    (home / "toy.yaml").write_text(TOY.replace("lr: 0.01", "weight_decay: 0.0"))
    assert main(COMMAND) == 2
    assert "the configuration names no model.optimizer.lr above 0: give --lrs" in capsys.readouterr().err

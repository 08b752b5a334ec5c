"""The task of tables: figures by hand, a whole run with prediction and export, and what it refuses."""

import copy
import csv
import json
import re

import pytest
import torch
from toy import quiet_trainer

from sinelr_lightning.cli import main
from sinelr_lightning.datamodules import TableData
from sinelr_lightning.errors import UserError
from sinelr_lightning.layers import Dense, SineLowRank
from sinelr_lightning.models import MLP
from sinelr_lightning.tasks import TabularTask


def test_the_network_standardises_by_itself():
    network = MLP(3, 1, Dense(), depth=1, width=4)
    x, y = torch.randn(50, 3) * torch.tensor([1.0, 100.0, 0.0]) + 7, torch.randn(50, 1) * 20 + 300
    plain = network(torch.zeros(1, 3))
    network.standardise(x, y)
    standard = (x - x.mean(0)) / torch.tensor([*x.std(0, correction=0)[:2], 1.0])
    torch.testing.assert_close(network.out_scale, y.std(0, correction=0))
    bare = MLP(3, 1, Dense(), depth=1, width=4)
    bare.load_state_dict(network.state_dict() | dict(copy.deepcopy(bare).named_buffers()))
    torch.testing.assert_close(network(x), bare(standard) * y.std(correction=0) + y.mean())
    torch.testing.assert_close(network(x.mean(0)[None]), plain * network.out_scale + network.out_mean)


def test_a_constant_column_says_nothing():
    network = MLP(2, 1, Dense(), depth=1, width=4)
    x = torch.stack([torch.full((341,), 0.1), torch.randn(341)], 1)
    network.standardise(x)
    assert network.scale[0] == 1 and network.scale[1] != 1


def test_a_trained_network_keeps_its_standard(tmp_path):
    task = TabularTask(4, 3, width=8, linear=SineLowRank(1))
    quiet_trainer(tmp_path, max_steps=1).fit(task, TableData("iris"))
    mean = task.network.mean.clone()
    quiet_trainer(tmp_path).test(task, TableData("iris", validation_share=0.5), verbose=False)
    assert torch.equal(task.network.mean, mean)
    with pytest.raises(UserError, match="bf16-true rounds a table's numbers: take bf16-mixed"):
        quiet_trainer(tmp_path, precision="bf16-true").test(task, TableData("iris"))


def test_figures_by_hand():
    samples = {0: {"loss": 1.0, "target": 1.0, "guess": 2.0}, 1: {"loss": 3.0, "target": 5.0, "guess": 5.0}}
    assert TabularTask(4, 3).combine(samples) == {"loss": 2.0, "acc": 0.5}
    # Squares: errors 1 and 0, about the mean 4 and 4.
    figures = TabularTask(4, 0).combine(samples)
    assert figures == {"loss": 2.0, "rmse": pytest.approx(0.5**0.5), "r2": pytest.approx(1 - 1 / 8)}
    assert "r2" not in TabularTask(4, 0).combine({0: samples[0]})


@pytest.mark.parametrize(("table", "features", "classes", "least"), [("wine", 13, 3, 0.9), ("diabetes", 10, 0, 0.3)])
def test_it_learns(table, features, classes, least, tmp_path):
    torch.manual_seed(0)
    task = TabularTask(features, classes, SineLowRank(2), width=32, weight_decay=0.1)
    trainer = quiet_trainer(tmp_path, max_steps=150)
    trainer.fit(task, TableData(table, epoch_steps=150))
    (figures,) = trainer.test(task, TableData(table), verbose=False)
    assert figures["test/acc" if classes else "test/r2"] > least
    if not classes:
        assert 40 < figures["test/rmse"] < 70  # in the table's own unit, whose deviation is 77


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    small = ["--trainer.max_steps=60", "--data.epoch_steps=30", "--model.optimizer.lr=3e-3"]
    small += ["--model.width=32", "--model.linear.rank=2"]
    config = ["--config", "configs/tabular_cancer.yaml", f"--runs_dir={folder}", "--trainer.accelerator=cpu"]
    assert main(["fit", *config, *small]) == 0
    return folder / "tabular_cancer" / "version_0"


def test_a_run_is_tested_predicted_and_exported(run, tmp_path, capsys):
    from sklearn.datasets import load_breast_cancer

    assert main(["test", "--ckpt_path", str(run)]) == 0
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["test"]["test/acc"] > 0.85 and metrics["protocol"]["test_rows"] == 113
    table = load_breast_cancer()
    file = tmp_path / "more.csv"
    with file.open("w", newline="") as handle:
        csv.writer(handle).writerows([table.feature_names, *table.data[:50]])
    assert main(["predict", "--ckpt_path", str(run), "--data.predict", str(file)]) == 0
    rows = list(csv.DictReader((run / "predictions.csv").open()))
    assert [int(row["row"]) for row in rows] == list(range(2, 52))  # lines of the file
    right = [row["target"] == table.target_names[label] for row, label in zip(rows, table.target[:50], strict=True)]
    assert sum(right) > 45 and all(0.5 <= float(row["probability"]) <= 1 for row in rows)
    pytest.importorskip("onnx")
    assert main(["export", "--ckpt_path", str(run), "--out", str(tmp_path / "model.safetensors")]) == 0


def test_a_checkpoint_knows_its_table(run, tmp_path, capsys):
    text = "a,b,kind\n" + "".join(f"{i},{i % 3},{'xy'[i % 2]}\n" for i in range(40))
    (tmp_path / "other.csv").write_text(text)
    other = ["--data.table", str(tmp_path / "other.csv")]
    assert main(["test", "--ckpt_path", str(run), *other]) == 2
    assert "the table has 2 features, the model 30: set model.features to 2" in capsys.readouterr().err
    assert main(["test", "--ckpt_path", str(run), *other, "--model.features=2"]) == 2
    assert "the checkpoint is of another architecture" in capsys.readouterr().err
    (tmp_path / "rows.csv").write_text("mean radius,kind\n3,4\n")
    assert main(["predict", "--ckpt_path", str(run), "--data.predict", str(tmp_path / "rows.csv")]) == 2
    assert "rows.csv: has no column 'mean texture'" in capsys.readouterr().err
    config = ["--config", "configs/tabular_cancer.yaml", f"--runs_dir={tmp_path}"]
    assert main(["predict", *config, "--data.predict", str(tmp_path / "rows.csv")]) == 2
    assert "data.predict needs a checkpoint, which knows the columns: give --ckpt_path" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": 0}, "features and depth must be at least 1"),
        ({"classes": 1}, "model.classes must be at least 2, or 0 for a number, got 1"),
        ({"dropout": 1.0}, "model.dropout must be in [0, 1)"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(UserError, match=re.escape(message)):
        TabularTask(**options)


def test_another_number_of_classes(tmp_path):
    with pytest.raises(UserError, match=r"the table has 3 classes, the model 2: set model.classes to 3"):
        quiet_trainer(tmp_path, max_steps=1).fit(TabularTask(13, 2), TableData("wine"))

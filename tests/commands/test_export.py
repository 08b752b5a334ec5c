import inspect
import json
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from toy import ToyTask

import sinelr_lightning
from sinelr_lightning.cli import main
from sinelr_lightning.geometry.mesh_io import CubePlacement
from sinelr_lightning.layers import LowRank, SineLowRank, convert
from sinelr_lightning.runs import load_task
from sinelr_lightning.tasks import OccupancyTask, Task
from sinelr_lightning.tasks.base import ExportParts

PACKAGES = {".pt2": [], ".onnx": ["onnx", "onnxscript", "onnxruntime"], ".safetensors": ["safetensors"]}
every_suffix = pytest.mark.parametrize("suffix", PACKAGES)


class ImageNetwork(nn.Module):
    """Of torch alone: readers take its source."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(32)
        self.attention = nn.MultiheadAttention(32, 2, batch_first=True)
        self.head = nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.patches(x)).relu().flatten(2).transpose(1, 2)
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


class ImageTask(Task):
    """Images [N, 3, 8, 8] → logits [N, 2]: a convolution with rank and gain of its own, a low-rank attention."""

    def __init__(self) -> None:
        super().__init__()
        self.network = ImageNetwork()
        convert(self.network, SineLowRank(3), include=["patches"])
        convert(self.network, LowRank(2), include=["attention.*"])
        factors = {"U": torch.randn(32, 2) / 9, "V": torch.randn(27, 2) / 9, "bias": torch.randn(32)}
        numbers = {"hyper.rank": torch.tensor(2), "hyper.gain": torch.tensor(3.0).double()}
        self.network.patches.load_state_dict({**factors, **numbers})

    def export_parts(self) -> ExportParts:
        metadata = {"class_names": ["cat", "Hündin"], "preprocessing": {"mean": [0.5, 0.5, 0.5], "size": 8}}
        return ExportParts(self.network, torch.randn(2, 3, 8, 8), metadata)


def save(task: Task, path: Path) -> Path:
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_model_summary=False, enable_progress_bar=False)
    trainer.strategy.connect(task)
    trainer.save_checkpoint(path)
    return path


@pytest.fixture
def shape(tmp_path):
    """Checkpoint of an occupancy network."""
    task = OccupancyTask(SineLowRank(2), width=64)
    task.placement, task.source = CubePlacement((1.0, 2.0, 3.0), 4.0), "l.obj"
    return save(task, tmp_path / "shape.ckpt")


@pytest.fixture
def images(tmp_path):
    """Checkpoint of a network for images."""
    task = ImageTask()
    task.network(torch.randn(64, 3, 8, 8) + 1)  # statistics of the normalisation that are not 0 and 1
    return save(task, tmp_path / "images.ckpt")


def require(suffix: str) -> None:
    for package in PACKAGES[suffix]:
        pytest.importorskip(package)


def export(checkpoint: Path, out: Path, *options: str) -> Path:
    assert main(["export", f"--ckpt_path={checkpoint}", f"--out={out}", *options]) == 0
    return out


# Each gives `run(path, x)`, in an interpreter that does not know this package.
READERS = {
    ".pt2": """
import torch
def run(path, x):
    return torch.export.load(path).module()(torch.from_numpy(x)).numpy()
""",
    ".onnx": """
import onnxruntime
def run(path, x):
    return onnxruntime.InferenceSession(path).run(None, {"input": x})[0]
""",
    ".safetensors": """
import json, torch
from safetensors import safe_open
def run(path, x):
    with safe_open(path, "pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}
        layers = json.loads(file.metadata().get("layers", "{}"))
    for name, layer in layers.items():
        values = {**layer, "U": state.pop(f"{name}.U"), "V": state.pop(f"{name}.V"), "sin": torch.sin}
        state[f"{name}.weight"] = eval(layer["formula"].removeprefix("W = "), values).reshape(layer["shape"])
    for name in {name.partition(".first.")[0] for name in state if ".first." in name}:  # the thin form
        state[f"{name}.weight"] = state.pop(f"{name}.second.weight") @ state.pop(f"{name}.first.weight")
        state[f"{name}.bias"] = state.pop(f"{name}.second.bias")
    return network(state, torch.from_numpy(x)).numpy()
""",
}
OCCUPANCY = """
def network(state, h):
    for name in ("first", "hidden.0", "hidden.1"):
        h = torch.exp(-50 * torch.nn.functional.linear(h, state[f"{name}.weight"], state[f"{name}.bias"]) ** 2)
    return (h @ state["head.weight"].T + state["head.bias"])[:, 0]
"""
IMAGES = f"""
from torch import Tensor, nn
{inspect.getsource(ImageNetwork)}
def network(state, x):
    for part in [name for name in state if name.endswith("in_proj.q.weight")]:
        name = part.removesuffix(".q.weight")
        state[f"{{name}}_weight"] = torch.cat([state.pop(f"{{name}}.{{part}}.weight") for part in "qkv"])
    model = ImageNetwork().eval().requires_grad_(False)
    model.load_state_dict(state)
    return model(x)
"""
MAIN = """
import sys
sys.modules["sinelr_lightning"] = None
import numpy as np
%s
x = np.load(sys.argv[1])
for path in sys.argv[2:]:
    np.savez(path + ".npz", *(run(path, x[:rows]) for rows in (1, 7, 20)))
"""


def outputs(paths: list[Path], network: str, x: Tensor) -> list[list[np.ndarray]]:
    """What each file gives for 1, 7 and 20 rows, to a reader that has torch or onnxruntime but not this package."""
    stored = paths[0].with_name("x.npy")
    np.save(stored, x.numpy())
    code = MAIN % (READERS[paths[0].suffix] + network)
    subprocess.run([sys.executable, "-c", code, stored, *paths], check=True, timeout=120)
    return [list(np.load(f"{path}.npz").values()) for path in paths]


def metadata(path: Path) -> dict[str, str]:
    if path.suffix == ".pt2":
        extra = {"metadata.json": ""}
        torch.export.load(path, extra_files=extra)
        return json.loads(extra["metadata.json"])
    if path.suffix == ".onnx":
        import onnx

        return {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return file.metadata()


@every_suffix
def test_each_form_of_a_shape_runs_without_the_package(suffix, shape, tmp_path):
    require(suffix)
    x = torch.rand(20, 3) * 2 - 1
    truth = load_task(shape).network(x).detach().numpy()
    forms = ["compact", "dense", "thin"]
    paths = [export(shape, tmp_path / f"{form}{suffix}", f"--form={form}", "--tolerance=1e-5") for form in forms]
    for form, path, results in zip(forms, paths, outputs(paths, OCCUPANCY, x), strict=True):
        for rows, y in zip((1, 7, 20), results, strict=True):
            np.testing.assert_allclose(y, truth[:rows], atol=5e-4 * np.abs(truth).max(), err_msg=f"{form}, {rows}")
        told = metadata(path)
        assert told["form"] == form and told.get("tolerance") == ("1e-05" if form == "thin" else None)
        assert told["sinelr"] == sinelr_lightning.__version__ and told["task"] == "OccupancyTask"
        assert json.loads(told["placement"]) == {"centre": [1.0, 2.0, 3.0], "scale": 4.0}
        assert told["source"] == "l.obj" and "[N, 3]" in told["input"] and "logits [N]" in told["output"]
        # Nothing of the machine that it was written on.
        assert str(Path(torch.__file__).parent).encode() not in path.read_bytes()
        assert str(Path(sinelr_lightning.__file__).parent).encode() not in path.read_bytes()
    # 2·(64·2·2) numbers in the factors of the hidden layers, 2·64² in their weights.
    rest = 3 * 64 + 64 + 2 * 64 + 64 + 1
    compact, dense, thin = (int(metadata(path)["parameters"]) for path in paths)
    assert (compact, dense) == (rest + 512, rest + 8192) and compact < thin < dense
    sizes = [path.stat().st_size for path in paths]
    assert sizes[1] - sizes[0] > 10_000  # of 4·7680 bytes; the formula takes room in a program


@every_suffix
def test_each_form_of_a_network_for_images(suffix, images, tmp_path):
    require(suffix)
    x = torch.randn(20, 3, 8, 8)
    truth = load_task(images).network(x).detach().numpy()
    paths = [export(images, tmp_path / f"{form}{suffix}", f"--form={form}") for form in ("compact", "dense")]
    for path, results in zip(paths, outputs(paths, IMAGES, x), strict=True):
        for rows, y in zip((1, 7, 20), results, strict=True):
            np.testing.assert_allclose(y, truth[:rows], atol=1e-4 * np.abs(truth).max())
        told = metadata(path)
        assert json.loads(told["class_names"]) == ["cat", "Hündin"]
        assert json.loads(told["preprocessing"])["size"] == 8


def test_tensors_of_the_compact_form_are_the_factors(images, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    path = export(images, tmp_path / "images.safetensors")
    state = load_task(images).network.state_dict()
    assert state.pop("patches.hyper.gain") == 3.0 and state.pop("patches.hyper.rank") == 2
    torch.testing.assert_close(safetensors.load_file(path), dict(state), rtol=0, atol=0)
    layers = json.loads(metadata(path)["layers"])
    assert layers.keys() == {"patches", *(f"attention.in_proj.{part}" for part in "qkv"), "attention.out_proj"}
    assert layers["patches"]["gain"] == 3.0 and layers["patches"]["shape"] == [32, 3, 3, 3]


def test_says_one_line_and_nothing_else(shape, tmp_path):
    require(".onnx")  # whose exporter has the most to say
    out = tmp_path / "shape.onnx"
    command = [sys.executable, "-m", "sinelr_lightning", "export", f"--ckpt_path={shape}", f"--out={out}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    checkpoint, line = done.stderr.splitlines()
    assert done.stdout == "" and checkpoint == f"checkpoint {shape}"
    assert f"{out}: compact, {out.stat().st_size / 1000:.1f} kB, 961 parameters, weights of step 0;" in line
    assert 0 <= float(line.rpartition(" ")[2]) < 1e-5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shape.ckpt", out.name]


def test_averaged_weights_are_told(shape, tmp_path, capfd):
    content = torch.load(shape, weights_only=True)
    for count, word in [(0, "weights"), (3, "averaged weights")]:
        torch.save({**content, "averaging_state": {"n_averaged": torch.tensor(count)}}, tmp_path / "mean.ckpt")
        export(tmp_path / "mean.ckpt", tmp_path / "shape.pt2")
        assert f" parameters, {word} of step 0; " in capfd.readouterr().err
        assert metadata(tmp_path / "shape.pt2")["weights"] == f"{word} of step 0"


def test_a_file_that_differs_is_not_written(shape, tmp_path, capfd):
    out = tmp_path / "shape.pt2"
    out.write_text("the old one")
    options = [f"--ckpt_path={shape}", f"--out={out}", "--form=thin", "--tolerance=0.2"]
    assert main(["export", *options]) == 2
    assert "take a smaller --tolerance" in capfd.readouterr().err
    assert out.read_text() == "the old one" and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--out=model.tflite"], "model.tflite: a network is written as .pt2, .onnx, .safetensors"),
        (["--out=model"], ".pt2, .onnx, .safetensors"),
        (["--form=small"], "'compact', 'dense', 'thin'"),
        (["--tolerance=0"], "tolerance must be a positive number, got 0"),
        (["--tolerance=nan"], "tolerance"),
        (["--out=/proc/no/model.pt2"], "/proc/no/model.pt2: cannot be written"),
        (["--device=gpu9"], "gpu9"),
    ],
)
def test_a_mistake_is_one_line(shape, options, words, tmp_path, capfd):
    assert main(["export", f"--ckpt_path={shape}", f"--out={tmp_path}/model.pt2", *options]) == 2
    (error,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert words in error and [path.name for path in tmp_path.iterdir()] == ["shape.ckpt"]


def test_a_task_without_such_a_network_is_refused(tmp_path, capfd):
    checkpoint = save(ToyTask(), tmp_path / "toy.ckpt")
    assert main(["export", f"--ckpt_path={checkpoint}", f"--out={tmp_path}/toy.pt2"]) == 2
    assert "error: a ToyTask cannot be exported" in capfd.readouterr().err


def test_a_missing_package_is_named_before_anything_is_loaded(monkeypatch, capfd):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxscript" else object())
    assert main(["export", "--ckpt_path=nowhere", "--out=model.onnx"]) == 2
    assert 'needs onnxscript: pip install -e ".[export]"' in capfd.readouterr().err

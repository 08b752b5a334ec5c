"""The layers need torch alone, and importing the package needs not even that."""

import subprocess
import sys

CHECK = """
import sys
import sinelr_lightning
assert "torch" not in sys.modules, "the bare import loads torch"
import sinelr_lightning.layers as layers
import torch
layer = layers.SineLowRank(rank=1)(48, 40)
model = torch.nn.Sequential(torch.nn.Linear(48, 40), layers.Dense()(40, 40))
layers.convert(model, layers.LowRank(rank=2), init="fit")
assert layers.fold(model)(torch.ones(2, 48)).shape == layer(torch.ones(2, 48)).shape == (2, 40)
layer(torch.ones(2, 48)).sum().backward()
unwanted = {"lightning", "pytorch_lightning", "peft", "transformers", "torchvision", "torchmetrics", "jsonargparse"}
print(sorted(unwanted & {name.partition(".")[0] for name in sys.modules}))
"""


def test_layers_import_torch_alone():
    result = subprocess.run([sys.executable, "-c", CHECK], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"

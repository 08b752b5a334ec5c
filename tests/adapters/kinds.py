"""One layer of each kind that takes a factorized adapter, and what it must compute, by the book in float64."""

import copy
import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from .tiny import sine  # without PEFT it skips this file

# isort: split
from peft import PeftModel, get_peft_model
from transformers.pytorch_utils import Conv1D

LAYERS = {
    "linear": (lambda: nn.Linear(12, 10), (2, 3, 12)),
    "linear without bias": (lambda: nn.Linear(12, 10, bias=False), (5, 12)),
    "transposed": (lambda: Conv1D(10, 12), (2, 3, 12)),
    "embedding": (lambda: nn.Embedding(14, 10), (2, 5)),
    "conv1d": (lambda: nn.Conv1d(3, 8, 3, stride=2, padding=1, dilation=2), (2, 3, 9)),
    "conv2d": (lambda: nn.Conv2d(3, 8, (3, 2), padding="same", padding_mode="circular"), (2, 3, 5, 4)),
    "conv2d 1x1": (lambda: nn.Conv2d(7, 8, 1, bias=False), (2, 7, 3, 3)),
    "conv3d": (lambda: nn.Conv3d(2, 6, 2), (2, 2, 3, 3, 3)),
}
CONVOLUTIONS = [kind for kind in LAYERS if kind.startswith("conv")]

every_kind = pytest.mark.parametrize("kind", LAYERS)
with_and_without_dora = pytest.mark.parametrize("dora", [False, True], ids=["", "dora"])


@dataclass
class Made:
    """A model of one layer with an adapter.

    Attributes:
        base: a copy of the layer from before.
    """

    model: PeftModel
    base: nn.Module
    x: Tensor

    @property
    def layer(self):
        return self.model.base_model.model[0]

    @property
    def config(self):
        return self.model.peft_config["default"]

    def factors(self) -> tuple[Tensor, Tensor]:
        """U [m, r] and V [n, r] with m outputs; of an embedding m is the number of tokens."""
        if isinstance(self.base, nn.Embedding):
            return self.layer.lora_embedding_A["default"].t(), self.layer.lora_embedding_B["default"]
        a, b = self.layer.lora_A["default"].weight, self.layer.lora_B["default"].weight
        return b.flatten(1), a.flatten(1).t()

    def weight(self) -> Tensor:
        """W₀ + s·sin(ω·U·Vᵀ)/g, of DoRA with each output's length brought to its magnitude, as the base holds it."""
        config, (u, v) = self.config, self.factors()
        n = v.shape[0]
        omega = 6 * math.sqrt(n) if config.frequency == "auto" else config.frequency
        gain = math.sqrt(n) if config.gain is None else config.gain
        scale = config.lora_alpha / (math.sqrt(config.r) if config.use_rslora else config.r)
        update = scale * torch.sin(omega * u.double() @ v.double().t()) / gain
        held = self.base.weight.detach().double()
        whole = (held.t() if isinstance(self.base, Conv1D) else held.flatten(1)) + update
        if config.use_dora:
            magnitude = self.layer.lora_magnitude_vector["default"].weight.flatten().double()
            along = 0 if isinstance(self.base, nn.Embedding) else 1
            whole = whole * (magnitude / whole.norm(dim=along).detach()).unsqueeze(along)
        return whole.t() if isinstance(self.base, Conv1D) else whole.reshape(held.shape)

    def expected(self, x: Tensor | None = None) -> Tensor:
        """What the layer must put out, in float64."""
        x = self.x if x is None else x
        layer = copy.deepcopy(self.base).double().requires_grad_(False)
        x = x.double() if x.is_floating_point() else x
        return torch.func.functional_call(layer, {"weight": self.weight()}, (x,))

    def trained(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}


def make(kind: str, dtype: torch.dtype = torch.float32, autocast_adapter_dtype: bool = False, **changes) -> Made:
    torch.manual_seed(3)
    build, shape = LAYERS[kind]
    layer = build().to(dtype)
    if isinstance(layer, Conv1D):
        nn.init.normal_(layer.weight, std=0.3)
        nn.init.normal_(layer.bias)
    x = torch.randint(14, shape) if kind == "embedding" else torch.randn(shape, dtype=dtype)
    given = {"r": 3, "target_modules": ["0"], "gain": 3.0, "fan_in_fan_out": kind == "transposed"} | changes
    base = copy.deepcopy(layer)
    model = get_peft_model(nn.Sequential(layer), sine(**given), autocast_adapter_dtype=autocast_adapter_dtype)
    if given.get("use_dora") and not given.get("init_lora_weights"):  # not the lengths as they are
        with torch.no_grad():
            magnitude = model.base_model.model[0].lora_magnitude_vector["default"].weight
            magnitude.mul_(1 + torch.rand_like(magnitude))
    return Made(model.eval(), base, x)

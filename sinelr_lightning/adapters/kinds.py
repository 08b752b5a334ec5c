"""Each kind of PEFT's LoRA layers with what `layers` adds to it, and how a layer becomes one of them."""

import math
from typing import Any

import torch
from peft.import_utils import is_bnb_4bit_available, is_bnb_available
from peft.tuners import lora
from peft.tuners.lora.torchao import TorchaoLoraLinear
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from sinelr_lightning.adapters.config import FactorizedLoraConfig, is_product
from sinelr_lightning.adapters.layers import FactorizedLoraLayer
from sinelr_lightning.adapters.variant import FactorizedVariant
from sinelr_lightning.layers import Factorization
from sinelr_lightning.layers.factorization import kaiming_factors

__all__ = ["FactorizedLoraEmbedding", "FactorizedLoraLinear", "adopt", "upgrade"]


class FactorizedLoraLinear(FactorizedLoraLayer, lora.Linear):
    """`nn.Linear` and GPT-2's `Conv1D`, whose weight is transposed."""

    plain_bases = (nn.Linear, Conv1D)
    takes_hadamard = True


class FactorizedLoraTorchao(FactorizedLoraLayer, TorchaoLoraLinear):
    """torchao's quantised linear layers."""

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """As PEFT does.

        Raises:
            ValueError: DoRA, whose magnitude PEFT would leave out here.
        """
        for name in adapter_names or self.active_adapters:
            if self.ours(name) and self.use_dora[name]:
                raise ValueError(f"adapter {name} with DoRA cannot be merged into weights of torchao")
        super().merge(safe_merge=safe_merge, adapter_names=adapter_names)


class FactorizedLoraEmbedding(FactorizedLoraLayer, lora.Embedding):
    """`nn.Embedding`: only the rows that are looked up are formed."""

    along_outputs = 0

    def matrix_shape(self) -> tuple[int, int]:
        """(tokens, features)."""
        return super().matrix_shape()[::-1]

    def factors(self, adapter: str) -> tuple[Tensor, ...]:
        if adapter in self.lora_A:
            return super().factors(adapter)
        return self.lora_embedding_A[adapter].t(), self.lora_embedding_B[adapter]

    def factor_names(self, adapter: str) -> dict[str, str]:
        if adapter in self.lora_A:
            return super().factor_names(adapter)
        return {"U": f"lora_embedding_A.{adapter}", "V": f"lora_embedding_B.{adapter}"}

    def begin(self, adapter: str, factorization: Factorization, zero: bool) -> None:
        """Draw factors as the formula wants them: with PEFT's own, of size 1, a step would be turns of a sine."""
        if not is_product(factorization):
            raise ValueError(f"an embedding takes factors U, V alone, which a {type(factorization).__name__} has not")
        u, v = kaiming_factors(*self.matrix_shape(), self.r[adapter])
        with torch.no_grad():
            self.lora_embedding_A[adapter].copy_(torch.zeros_like(u.t()) if zero else u.t())
            self.lora_embedding_B[adapter].copy_(v)

    def as_base(self, matrix: Tensor) -> Tensor:
        return matrix

    def base_matrix(self) -> Tensor:
        return self.base.weight

    def update(self, adapter: str, x: Tensor) -> Tensor:
        u, v = self.factors(adapter)
        rows = self._embed(x, u)
        scale = self._get_embed_scale()  # Gemma's embeddings multiply what they look up
        update = self.formula(adapter).weight(rows.flatten(0, -2), v).reshape(*rows.shape[:-1], -1).to(rows.dtype)
        return update if scale is None else update * scale.to(update.dtype)

    def without_bias(self, result: Tensor) -> Tensor:
        return result

    def _mixed_batch_forward(self, x: Tensor, *args: Any, adapter_names: list[str], **kwargs: Any) -> Tensor:
        """PEFT's own knows no variants of an embedding: rows of our adapters are added to its result."""
        foreign = ["__base__" if self.ours(name) else name for name in adapter_names]
        result = super()._mixed_batch_forward(x, *args, adapter_names=foreign, **kwargs)
        for adapter in {name for name in adapter_names if self.ours(name)}:
            chosen = [number for number, name in enumerate(adapter_names) if name == adapter]
            result[chosen] += (self.update(adapter, x[chosen]) * self.scaling[adapter]).to(result.dtype)
        return result


class _FactorizedLoraConv(FactorizedLoraLayer):
    """Convolutions of one group."""

    fan_in_fan_out = False

    def matrix_shape(self) -> tuple[int, int]:
        """(out, in·k…)."""
        shape = self.base.weight.shape
        return shape[0], math.prod(shape[1:])

    def as_base(self, matrix: Tensor) -> Tensor:
        return matrix.reshape(self.base.weight.shape)

    def multiply(self, x: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
        return self.base._conv_forward(x, self.as_base(matrix), bias)

    def update(self, adapter: str, x: Tensor) -> Tensor:
        bias = getattr(self.lora_B[adapter], "bias", None)
        return self._checkpointed(self.formula(adapter).weight, x, bias, *self.factors(adapter))

    def _once(self, adapter: str, x: Tensor, bias: Tensor | None, magnitude: Tensor | None) -> Tensor:
        formula, scale = self.formula(adapter), self.scaling[adapter]

        def form(base: Tensor, magnitude: Tensor | None, *factors: Tensor) -> Tensor:
            return formula.adapted(base, scale, *factors, magnitude=magnitude)

        return self._checkpointed(form, x, bias, self.base_matrix(), magnitude, *self.factors(adapter))

    def stretch(self, adapter: str) -> Tensor:
        return super().stretch(adapter).reshape(-1, *[1] * (self.base.weight.dim() - 2))

    def without_bias(self, result: Tensor) -> Tensor:
        bias = self.base.bias
        return result if bias is None else result - bias.reshape(-1, *[1] * (self.base.weight.dim() - 2))


class FactorizedLoraConv1d(_FactorizedLoraConv, lora.layer.Conv1d):
    """`nn.Conv1d`."""

    plain_bases = (nn.Conv1d,)


class FactorizedLoraConv2d(_FactorizedLoraConv, lora.layer.Conv2d):
    """`nn.Conv2d`."""

    plain_bases = (nn.Conv2d,)


class FactorizedLoraConv3d(_FactorizedLoraConv, lora.layer.Conv3d):
    """`nn.Conv3d`."""

    plain_bases = (nn.Conv3d,)


UPGRADES: dict[type, type[FactorizedLoraLayer]] = {
    lora.Linear: FactorizedLoraLinear,
    TorchaoLoraLinear: FactorizedLoraTorchao,
    lora.Embedding: FactorizedLoraEmbedding,
    lora.layer.Conv1d: FactorizedLoraConv1d,
    lora.layer.Conv2d: FactorizedLoraConv2d,
    lora.layer.Conv3d: FactorizedLoraConv3d,
}

if is_bnb_available():

    class FactorizedLora8bit(FactorizedLoraLayer, lora.Linear8bitLt):
        """Linear layers of bitsandbytes in 8 bits."""

    UPGRADES[lora.Linear8bitLt] = FactorizedLora8bit

if is_bnb_4bit_available():

    class FactorizedLora4bit(FactorizedLoraLayer, lora.Linear4bit):
        """Linear layers of bitsandbytes in 4 bits."""

    UPGRADES[lora.Linear4bit] = FactorizedLora4bit


def upgrade(layer: Any, name: str) -> Any:
    """A LoRA layer of PEFT's as one that can hold our adapters too, with all that it holds; it takes its place.

    Raises:
        ValueError: PEFT has such a layer, we do not; a convolution has groups; or the layer's `forward` was replaced,
            which would go on calling the layer that is replaced here.
    """
    if isinstance(layer, FactorizedLoraLayer):
        return layer
    if type(layer) not in UPGRADES:
        known = ", ".join(kind.__name__ for kind in UPGRADES)
        raise ValueError(f"{name}: a {type(layer).__name__} takes no factorized adapter; layers that do: {known}")
    groups = getattr(layer.get_base_layer(), "groups", 1)
    if groups > 1:
        raise ValueError(f"{name}: a convolution of {groups} groups takes no factorized adapter")
    if "forward" in vars(layer):
        raise ValueError(
            f"{name}: the forward of this layer was replaced, as accelerate's hooks do: remove them "
            "(accelerate.hooks.remove_hook_from_submodules) before a factorized adapter is added"
        )
    kind = UPGRADES[type(layer)]
    upgraded = kind.__new__(kind)
    vars(upgraded).update(vars(layer))
    return upgraded


def adopt(layer: FactorizedLoraLayer, adapter: str, config: FactorizedLoraConfig) -> None:
    """Turn the plain adapter that PEFT has just made in this layer into the one that `config` asks for."""
    variant = layer.resolve_lora_variant(config=config)
    assert isinstance(variant, FactorizedVariant)
    layer.lora_variant[adapter], layer.use_dora[adapter] = variant, config.use_dora
    variant.init(layer, adapter_name=adapter)
    layer.set_adapter(layer.active_adapters, inference_mode=config.inference_mode)

"""How one adapter of a layer computes, in PEFT's terms: a `LoraVariant` with a factorization in it."""

from collections.abc import Iterator
from typing import Any

import torch
from peft.tuners.lora.layer import LoraVariant
from torch import Tensor, nn

from sinelr_lightning.adapters.config import FactorizedLoraConfig, as_lora
from sinelr_lightning.layers import Factorization
from sinelr_lightning.layers.factorization import wide

__all__ = ["Factors", "FactorizedVariant"]


class Factors(nn.Module):
    """The factors of a family other than U·Vᵀ, in the place of PEFT's A; B is an empty module then."""

    def __init__(self, factors: dict[str, Tensor]) -> None:
        super().__init__()
        self.names = list(factors)
        for name, factor in factors.items():
            if factor.is_floating_point():
                self.register_parameter(name, nn.Parameter(factor))
            else:
                self.register_buffer(name, factor)

    def __iter__(self) -> Iterator[Tensor]:
        return (getattr(self, name) for name in self.names)

    @property
    def weight(self) -> Tensor:
        """The first factor: PEFT asks A's weight for its type and its device."""
        return next(factor for factor in self if factor.is_floating_point())


class FactorizedVariant(LoraVariant):
    """Update s·W(factors) of a layer, with a learnt magnitude where PEFT's own DoRA variant stands behind it.

    Args:
        config: of the adapter.
        dora: PEFT's variant for such a layer, None without DoRA.
    """

    def __init__(self, config: FactorizedLoraConfig, dora: Any) -> None:
        self.config, self.dora = config, dora
        self.factorization: Factorization

    def supports_lora_conversion(self) -> bool:
        """Whether the update alone says it all."""
        return self.dora is None

    def init(self, module: Any, adapter_name: str, **_: Any) -> None:
        """Draw the factors that PEFT has not drawn, and take the magnitude from the weight as it is then.

        Raises:
            ValueError: `hadamard` in a layer that is not linear, or factors that do not fit the kind of layer.
        """
        if self.config.hadamard and not module.takes_hadamard:
            kind = type(module.base).__name__
            raise ValueError(f"hadamard is for float linear layers, not for {kind}: leave that out of target_modules")
        self.factorization = self.config.family(module.r[adapter_name])
        if self.dora is not None:
            self.dora.init(module, adapter_name=adapter_name, config=as_lora(self.config))
        module.begin(adapter_name, self.factorization, zero=self.config.init_lora_weights is not False)
        if self.dora is not None:
            held = module.lora_magnitude_vector[adapter_name].weight
            if not held.is_meta:
                with torch.no_grad():
                    held.copy_(module.norms(adapter_name).reshape(held.shape))

    # -- merging ---------------------------------------------------------------------------------------------------
    # The update is added in float32 or wider and the sum rounded once: what `forward` multiplies with.
    def merge_safe(self, module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """The weight with the update in it."""
        if self.dora is not None:
            return self.dora.merge_safe(module, active_adapter, orig_weight)
        module.keep_before_merge(active_adapter, orig_weight)
        return (wide(orig_weight) + module.get_delta_weight(active_adapter)).to(orig_weight.dtype)

    def merge_unsafe(self, module: Any, active_adapter: str, orig_weight: Tensor) -> None:
        """Put the update into the weight."""
        if self.dora is not None:
            self.dora.merge_unsafe(module, active_adapter, orig_weight)
        else:
            merged = wide(orig_weight.data) + module.get_delta_weight(active_adapter)
            module.keep_before_merge(active_adapter, orig_weight)
            orig_weight.data.copy_(merged)

    def unmerge(self, module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """The weight without the update."""
        if self.dora is not None:
            return self.dora.unmerge(module, active_adapter, orig_weight)
        if self.config.hadamard:
            return module.before_merge(orig_weight)
        return (wide(orig_weight.data) - module.get_delta_weight(active_adapter)).to(orig_weight.dtype)

    # -- two products ----------------------------------------------------------------------------------------------
    def forward(self, module: Any, active_adapter: str, x: Tensor, result: Tensor, **_: Any) -> Tensor:
        """`result` of the base layer plus the update's own product with x.

        The way of a dropped-out input, a quantised base, several adapters at once and mixed batches.
        """
        dropout = module.lora_dropout[active_adapter]
        drops = module.training and not isinstance(dropout, nn.Identity) and x.is_floating_point()  # no token numbers
        dropped = dropout(x) if drops else x
        update = module.update(active_adapter, dropped) * module.scaling[active_adapter]
        if self.dora is None:
            return result + update
        stretch = module.stretch(active_adapter)
        base = module.base_product(dropped) if drops else module.without_bias(result)
        return result + (stretch - 1) * base + stretch * update

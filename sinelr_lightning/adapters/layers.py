"""What PEFT's own LoRA layers get so that they hold factorized adapters beside plain ones; `kinds` applies it.

A matrix here is [m, n] as in `layers`: of a linear layer and a convolution [out, in·k…], of an embedding
[tokens, features].
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora.layer import LoraLayer, LoraVariant
from peft.utils.integrations import dequantize_module_weight
from peft.utils.other import transpose
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sinelr_lightning.adapters.config import FactorizedLoraConfig, as_lora, is_product
from sinelr_lightning.adapters.variant import FactorizedVariant, Factors
from sinelr_lightning.layers import FactorGroup, Factorization
from sinelr_lightning.layers.factorization import product_type, wide, without_autocast

__all__ = ["FactorizedLoraLayer"]


class FactorizedLoraLayer(LoraLayer):
    """What all of them share; adapters with a plain `LoraConfig` are PEFT's business as before.

    Where one float adapter alone is active, unmerged and without dropout, the whole weight is formed once and
    multiplied once (a sine of small phases: the base's product and two thin ones, see `layers.adapted`).

    In evaluation without gradients the whole weight is kept until a tensor that it is made of changes, `train()` or
    `eval()` is called or the state is read. A write through `.data` changes a tensor unseen: call `eval()` after it.
    """

    training: bool
    fan_in_fan_out: bool
    base_layer: Any
    lora_A: Any
    lora_B: Any
    lora_magnitude_vector: Any
    lora_dropout: Any
    plain_bases: tuple[type[nn.Module], ...] = ()  # base layers whose weight may be read and multiplied by ourselves
    takes_hadamard = False  # whether an update may be multiplied with the base's weight
    along_outputs = 1  # the dimension of a matrix along which one output's entries lie
    keeps = True  # whether evaluation keeps the whole weight; not where weights are shared out over processes
    merge_rounding: float | None = None  # largest entry by which a merged weight differs from the exact one
    _kept: tuple[Any, Tensor] | None = None
    _before_merge: Tensor | None = None  # the base's weight, where an update that is multiplied with it was merged

    @property
    def base(self) -> Any:
        """The frozen layer itself."""
        return self.get_base_layer()

    # -- what differs by kind of layer -------------------------------------------------------------------------------
    def matrix_shape(self) -> tuple[int, int]:
        """(m, n)."""
        assert self.out_features is not None and self.in_features is not None
        return self.out_features, self.in_features

    def factors(self, adapter: str) -> tuple[Tensor, ...]:
        """The adapter's factors in the order in which its factorization takes them."""
        a, b = self.lora_A[adapter], self.lora_B[adapter]
        return tuple(a) if isinstance(a, Factors) else (b.weight.flatten(1), a.weight.flatten(1).t())

    def factor_names(self, adapter: str) -> dict[str, str]:
        """The parameter that holds each factor."""
        if isinstance(self.lora_A[adapter], Factors):
            return {name: f"lora_A.{adapter}.{name}" for name, _ in self.lora_A[adapter].named_parameters()}
        return {"U": f"lora_B.{adapter}.weight", "V": f"lora_A.{adapter}.weight"}

    def base_matrix(self) -> Tensor:
        """The frozen weight [m, n], dequantised."""
        weight = self.base.weight
        if not self._is_plain(weight):  # PEFT's function would break a graph of the compiler
            weight = dequantize_module_weight(self.base)
        return transpose(weight, self.fan_in_fan_out).flatten(1)

    def as_base(self, matrix: Tensor) -> Tensor:
        """A matrix [m, n] in the layout of the base layer's weight."""
        return transpose(matrix, self.fan_in_fan_out)

    def multiply(self, x: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
        """What the base layer would give for x with this matrix [m, n] as its weight."""
        return F.linear(x, matrix, bias)

    def update(self, adapter: str, x: Tensor) -> Tensor:
        """The product of x with the adapter's W, unscaled; nothing of size m×n is kept for backward."""
        bias = getattr(self.lora_B[adapter], "bias", None)
        factors = self.factors(adapter)
        if self.hadamard(adapter):
            form = functools.partial(self._delta, adapter)
            return self._checkpointed(form, x, bias, self.base_matrix(), *factors)
        return self.formula(adapter).linear(x, bias, *factors)

    def _checkpointed(
        self, form: Callable[..., Tensor], x: Tensor, bias: Tensor | None, *arguments: Tensor | None
    ) -> Tensor:
        """Multiply x with the matrix that `form(*arguments)` makes, here and once more in backward."""

        def run(x: Tensor, bias: Tensor | None, *arguments: Tensor | None) -> Tensor:
            with without_autocast(x):
                return self.multiply(x, form(*arguments).to(x.dtype), None if bias is None else bias.to(x.dtype))

        if torch.is_grad_enabled():
            return checkpoint(run, x, bias, *arguments, use_reentrant=False, preserve_rng_state=False)
        return run(x, bias, *arguments)

    # -- of all kinds ------------------------------------------------------------------------------------------------
    def formula(self, adapter: str) -> Factorization:
        """The adapter's factorization."""
        variant = self.lora_variant[adapter]
        assert isinstance(variant, FactorizedVariant)
        return variant.factorization

    def ours(self, adapter: str) -> bool:
        """Whether this layer has the adapter, and it is a factorized one."""
        return isinstance(self.lora_variant.get(adapter), FactorizedVariant)

    def hadamard(self, adapter: str) -> bool:
        """Whether the adapter's update is multiplied with the base's weight, entry by entry."""
        variant = self.lora_variant.get(adapter)
        return isinstance(variant, FactorizedVariant) and variant.config.hadamard

    def delta(self, adapter: str) -> Tensor:
        """What the adapter adds to the base's matrix, unscaled [m, n], in float32 or wider."""
        kept = self._before_merge
        base = self.base_matrix() if kept is None else transpose(kept.to(self.base.weight), self.fan_in_fan_out)
        return self._delta(adapter, base, *self.factors(adapter))

    def _delta(self, adapter: str, base: Tensor, *factors: Tensor) -> Tensor:
        weight = self.formula(adapter).weight(*factors)
        return weight * wide(base) if self.hadamard(adapter) else weight

    def resolve_lora_variant(self, *, config: Any, **kwargs: Any) -> LoraVariant | None:
        """PEFT's choice, with our formula in front of it for our configurations."""
        if not isinstance(config, FactorizedLoraConfig):
            return super().resolve_lora_variant(config=config, **kwargs)
        return FactorizedVariant(config, super().resolve_lora_variant(config=as_lora(config), **kwargs))

    def begin(self, adapter: str, factorization: Factorization, zero: bool) -> None:
        """Draw what PEFT has not drawn: the factors of a family other than U·Vᵀ, into the place of A and B.

        Raises:
            ValueError: `lora_bias`, which belongs to B.
        """
        if is_product(factorization):
            return
        if self.lora_bias[adapter]:
            raise ValueError(f"lora_bias needs the factors U and V, which a {type(factorization).__name__} has not")
        like = self.lora_A[adapter].weight
        with torch.device(like.device):
            drawn = factorization.factors(*self.matrix_shape(), zero=zero)
        cast = {k: f.to(like.dtype) if f.is_floating_point() else f for k, f in drawn.items()}
        self.lora_A[adapter], self.lora_B[adapter] = Factors(cast), nn.Module()

    def whole(self, adapter: str) -> Tensor:
        """The base matrix with the scaled update in it [m, n], in float32 or wider, before any magnitude."""
        if self.hadamard(adapter):
            return wide(self.base_matrix()) + self.delta(adapter) * self.scaling[adapter]
        return self.formula(adapter).adapted(self.base_matrix(), self.scaling[adapter], *self.factors(adapter))

    @torch.no_grad()
    def norms(self, adapter: str) -> Tensor:
        """Length of what each output has of the whole weight: its row, or an embedding's column."""
        return self.whole(adapter).norm(dim=self.along_outputs)

    def stretch(self, adapter: str) -> Tensor:
        """Magnitude over length for each output, in a shape that multiplies results."""
        magnitude = self._magnitude(adapter)
        assert magnitude is not None
        return wide(magnitude) / self.norms(adapter)

    def without_bias(self, result: Tensor) -> Tensor:
        """A result of the base layer less its bias."""
        bias = getattr(self.base, "bias", None)
        return result if bias is None else result - bias

    def base_product(self, x: Tensor) -> Tensor:
        """The base layer's product with x, without bias."""
        return self.multiply(x, self.base_matrix().to(x.dtype), None)

    def get_delta_weight(self, adapter: str) -> Tensor:
        """The scaled update in the layout of the base layer's weight; in float32 or wider for our adapters."""
        if not self.ours(adapter):
            return super().get_delta_weight(adapter)  # ty: ignore[missing-attribute]
        return self.as_base(self.delta(adapter) * self.scaling[adapter])

    def factor_groups(self) -> dict[str, FactorGroup]:
        """How an optimiser should treat the factors of our adapters, by the parameters' names."""
        groups: dict[str, FactorGroup] = {}
        for adapter in self.lora_variant:
            if self.ours(adapter):
                names = self.factor_names(adapter)
                told = self.formula(adapter).groups(*self.matrix_shape())
                groups |= {names[factor]: group for factor, group in told.items() if factor in names}
        return groups

    # -- one product -------------------------------------------------------------------------------------------------
    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self._check_at_hand(x)
        adapter = None if args or kwargs else self._only_adapter()
        if adapter is None:
            return super().forward(x, *args, **kwargs)  # ty: ignore[missing-attribute]
        x = x.to(product_type(x))
        bias, magnitude = self._bias(adapter), self._magnitude(adapter)
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self._once(adapter, x, bias, magnitude)
        return self.multiply(x, self._served(adapter, x.dtype), None if bias is None else bias.to(x.dtype))

    def _check_at_hand(self, x: Tensor) -> None:
        """Refuse factors that are kept elsewhere: accelerate brings them for a module's call, and we call none."""
        for name in self.active_adapters:
            if self.ours(name) and any(factor.is_meta for factor in self.factors(name)) and not x.is_meta:
                raise RuntimeError(
                    f"the factors of adapter {name} are offloaded (on the meta device), which a factorized adapter "
                    "cannot be: merge it before the model is offloaded, or keep the adapter's modules on a device"
                )

    def _once(self, adapter: str, x: Tensor, bias: Tensor | None, magnitude: Tensor | None) -> Tensor:
        base, scale, factors = self.base_matrix(), self.scaling[adapter], self.factors(adapter)
        if self.hadamard(adapter):

            def form(base: Tensor, *factors: Tensor) -> Tensor:
                return wide(base) + scale * self._delta(adapter, base, *factors)

            return self._checkpointed(form, x, bias, base, *factors)
        return self.formula(adapter).adapted_linear(x, base, bias, scale, *factors, magnitude=magnitude)

    def _only_adapter(self) -> str | None:
        """The adapter, if one product with one float weight is all there is to do."""
        base = self.base_layer
        if type(base) not in self.plain_bases or self.disable_adapters or self.merged:
            return None
        if base._forward_hooks or base._forward_pre_hooks or "forward" in vars(base):  # someone waits for its call
            return None
        active = [name for name in self.active_adapters if name in self.lora_dropout]
        if len(active) != 1 or not self.ours(active[0]):
            return None
        idle = not self.training or isinstance(self.lora_dropout[active[0]], nn.Identity)
        return active[0] if idle and self._is_plain(base.weight) else None

    @staticmethod
    def _is_plain(weight: Tensor) -> bool:
        return weight.is_floating_point() and type(weight) in (Tensor, nn.Parameter)

    def _magnitude(self, adapter: str) -> Tensor | None:
        """The learnt magnitude [m] of a DoRA adapter."""
        return self.lora_magnitude_vector[adapter].weight.flatten() if self.use_dora[adapter] else None

    def _bias(self, adapter: str) -> Tensor | None:
        own = getattr(self.lora_B[adapter], "bias", None)
        base = getattr(self.base_layer, "bias", None)
        if own is None:
            return base
        return own * self.scaling[adapter] if base is None else base + own * self.scaling[adapter]

    def _served(self, adapter: str, dtype: torch.dtype) -> Tensor:
        """The whole weight as a constant, formed again when a tensor that it is made of has changed."""
        scale, magnitude = self.scaling[adapter], self._magnitude(adapter)
        sources = [self.base_layer.weight, *self.lora_A[adapter].parameters(), *self.lora_B[adapter].parameters()]
        sources += [] if magnitude is None else [magnitude]
        key: Any = None
        if self.keeps and not isinstance(scale, Tensor) and not any(source.is_inference() for source in sources):
            key = (adapter, scale, dtype, *((source.data_ptr(), source._version) for source in sources))
            if self._kept is not None and self._kept[0] == key:
                return self._kept[1]
        weight = self.exact(adapter).to(dtype)
        self._kept = None if key is None else (key, weight)
        return weight

    def train(self, mode: bool = True) -> Any:
        """As always; a kept weight is dropped."""
        self._kept = None
        return super().train(mode)  # ty: ignore[missing-attribute]

    def _save_to_state_dict(self, *args: Any) -> None:
        # Who takes the state may write through it unseen: PEFT's hotswap does.
        self._kept = None
        super()._save_to_state_dict(*args)  # ty: ignore[missing-attribute]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_kept"}

    # -- merging -----------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def exact(self, adapter: str) -> Tensor:
        """The whole weight [m, n] with its magnitude, in float32 or wider: what merging rounds."""
        matrix, magnitude = self.whole(adapter), self._magnitude(adapter)
        if magnitude is None:
            return matrix
        norms = matrix.norm(dim=self.along_outputs, keepdim=True)
        return matrix * (wide(magnitude).unsqueeze(self.along_outputs) / norms)

    def keep_before_merge(self, adapter: str, weight: Tensor) -> None:
        """Keep the base's weight, on the CPU, where the merged one does not tell it any more."""
        if self.hadamard(adapter):
            self._before_merge = weight.detach().to("cpu", copy=True)

    def before_merge(self, weight: Tensor) -> Tensor:
        """What was kept, in the place of the merged weight."""
        assert self._before_merge is not None
        kept, self._before_merge = self._before_merge, None
        return kept.to(weight)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """As PEFT does; for one adapter of ours, merged alone, `merge_rounding` tells what rounding cost.

        Raises:
            ValueError: a `hadamard` adapter with another one: the weight that it multiplies would be no longer W₀.
        """
        self._kept = self.merge_rounding = None
        names = [name for name in adapter_names or self.active_adapters if name in self.scaling]
        both = [*self.merged_adapters, *names]
        if len(set(both)) > 1 and any(self.hadamard(name) for name in both):
            raise ValueError(f"a hadamard adapter is merged alone, not with another: {', '.join(both)}")
        if not self.merged:
            self._before_merge = None  # of a merge that failed
        exact = self.exact(names[0]) if len(names) == 1 and self.ours(names[0]) and not self.merged else None
        super().merge(safe_merge=safe_merge, adapter_names=adapter_names)
        if exact is not None:
            self.merge_rounding = float((exact - self.base_matrix().detach()).abs().max())

"""Layers whose weight is a factorization: they own the factors and the bias, nothing else."""

import math
from dataclasses import fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.utils import _ntuple
from torch.utils.checkpoint import checkpoint

from sinelr_lightning.layers.factorization import FactorGroup, Factorization

__all__ = [
    "FactorizedConv",
    "FactorizedConv1d",
    "FactorizedConv2d",
    "FactorizedConv3d",
    "FactorizedLayer",
    "FactorizedLinear",
]


def _fresh_bias(m: int, n: int) -> Tensor:
    bound = 1 / math.sqrt(n)  # as in nn.Linear
    return torch.empty(m).uniform_(-bound, bound)


def _hyperparameters(factorization: Factorization) -> list[str]:
    return [field.name for field in fields(factorization)]


def _shown(sizes: dict[str, Any]) -> str:
    return ", ".join(f"{name} {list(size)}" for name, size in sizes.items())


class FactorizedLayer(nn.Module):
    """What linear layers and convolutions share: named factors of an m×n weight, and a bias of m.

    Keys of `state_dict` are the factors' own names (`U`, `V`) and `bias`. Numbers of the factorization that differ
    from those that the layer was made with (a fit chooses a gain, a budget a rank) follow as `hyper.gain`; loading
    sets them, and loading a state without them returns to those that the layer was made with. With another rank the
    factors are new parameters: load before an optimiser is made.
    """

    bias: nn.Parameter | None

    def __init__(self, factorization: Factorization, m: int, n: int, bias: bool) -> None:
        super().__init__()
        self.factorization = self._made_with = factorization
        self.weight_shape = (m, n)
        self.factor_names: list[str] = []
        for name, factor in factorization.factors(m, n).items():
            self.factor_names.append(name)
            if factor.is_floating_point():
                self.register_parameter(name, nn.Parameter(factor))
            else:
                self.register_buffer(name, factor)
        self.register_parameter("bias", nn.Parameter(_fresh_bias(m, n)) if bias else None)
        self._served: tuple[Tensor, ...] | None = None  # set by `cached_weights` for an evaluation

    def reset_parameters(self) -> None:
        """Draw the factors and the bias anew, for example after construction on the meta device."""
        with torch.no_grad():
            for name, factor in self.factorization.factors(*self.weight_shape).items():
                getattr(self, name).copy_(factor)
            if self.bias is not None:
                self.bias.copy_(_fresh_bias(*self.weight_shape))

    def factors(self) -> tuple[Tensor, ...]:
        """The factors in the order in which the factorization takes them."""
        return tuple(getattr(self, name) for name in self.factor_names)

    def factor_groups(self) -> dict[str, FactorGroup]:
        """How an optimiser should treat the factors that say it."""
        groups = self.factorization.groups(*self.weight_shape)
        return {name: group for name, group in groups.items() if name in self._parameters}

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in _hyperparameters(self.factorization):
            value = getattr(self.factorization, name)
            if value != getattr(self._made_with, name):
                dtype = torch.float64 if isinstance(value, float) else None
                destination[f"{prefix}hyper.{name}"] = torch.tensor(value, dtype=dtype, device="cpu")

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        keys = {f"{prefix}hyper.{name}": name for name in _hyperparameters(self._made_with)}
        if any(prefix + name in state_dict for name in self.factor_names):
            values = {name: state_dict[key].item() for key, name in keys.items() if key in state_dict}
            try:
                self._become(replace(self._made_with, **values), state_dict, prefix)
            except ValueError as error:
                error_msgs.append(f"{prefix}hyper: {error}")
        rest = {key: value for key, value in state_dict.items() if key not in keys}
        super()._load_from_state_dict(rest, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)

    def _become(self, factorization: Factorization, state_dict: dict[str, Any], prefix: str) -> None:
        """Take another factorization of the family, with factors of its sizes, to be filled, where they differ.

        Raises:
            ValueError: the state has factors of other sizes; the layer is as it was.
        """
        if factorization == self.factorization:
            return
        with torch.device("meta"):
            sizes = {name: factor.shape for name, factor in factorization.factors(*self.weight_shape).items()}
        stored = {name: getattr(state_dict.get(prefix + name, getattr(self, name)), "shape", None) for name in sizes}
        if stored != sizes:
            raise ValueError(f"{factorization} has factors {_shown(sizes)}, the state {_shown(stored)}")
        self.factorization = factorization
        for name, size in sizes.items():
            factor = getattr(self, name)
            if factor.shape != size:
                fresh = factor.detach().new_empty(size)
                trained = isinstance(factor, nn.Parameter)
                setattr(self, name, nn.Parameter(fresh, factor.requires_grad) if trained else fresh)

    @property
    def weight(self) -> Tensor:
        """The weight as a matrix [m, n] in the type of the factors, formed from them; gradients flow to them."""
        return self.factorization.weight(*self.factors()).to(self.factor_dtype)

    @property
    def factor_dtype(self) -> torch.dtype:
        """The type of the factors, integer ones apart."""
        return next(f.dtype for f in self.factors() if f.is_floating_point())

    def multiply_adds(self) -> int:
        """Multiply-adds of the product with one row, forward: m·n, as the weight is formed."""
        return math.prod(self.weight_shape)

    @property
    def served(self) -> tuple[Tensor, ...] | None:
        """The constants of `cached_weights`; none while gradients are recorded, which must reach the factors."""
        return None if torch.is_grad_enabled() else self._served

    def _bias_for(self, x: Tensor) -> Tensor | None:
        """The bias in the type of x, which decides the type of the product as it does for the weight.

        Raises:
            TypeError: x is not of a real floating type; its own type would round the weight to integers.
        """
        if not x.is_floating_point():
            raise TypeError(f"expected a floating-point input, got {x.dtype}")
        return None if self.bias is None else self.bias.to(x.dtype)


class FactorizedLinear(FactorizedLayer):
    """y = x·Wᵀ + bias with W given by a factorization; in place of `nn.Linear`.

    Args:
        factorization: the formula of W.
        in_features: n.
        out_features: m.
        bias: whether there is a bias.

    Shapes: [..., n] → [..., m], in the type of the input.

    Raises:
        TypeError, ValueError: in `forward`, for an input that is not floating-point or whose last size is not n.
    """

    def __init__(self, factorization: Factorization, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(factorization, out_features, in_features, bias)
        self.in_features, self.out_features = in_features, out_features

    def forward(self, x: Tensor) -> Tensor:
        bias, served = self._bias_for(x), self.served
        if x.shape[-1:] != (self.in_features,):
            raise ValueError(f"expected an input [..., {self.in_features}], got {list(x.shape)}")
        if served is None:
            return self.factorization.linear(x, bias, *self.factors())
        for matrix in reversed(served[1:]):
            x = F.linear(x, matrix.to(x.dtype))
        return F.linear(x, served[0].to(x.dtype), bias)

    def multiply_adds(self) -> int:
        """Those of the factorization: fewer than m·n where it multiplies without forming the weight."""
        return self.factorization.multiply_adds(*self.factors())

    def extra_repr(self) -> str:
        bias = self.bias is not None
        return f"{self.in_features} → {self.out_features}, bias={bias}, {self.factorization}"


class FactorizedConv(FactorizedLayer):
    """A convolution in place of `nn.ConvNd` (one group), its kernel a matrix [out, in·k…] given by a factorization.

    Arguments after `factorization` are those of `nn.ConvNd`.
    """

    dims: int

    def __init__(
        self,
        factorization: Factorization,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: str | int | tuple[int, ...] = 0,
        dilation: int | tuple[int, ...] = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
    ) -> None:
        as_tuple = _ntuple(self.dims)
        kernel = as_tuple(kernel_size)
        super().__init__(factorization, out_channels, in_channels * math.prod(kernel), bias)
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, kernel
        self.stride, self.dilation = as_tuple(stride), as_tuple(dilation)
        self.padding: Any = padding if isinstance(padding, str) else as_tuple(padding)
        self.padding_mode = padding_mode

    def forward(self, x: Tensor) -> Tensor:
        shape = (self.out_channels, self.in_channels, *self.kernel_size)
        bias, served, padding = self._bias_for(x), self.served, self.padding
        if self.padding_mode != "zeros":
            x = F.pad(x, self._padding_by_side(), mode=self.padding_mode)
            padding = 0
        convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[self.dims]

        def apply(x: Tensor, bias: Tensor | None, *factors: Tensor) -> Tensor:
            weight = self.factorization.formed(x, *factors) if served is None else served[0].to(x.dtype)
            return convolve(x, weight.reshape(shape), bias, self.stride, padding, self.dilation)

        if torch.is_grad_enabled() and not torch.compiler.is_exporting():
            return checkpoint(apply, x, bias, *self.factors(), use_reentrant=False, preserve_rng_state=False)
        return apply(x, bias, *self.factors())

    def _padding_by_side(self) -> list[int]:
        """The padding before and after each dimension, last dimension first, as `F.pad` takes it."""
        if self.padding == "valid":
            return [0] * (2 * self.dims)
        if self.padding == "same":
            totals = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
            sides = [(total // 2, total - total // 2) for total in totals]
        else:
            sides = [(size, size) for size in self.padding]
        return [size for side in reversed(sides) for size in side]

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels} → {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, bias={self.bias is not None}, {self.factorization}"
        )


class FactorizedConv1d(FactorizedConv):
    """`nn.Conv1d` with its kernel as a matrix [out, in·k] given by a factorization."""

    dims = 1


class FactorizedConv2d(FactorizedConv):
    """`nn.Conv2d` with its kernel as a matrix [out, in·k·k] given by a factorization."""

    dims = 2


class FactorizedConv3d(FactorizedConv):
    """`nn.Conv3d` with its kernel as a matrix [out, in·k·k·k] given by a factorization."""

    dims = 3

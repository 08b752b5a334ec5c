"""The weights of a model that `convert` can replace: what they are called, and what takes their place."""

import difflib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from sinelr_lightning.layers.factorization import Factorization
from sinelr_lightning.layers.factorized import (
    FactorizedConv,
    FactorizedConv1d,
    FactorizedConv2d,
    FactorizedConv3d,
    FactorizedLayer,
)
from sinelr_lightning.layers.factory import LinearFactory
from sinelr_lightning.layers.packed import PARTS, FactorizedAttention, FactorizedMatrix, pack

__all__ = [
    "Matrix",
    "Pattern",
    "Site",
    "check_matches",
    "find_sites",
    "matches",
    "ranked",
    "set_ranks",
    "shared_weights",
]

Pattern = str | Callable[[str, nn.Module], bool]

_CONVOLUTIONS: dict[type[nn.Module], type[FactorizedConv]] = {
    nn.Conv1d: FactorizedConv1d,
    nn.Conv2d: FactorizedConv2d,
    nn.Conv3d: FactorizedConv3d,
}
# nn.MultiheadAttention reads `out_proj.weight`, which a FactorizedLinear offers as well.
_LINEARS = (nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear)
# What has weight matrices and stays as it is: its code reads them in ways of its own. So do derived classes of linear
# layers and convolutions, those with a parametrization among them.
_OTHERS = (
    nn.Linear,
    nn.Bilinear,
    nn.RNNBase,
    nn.RNNCellBase,
    nn.modules.conv._ConvNd,
)


@dataclass(eq=False)
class Matrix:
    """One weight matrix W [m, n] and what it is to become.

    `name` is that of the factorized layer. `made_with` is the factory that was asked for, from which a budget's rank
    differs. `moment` is the second moment E[xxᵀ] [n, n] of its input, if measured;
    `fitted` is a fit's factorization, with its own gain for one, and its factors.
    """

    name: str
    weight: Tensor
    factory: LinearFactory
    made_with: LinearFactory | None = None
    moment: Tensor | None = None
    fitted: tuple[Factorization, dict[str, Tensor]] | None = None

    @property
    def rank(self) -> int | None:
        """The rank of the factory, of those that have one."""
        return getattr(self.factory, "rank", None)


@dataclass(eq=False)
class Site:
    """A module whose weight is to be replaced: one matrix, or three of a packed projection, by part."""

    module: nn.Module
    names: list[str]  # several for a module that stands in several places
    matrices: dict[str, Matrix] = field(default_factory=dict)

    @torch.no_grad()
    def install(self, model: nn.Module) -> None:
        """Put the new layers into the model."""
        if isinstance(self.module, nn.MultiheadAttention):
            pack(self.module, {part: self._packed(matrix) for part, matrix in self.matrices.items()})
            return
        matrix = self.matrices[""]
        made = self._made(matrix, self.module.weight, lambda: _layer(self.module, matrix.factory))
        if isinstance(self.module.bias, Tensor) and isinstance(made.bias, Tensor):
            made.bias.copy_(self.module.bias)
            made.bias.requires_grad_(self.module.bias.requires_grad)
        for name in self.names:
            model.set_submodule(name, made)

    def _packed(self, matrix: Matrix) -> FactorizedMatrix:
        assert isinstance(matrix.factory, Factorization)
        factorization, shape = matrix.factory, matrix.weight.shape
        return self._made(matrix, self.module.in_proj_weight, lambda: FactorizedMatrix(factorization, *shape))

    def _made(self, matrix: Matrix, replaced: Any, make: Callable[[], Any]) -> Any:
        """The layer with the old one's device, type and mode, and the fitted factors where there are some.

        It is frozen if the weight that it replaces was.
        """
        weight = matrix.weight
        if weight.is_meta:
            with torch.device("meta"):
                made = make()
        else:
            made = make()  # drawn on the CPU: the same factors on any device
        made.to(device=weight.device, dtype=weight.dtype).train(self.module.training)
        if not replaced.requires_grad:
            made.requires_grad_(False)
        if isinstance(made, FactorizedLayer) and isinstance(matrix.made_with, Factorization):
            made._made_with = matrix.made_with
        if matrix.fitted is not None:
            assert isinstance(made, FactorizedLayer)
            made.factorization, factors = matrix.fitted
            for name, factor in factors.items():
                getattr(made, name).copy_(factor)
        return made

    def refusal(self) -> str | None:
        """Why the module stays as it is, or None if it does not."""
        module = self.module
        if isinstance(module, nn.MultiheadAttention):
            if type(module) is not nn.MultiheadAttention:
                return f"{type(module).__name__} may read its projection in another way than nn.MultiheadAttention"
            if module.in_proj_weight is None:
                return "its projections are bare parameters of several sizes (kdim or vdim is not embed_dim)"
        elif stacked := _stacked_parameters(module):
            return f"its stacked matrices ({', '.join(stacked)}) belong to no linear layer or convolution"
        elif not self.matrices:
            return f"{type(module).__name__} uses its weights in ways of its own"
        for name in ("in_proj_weight",) if isinstance(module, nn.MultiheadAttention) else ("weight", "bias"):
            if name not in module._parameters:
                return f"its {name} is made of other parameters and buffers (weight_norm, spectral_norm or prune)"
        for matrix in self.matrices.values():
            reason = self._refusal_of(matrix)
            if reason:
                return reason
        return None

    def _refusal_of(self, matrix: Matrix) -> str | None:
        factory, weight = matrix.factory, matrix.weight
        groups = getattr(self.module, "groups", 1)
        if groups != 1:
            return f"a grouped convolution ({groups} groups)"
        if isinstance(factory, Factorization):
            try:
                count = factory.count(*weight.shape)
            except ValueError as error:
                return str(error)
            if count >= weight.numel():
                return f"its factors would have {count:,} parameters, its weight has {weight.numel():,}"
        elif not _is_linear(self.module):
            what = "convolutions" if type(self.module) in _CONVOLUTIONS else "packed projections"
            return f"{type(factory).__name__} makes no {what}"
        return None


def find_sites(model: nn.Module, factory: LinearFactory) -> dict[str, Site]:
    """Sites by the names that patterns match; a packed projection is `….in_proj_weight`."""
    sites: dict[nn.Module, Site] = {}
    found: dict[str, Site] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.MultiheadAttention) and not isinstance(module, FactorizedAttention):
            place = f"{name}.in_proj_weight".lstrip(".")
        elif name and (_is_linear(module) or isinstance(module, _OTHERS) or _stacked_parameters(module)):
            place = name
        else:
            continue
        site = sites.setdefault(module, Site(module, []))
        if not site.names:
            site.matrices = _matrices(place, module, factory)
        site.names.append(place)
        found[place] = site
    return found


def _stacked_parameters(module: nn.Module) -> list[str]:
    """Names of the module's own parameters that hold many matrices, such as the experts of a mixture.

    Those of the layers that are known are none, nor is a position embedding `[1, tokens, width]`.
    """
    if isinstance(module, (*_OTHERS, FactorizedLayer, ParametrizationList)):
        return []
    own = [(name, p) for name, p in module.named_parameters(recurse=False) if not nn.parameter.is_lazy(p)]
    return [name for name, parameter in own if sum(size > 1 for size in parameter.shape) >= 3]


def _is_linear(module: nn.Module) -> bool:
    return type(module) in _LINEARS or _is_transposed(module)


def _is_transposed(module: nn.Module) -> bool:
    """Whether it is the linear layer of GPT-2 and its kin, whose weight is [in, out]; transformers may be missing."""
    kind = type(module)
    return kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"


def _matrices(place: str, module: nn.Module, factory: LinearFactory) -> dict[str, Matrix]:
    if _is_linear(module) or type(module) in _CONVOLUTIONS:
        assert isinstance(module.weight, Tensor)
        weight = module.weight.detach().flatten(1)
        return {"": Matrix(place, weight.t() if _is_transposed(module) else weight, factory)}
    if not isinstance(module, nn.MultiheadAttention) or module.in_proj_weight is None:
        return {}
    weights = module.in_proj_weight.detach().chunk(3)
    prefix = place.removesuffix("_weight")
    return {part: Matrix(f"{prefix}.{part}", weight, factory) for part, weight in zip(PARTS, weights, strict=True)}


def _layer(module: nn.Module, factory: LinearFactory) -> nn.Module:
    """A layer in place of `module`, made by the factory."""
    bias = module.bias is not None
    if _is_linear(module):
        size: Any = reversed(module.weight.shape) if isinstance(module, nn.Linear) else module.weight.shape
        return factory(*size, bias)
    assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and isinstance(factory, Factorization)
    return _CONVOLUTIONS[type(module)](
        factory,
        module.in_channels,
        module.out_channels,
        module.kernel_size,
        module.stride,
        module.padding,
        module.dilation,
        bias,
        module.padding_mode,
    )


def shared_weights(model: nn.Module) -> set[nn.Module]:
    """Modules with a weight that another module has too, such as a tied embedding."""
    bearers = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    return {
        module
        for module in model.modules()
        for name in ("weight", "in_proj_weight")
        if bearers[id(module._parameters.get(name))] > 1
    }


def matches(patterns: list[Pattern], name: str, module: nn.Module) -> bool:
    """Whether one of the patterns takes the name."""
    return any(fnmatchcase(name, p) if isinstance(p, str) else p(name, module) for p in patterns)


def check_matches(pattern: Pattern, sites: dict[str, Site]) -> None:
    """Refuse a pattern that takes no site.

    Raises:
        ValueError: with the nearest names.
    """
    if not any(matches([pattern], name, site.module) for name, site in sites.items()):
        raise ValueError(f"pattern {pattern!r} matches no linear layer or convolution; {_near(pattern, list(sites))}")


def _near(pattern: Pattern, names: list[str]) -> str:
    near = difflib.get_close_matches(str(pattern), names, n=3, cutoff=0.3) or names[:3]
    return f"near names: {', '.join(near)}" if near else "the model has none"


def ranked(factory: LinearFactory, rank: int) -> Any:
    """The factory with another rank.

    Raises:
        ValueError: it has no rank, or not such a rank.
    """
    if not isinstance(factory, Factorization) or "rank" not in {f.name for f in fields(factory)}:
        raise ValueError(f"ranks and budget need a factorization with a rank, got {type(factory).__name__}")
    return replace(factory, rank=rank)


def set_ranks(sites: dict[str, Site], ranks: dict[str, int]) -> None:
    """Give each matrix the rank of the first pattern that takes its site's name or its own (`….in_proj.q`).

    Raises:
        ValueError: a pattern takes none; a factory has no rank, or not such a rank.
    """
    unused = dict(ranks)
    for place, site in sites.items():
        for matrix in site.matrices.values():
            taking = [p for p in ranks if fnmatchcase(place, p) or fnmatchcase(matrix.name, p)]
            for pattern in taking:
                unused.pop(pattern, None)
            if taking:
                matrix.factory = ranked(matrix.factory, ranks[taking[0]])
    for pattern in unused:
        names = [name for place, site in sites.items() for name in (place, *(m.name for m in site.matrices.values()))]
        near = _near(pattern, list(dict.fromkeys(names)))
        raise ValueError(f"pattern {pattern!r} of ranks matches no layer that is converted; {near}")

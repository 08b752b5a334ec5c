"""Replacing the linear layers and convolutions of any model by factorized ones."""

import difflib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import nn

from sinelr_lightning.layers.factorization import Factorization
from sinelr_lightning.layers.factorized import (
    FactorizedConv,
    FactorizedConv1d,
    FactorizedConv2d,
    FactorizedConv3d,
    FactorizedLayer,
)
from sinelr_lightning.layers.factory import LinearFactory

__all__ = ["Conversion", "Pattern", "convert"]

Pattern = str | Callable[[str, nn.Module], bool]

_CONVOLUTIONS: dict[type[nn.Module], type[FactorizedConv]] = {
    nn.Conv1d: FactorizedConv1d,
    nn.Conv2d: FactorizedConv2d,
    nn.Conv3d: FactorizedConv3d,
}
# nn.MultiheadAttention reads `out_proj.weight`, which a FactorizedLinear offers as well.
_LINEARS = (nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear)


@dataclass
class Conversion:
    """What `convert` did: names of the layers replaced, and of those left with the reason."""

    converted: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        left = "".join(f"\n  left {name}: {reason}" for name, reason in self.skipped.items())
        return f"converted {len(self.converted)} layers{left}"


def convert(
    model: nn.Module,
    factory: LinearFactory,
    include: Iterable[Pattern] = ("*",),
    exclude: Iterable[Pattern] = (),
    init: Literal["fresh", "fit"] = "fresh",
) -> Conversion:
    """Change `model` in place: its linear layers and convolutions become layers made by `factory`.

    A layer is left as it is, with the reason in the result, if its factors would not be smaller than its weight, if
    its weight is shared with another module (a tied embedding), if it is a grouped or depthwise
    convolution, or if the factory makes no convolutions. The packed input projection of `nn.MultiheadAttention` is
    no layer and is left too. A layer that stands in several places stays one layer.

    Args:
        model: any module; the module itself is not replaced, its descendants are.
        factory: for example `SineLowRank(rank=8)`.
        include: patterns over the dotted names (`"*.mlp.*"`), or functions of (name, module).
        exclude: patterns that win over `include`.
        init: "fresh" for newly drawn factors, "fit" for factors that approximate the present weights. A fit may
            change hyperparameters of single layers (the gain of a sine); these travel in `state_dict`.

    Raises:
        ValueError: a pattern matches no linear layer or convolution (with the nearest names), an unknown `init`,
            "fit" with a factory whose layers have no factors.
    """
    if init not in ("fresh", "fit"):
        raise ValueError(f'init must be "fresh" or "fit", got {init!r}')
    if init == "fit" and not isinstance(factory, Factorization):
        raise ValueError(f'init="fit" needs a factorization, got {type(factory).__name__}')
    include, exclude = list(include), list(exclude)
    candidates = {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if name and (type(module) in _LINEARS or type(module) in _CONVOLUTIONS)
    }
    for pattern in (*include, *exclude):
        _check_matches(pattern, candidates)
    bearers = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    replacements: dict[nn.Module, nn.Module | str] = {}
    result = Conversion()
    for name, module in candidates.items():
        if not _matches(include, name, module) or _matches(exclude, name, module):
            continue
        if module not in replacements:
            shared = bearers[id(module.weight)] > 1
            made = "its weight is shared with another module" if shared else _replacement(module, factory)
            if isinstance(made, nn.Module):
                _take_over(made, module, fit=init == "fit")
            replacements[module] = made
        made = replacements[module]
        if isinstance(made, str):
            result.skipped[name] = made
            continue
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, made)
        result.converted.append(name)
    for name in _packed_projections(model):
        if any(isinstance(p, str) and fnmatchcase(name, p) for p in include):
            result.skipped[name] = "nn.MultiheadAttention packs three projections into a bare parameter"
    return result


def _packed_projections(model: nn.Module) -> list[str]:
    return [
        f"{name}.in_proj_weight".lstrip(".")
        for name, module in model.named_modules()
        if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None
    ]


def _matches(patterns: list[Pattern], name: str, module: nn.Module) -> bool:
    return any(fnmatchcase(name, p) if isinstance(p, str) else p(name, module) for p in patterns)


def _check_matches(pattern: Pattern, candidates: dict[str, nn.Module]) -> None:
    if any(_matches([pattern], name, module) for name, module in candidates.items()):
        return
    near = difflib.get_close_matches(str(pattern), candidates, n=3, cutoff=0.3) or list(candidates)[:3]
    raise ValueError(
        f"pattern {pattern!r} matches no linear layer or convolution; "
        + (f"near names: {', '.join(near)}" if near else "the model has none")
    )


def _replacement(module: nn.Module, factory: LinearFactory) -> nn.Module | str:
    """The new layer, or the reason why there is none."""
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    m, n = weight.shape[0], weight[0].numel()
    if isinstance(factory, Factorization):
        try:
            count = factory.count(m, n)
        except ValueError as error:
            return str(error)
        if count >= m * n:
            return f"its factors would have {count:,} parameters, its weight has {m * n:,}"
    bias = module.bias is not None
    if isinstance(module, nn.Linear):
        return factory(n, m, bias)
    if not isinstance(factory, Factorization):
        return f"{type(factory).__name__} makes no convolutions"
    assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    if module.groups != 1:
        return f"a grouped convolution ({module.groups} groups)"
    return _CONVOLUTIONS[type(module)](
        factory,
        module.in_channels,
        m,
        module.kernel_size,
        module.stride,
        module.padding,
        module.dilation,
        bias,
        module.padding_mode,
    )


@torch.no_grad()
def _take_over(made: nn.Module, module: nn.Module, *, fit: bool) -> None:
    """Give the new layer the old one's device, type, mode and bias, and with `fit` its weight as nearly as it can."""
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    made.to(device=weight.device, dtype=weight.dtype).train(module.training)
    if fit and isinstance(made, FactorizedLayer):
        made.factorization, factors = made.factorization.fit(weight.detach().flatten(1))
        for name, factor in factors.items():
            getattr(made, name).copy_(factor)
    if isinstance(module.bias, torch.Tensor) and isinstance(made.bias, torch.Tensor):
        made.bias.copy_(module.bias)

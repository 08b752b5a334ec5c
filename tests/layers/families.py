"""Every family of the package with example hyperparameters, a family that uses the seam's defaults, and measures."""

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sinelr_lightning.layers  # noqa: F401  (defines the families)
from sinelr_lightning.layers.factorization import Factorization, wide

# Required hyperparameters other than the rank, by the name of the family.
HYPERPARAMETERS: dict[str, dict[str, Any]] = {}
# Ranks other than 1, 2 and 3, where at the small sizes here a weight has fewer parameters than the factors.
RANKS: dict[str, tuple[int, ...]] = {"BlockTensorTrain": (1,), "Kronecker": (1,)}


@dataclass(frozen=True)
class ShuffledLowRank(Factorization):
    """U·Vᵀ with its columns in a random order: an integer factor, and every default of `Factorization`."""

    rank: int

    def factors(self, m: int, n: int, *, zero: bool = False) -> dict[str, Tensor]:
        u = torch.zeros(m, self.rank) if zero else torch.randn(m, self.rank) / n**0.5
        return {"order": torch.randperm(n), "U": u, "V": torch.randn(n, self.rank)}

    def weight(self, order: Tensor, U: Tensor, V: Tensor) -> Tensor:
        return wide(U) @ wide(V)[order].t()


def _subclasses(cls: type) -> list[type]:
    return [cls, *(below for child in cls.__subclasses__() for below in _subclasses(child))]


def _example(family: type, rank: int) -> Factorization:
    required = {f.name for f in dataclasses.fields(family) if f.default is f.default_factory is dataclasses.MISSING}
    values = {"rank": rank, **HYPERPARAMETERS.get(family.__name__, {})}
    missing = required - set(values)
    assert not missing, f"give examples of {sorted(missing)} of {family.__name__} in HYPERPARAMETERS"
    return family(**{name: values[name] for name in required})


PACKAGE_FAMILIES = [
    family
    for family in _subclasses(Factorization)
    if family.__module__.startswith("sinelr_lightning.") and not inspect.isabstract(family)
]
EXAMPLES = [
    _example(family, rank)
    for family in (*PACKAGE_FAMILIES, ShuffledLowRank)
    for rank in RANKS.get(family.__name__, (1, 2, 3))
]


def name_of(example: Factorization) -> str:
    return f"{type(example).__name__}-{getattr(example, 'rank', '')}"


M, N = 40, 48  # rank-1 sines run thin at this size in float32, formed in float64; rank 2: `thin_at_rank_two`

every_family = pytest.mark.parametrize("family", EXAMPLES, ids=name_of)


def float_factors(layer: nn.Module) -> list[Tensor]:
    return [f for f in layer.factors() if f.is_floating_point()]


def loss_weights(y: Tensor) -> Tensor:
    """Weights of the outputs in a loss: all different from zero, and exact in every type."""
    return (7 * torch.arange(y.numel()) % 5 - 1.5).reshape(y.shape).to(y.dtype)


def gradients(layer: nn.Module, x: Tensor, through: Callable[[Tensor], Tensor] | None = None) -> list[Tensor]:
    """Output and gradients of x, factors and bias for a loss that weighs every output differently."""
    x = x.detach().requires_grad_()
    y = (layer if through is None else through)(x)
    weights = loss_weights(y)
    inputs = [x, *layer.parameters()]
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), inputs)]


def kept(run: Callable[[], Tensor]) -> list[int]:
    """Elements of each distinct tensor that autograd keeps for backward."""
    storages: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes() // t.element_size()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        result = run()
    del result
    return list(storages.values())


def strained(family: Factorization) -> Factorization:
    """The family at its most sensitive: for a sine, 200 rad of frequency at rank 8."""
    names = {f.name for f in dataclasses.fields(family)}
    if not {"rank", "frequency"} <= names or family.rank <= 2:  # the thin way
        return family
    return dataclasses.replace(family, rank=8, frequency=200)


def relative_error(value: Tensor, reference: Tensor) -> float:
    return ((value.double() - reference).norm() / reference.norm().clamp_min(1e-30)).item()


def inputs(rows: int, n: int) -> Tensor:
    """Inputs that are far larger in some directions than in others."""
    return torch.randn(rows, n) * torch.logspace(0, -2, n)

"""Every family of the package with example hyperparameters, and a family that uses the seam's defaults alone."""

import dataclasses
import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import sinelr_lightning.layers  # noqa: F401  (defines the families)
from sinelr_lightning.layers.factorization import Factorization, wide

# Required hyperparameters other than the rank, by the name of the family.
HYPERPARAMETERS: dict[str, dict[str, Any]] = {}


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
EXAMPLES = [_example(family, rank) for family in (*PACKAGE_FAMILIES, ShuffledLowRank) for rank in (1, 3)]


def name_of(example: Factorization) -> str:
    return f"{type(example).__name__}-{getattr(example, 'rank', '')}"

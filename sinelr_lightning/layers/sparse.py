"""A low-rank matrix, or the sine of one, plus a sparse one with a fixed random support."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from sinelr_lightning.layers.factorization import Factorization, check_positive, check_rank_given, wide
from sinelr_lightning.layers.fit import best_low_rank
from sinelr_lightning.layers.low_rank import LowRank
from sinelr_lightning.layers.sine_kin import SineKin
from sinelr_lightning.layers.sine_low_rank import sine_of

__all__ = ["SparseLowRank", "SparseSine"]


def _support(m: int, n: int, density: float) -> dict[str, Tensor]:
    """Places of density·m·n different entries of an m×n matrix, drawn at random, and their values."""
    count = max(1, round(density * m * n))
    index = torch.randperm(m * n)[:count].sort().values
    return {"index": index, "values": torch.empty(count).uniform_(-1, 1) / math.sqrt(n)}


def _with_sparse(dense: Tensor, index: Tensor, values: Tensor) -> Tensor:
    return dense.flatten().index_add(0, index, wide(values)).view_as(dense)


def _check_density(density: float) -> None:
    if not 0 < density < 1:
        raise ValueError(f"density must be above 0 and below 1, got {density}")


@dataclass(frozen=True)
class SparseLowRank(Factorization):
    """W = scale·U·Vᵀ with `values` added at the places `index`; k(m + n) + density·m·n parameters.

    Han et al., SLTrain, NeurIPS 2024 (arXiv 2406.02214), equation 1: U starts at zero, V Kaiming-uniform, the values
    uniform in ±1/√n at places that are drawn once, and the low-rank part is multiplied by α/r.

    Args:
        rank: number of columns k of both factors, 1 ≤ k < min(m, n).
        density: share of the entries that are in the sparse part, 0 < density < 1.
        scale: α/r, which multiplies the low-rank part.

    Raises:
        ValueError: rank is no whole number from 1 on, scale no finite number above 0, or a density outside (0, 1);
            rank ≥ min(m, n) when a layer is made.
    """

    rank: int
    density: float = 0.03
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_rank_given(self.rank)
        _check_density(self.density)
        check_positive("scale", self.scale)

    def factors(self, m: int, n: int, *, zero: bool = False) -> dict[str, Tensor]:
        """U [m, rank] of zeros, V [n, rank], index and values [density·m·n]; the values are zero for `zero=True`."""
        low_rank, sparse = LowRank(self.rank).factors(m, n, zero=True), _support(m, n, self.density)
        return {**low_rank, **sparse, "values": sparse["values"] * (not zero)}

    def weight(self, U: Tensor, V: Tensor, index: Tensor, values: Tensor) -> Tensor:
        """The weight [m, n]."""
        return _with_sparse(wide(U * self.scale) @ wide(V).t(), index, values)

    def starts(self, target: Tensor, moment: Tensor | None = None) -> Iterable[tuple[Self, dict[str, Tensor]]]:
        """The truncated SVD, with values of zero."""
        u, v = best_low_rank(target, self.rank, moment)
        start = {name: factor.to(target.device) for name, factor in self.factors(*target.shape, zero=True).items()}
        yield self, start | {"U": u / self.scale, "V": v}


@dataclass(frozen=True)
class SparseSine(SineKin):
    """W = sin(ω·U·Vᵀ)/g with `values` added at the places `index`; k(m + n) + density·m·n parameters.

    The sine (arXiv 2403.19243) in the place of SLTrain's low-rank part (arXiv 2406.02214).

    Args:
        rank, frequency, gain, phase_spread, lr_multiplier, balanced: of `SineLowRank`.
        density: share of the entries that are in the sparse part, 0 < density < 1.

    Raises:
        ValueError: what `SineLowRank` refuses, or a density outside (0, 1).
    """

    density: float = 0.03

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_density(self.density)

    def factors(self, m: int, n: int, *, zero: bool = False) -> dict[str, Tensor]:
        """U [m, rank], V [n, rank], index and values [density·m·n]; U and the values are zero for `zero=True`."""
        sparse = _support(m, n, self.density)
        return {**super().factors(m, n, zero=zero), **sparse, "values": sparse["values"] * (not zero)}

    def weight(self, U: Tensor, V: Tensor, index: Tensor, values: Tensor) -> Tensor:
        """The weight [m, n]."""
        return _with_sparse(self.sine_weight(U, V), index, values)

    def starts(self, target: Tensor, moment: Tensor | None = None) -> Iterable[tuple[Self, dict[str, Tensor]]]:
        """Those of the sine, with values of zero."""
        sparse = {name: factor.to(target.device) for name, factor in _support(*target.shape, self.density).items()}
        sparse["values"] = torch.zeros_like(sparse["values"])
        for sine, factors in sine_of(self).starts(target, moment):
            yield replace(self, frequency=sine.frequency, gain=sine.gain), factors | sparse

"""The Hadamard product of two low-rank matrices: FedPara, called LoHa where it is an adapter."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from sinelr_lightning.layers.factorization import Factorization, check_rank, check_rank_given, kaiming_factors, wide
from sinelr_lightning.layers.fit import best_low_rank

__all__ = ["FedPara"]


@dataclass(frozen=True)
class FedPara(Factorization):
    """W = (U₁·V₁ᵀ) ∘ (U₂·V₂ᵀ) with U [m, rank], V [n, rank]; 2k(m + n) parameters, rank up to k².

    Hyeon-Woo et al., ICLR 2022 (arXiv 2108.06098), proposition 1. The factors start so that W has the variance of
    `nn.Linear`, 1/(3n), each product that of its root.

    Args:
        rank: k of either product, 1 ≤ k < min(m, n).

    Raises:
        ValueError: rank is no whole number from 1 on, or rank ≥ min(m, n) when a layer is made.
    """

    rank: int

    def __post_init__(self) -> None:
        check_rank_given(self.rank)

    def factors(self, m: int, n: int, *, zero: bool = False) -> dict[str, Tensor]:
        """U1 [m, rank], V1 [n, rank], U2 and V2; U1 is zero for `zero=True`."""
        check_rank(self.rank, m, n)
        (u1, v1), (u2, v2) = kaiming_factors(m, n, self.rank), kaiming_factors(m, n, self.rank)
        stretch = 3 * math.sqrt(n) / (3 * n) ** 0.25  # from a variance of 1/(9n) to one of 1/√(3n)
        return {
            "U1": torch.zeros_like(u1) if zero else u1 * stretch,
            "V1": v1,
            "U2": u2 * stretch,
            "V2": v2,
        }

    def weight(self, U1: Tensor, V1: Tensor, U2: Tensor, V2: Tensor) -> Tensor:
        """(U1·V1ᵀ) ∘ (U2·V2ᵀ), [m, n]."""
        return (wide(U1) @ wide(V1).t()) * (wide(U2) @ wide(V2).t())

    def starts(self, target: Tensor, moment: Tensor | None = None) -> Iterable[tuple[Self, dict[str, Tensor]]]:
        """The truncated SVD, over a constant, as the first product; the second is that constant everywhere.

        The constant gives both products one size. The second has it from its first columns alone: those of U₂ that
        follow are zero, those of V₂ random.
        """
        u1, v1 = best_low_rank(target, self.rank, moment)
        root = (u1 @ v1.t()).square().mean().clamp_min(1e-30) ** (1 / 8)
        u2, v2 = torch.zeros_like(u1), torch.randn_like(v1)
        u2[:, 0] = v2[:, 0] = 1
        yield self, {"U1": u1 / root, "V1": v1 / root, "U2": u2 * root, "V2": v2 * root}

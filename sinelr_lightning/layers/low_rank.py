"""Plain low rank: W = U·Vᵀ, the rival that the sine has to beat."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from sinelr_lightning.layers.factorization import Factorization, check_rank, check_rank_given, kaiming_factors, wide

__all__ = ["LowRank"]


@dataclass(frozen=True)
class LowRank(Factorization):
    """W = U·Vᵀ with U [m, rank], V [n, rank]; k(m + n) parameters.

    The factors start so that W has the variance of `nn.Linear`, 1/(3n). The paper's baseline starts at a third of
    that variance, 1/(9n), and trains worse for it.

    Args:
        rank: number of columns k of both factors, 1 ≤ k < min(m, n).
        spectral: start from the truncated SVD of a fresh weight of `nn.Linear` instead, U = L·√S and V = R·√S
            (Khodak et al. 2021, arXiv 2105.01029, section 3.1): a stronger rival at times, at the cost of an SVD.

    Raises:
        ValueError: rank is no whole number from 1 on, or rank ≥ min(m, n) when a layer is made.
    """

    rank: int
    spectral: bool = False

    def __post_init__(self) -> None:
        check_rank_given(self.rank)

    def factors(self, m: int, n: int, *, zero: bool = False) -> dict[str, Tensor]:
        """U [m, rank] and V [n, rank]; U is zero for `zero=True`."""
        check_rank(self.rank, m, n)
        if self.spectral:
            fresh = torch.empty(m, n, dtype=torch.float32).uniform_(-1, 1) / n**0.5  # halves have no SVD
            left, singular, right = torch.linalg.svd(fresh, full_matrices=False)
            roots, dtype = singular[: self.rank].sqrt(), torch.get_default_dtype()
            u = (left[:, : self.rank] * roots).contiguous().to(dtype)
            v = (right[: self.rank].t() * roots).contiguous().to(dtype)
        else:
            u, v = kaiming_factors(m, n, self.rank)
            u = u * 3**0.5
        return {"U": torch.zeros_like(u) if zero else u, "V": v}

    def weight(self, U: Tensor, V: Tensor) -> Tensor:
        """U·Vᵀ, [m, n]."""
        return wide(U) @ wide(V).t()

    def linear(self, x: Tensor, bias: Tensor | None, U: Tensor, V: Tensor) -> Tensor:
        """Two thin products, (x·V)·Uᵀ + bias: W is never formed."""
        return torch.nn.functional.linear(x @ V.to(x.dtype), U.to(x.dtype), bias)

    def multiply_adds(self, U: Tensor, V: Tensor) -> int:
        """rank·(m + n)."""
        return U.numel() + V.numel()

    def served(self, U: Tensor, V: Tensor) -> tuple[Tensor, ...]:
        """(U, Vᵀ): the factors themselves."""
        return U, V.t()

    def fit_all(
        self, targets: Tensor, moments: Tensor | None = None, steps: int = 0
    ) -> list[tuple[Self, dict[str, Tensor]]]:
        """The truncated singular value decomposition of W, or of W·C^½: the best of low rank; no steps needed."""
        from sinelr_lightning.layers.fit import best_low_rank

        left, right = best_low_rank(wide(targets), self.rank, moments)
        return [(self, {"U": u, "V": v}) for u, v in zip(left, right, strict=True)]

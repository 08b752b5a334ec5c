"""A sum of Kronecker products."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from sinelr_lightning.layers.factorization import Factorization, check_rank_given, wide
from sinelr_lightning.layers.fit import best_low_rank, best_scale

__all__ = ["Kronecker", "balanced", "check_fewer"]


def balanced(size: int) -> tuple[int, int]:
    """The two factors of `size` that lie nearest to each other, the smaller first: (24, 32) for 768."""
    small = next(d for d in range(math.isqrt(size), 0, -1) if size % d == 0)
    return small, size // small


def check_fewer(what: str, count: int, m: int, n: int) -> None:
    """Refuse factors with as many parameters as the m×n weight that they stand for.

    Raises:
        ValueError: `what` has count ≥ m·n parameters.
    """
    if count >= m * n:
        raise ValueError(
            f"{what} have {count:,} parameters, the dense {m}×{n} weight {m * n:,}: take a smaller rank, or Dense"
        )


@dataclass(frozen=True)
class Kronecker(Factorization):
    """W = Σ_{i < rank} A_i ⊗ B_i with A [rank, m₁, n₁], B [rank, m₂, n₂], m = m₁·m₂ and n = n₁·n₂ split evenly.

    Parameters: rank·(m₁n₁ + m₂n₂), very few. Zhang et al., ICLR 2021 (arXiv 2102.08597), equation 4, and as an
    adapter KronA (arXiv 2212.10650). W starts with the variance of `nn.Linear`, 1/(3n).

    Args:
        rank: number of products, ≥ 1.

    Raises:
        ValueError: rank is no whole number from 1 on, or so many products that a dense weight has fewer parameters.
    """

    rank: int

    def __post_init__(self) -> None:
        check_rank_given(self.rank)

    def factors(self, m: int, n: int, *, zero: bool = False) -> dict[str, Tensor]:
        """A and B; A is zero for `zero=True`."""
        (m1, m2), (n1, n2) = balanced(m), balanced(n)
        what = f"{self.rank} Kronecker products of {m1}×{n1} and {m2}×{n2}"
        check_fewer(what, self.rank * (m1 * n1 + m2 * n2), m, n)
        a = torch.empty(self.rank, m1, n1).uniform_(-1, 1) * math.sqrt(3 / (n1 * self.rank))
        b = torch.empty(self.rank, m2, n2).uniform_(-1, 1) / math.sqrt(n2)
        return {"A": torch.zeros_like(a) if zero else a, "B": b}

    def weight(self, A: Tensor, B: Tensor) -> Tensor:
        """Σ_i A_i ⊗ B_i, [m, n]."""
        (_, m1, n1), (_, m2, n2) = A.shape, B.shape
        return torch.einsum("rac,rbd->abcd", wide(A), wide(B)).reshape(m1 * m2, n1 * n2)

    def linear(self, x: Tensor, bias: Tensor | None, A: Tensor, B: Tensor) -> Tensor:
        """Σ_i A_i·X·B_iᵀ + bias with each row of x as a matrix X [n₁, n₂]; W is formed where that is cheaper."""
        if self._formed_is_cheaper(A, B):
            return super().linear(x, bias, A, B)
        grid = x.reshape(*x.shape[:-1], A.shape[2], B.shape[2])
        right = torch.einsum("...cd,rbd->...rcb", grid, B.to(x.dtype))
        y = torch.einsum("...rcb,rac->...ab", right, A.to(x.dtype)).flatten(-2)
        return y if bias is None else y + bias.to(y.dtype)

    def multiply_adds(self, A: Tensor, B: Tensor) -> int:
        """rank·n₁·m₂·(n₂ + m₁), or m·n where that is less."""
        (rank, m1, n1), (_, m2, n2) = A.shape, B.shape
        return min(rank * n1 * m2 * (n2 + m1), m1 * m2 * n1 * n2)

    def served(self, A: Tensor, B: Tensor) -> tuple[Tensor, ...]:
        """Nothing while the factors multiply less than the weight would, else the weight."""
        return (self.weight(A, B),) if self._formed_is_cheaper(A, B) else ()

    def _formed_is_cheaper(self, A: Tensor, B: Tensor) -> bool:
        """Whether the products of many terms would take as much as the weight."""
        return self.multiply_adds(A, B) == A[0].numel() * B[0].numel()

    def fit_all(
        self, targets: Tensor, moments: Tensor | None = None, steps: int = 300
    ) -> list[tuple[Self, dict[str, Tensor]]]:
        """The best there is by a singular value decomposition; with moments, descended to from there."""
        return super().fit_all(targets, moments, 0 if moments is None else steps)

    def starts(self, target: Tensor, moment: Tensor | None = None) -> Iterable[tuple[Self, dict[str, Tensor]]]:
        """The truncated SVD of W rearranged to [m₁·n₁, m₂·n₂], which is Σ_i vec(A_i)·vec(B_i)ᵀ for the products.

        Van Loan and Pitsianis 1993, Approximation with Kronecker products, section 2.
        """
        (m1, m2), (n1, n2) = map(balanced, target.shape)
        rearranged = target.reshape(m1, m2, n1, n2).transpose(1, 2).reshape(m1 * n1, m2 * n2)
        left, right = best_low_rank(rearranged, self.rank)
        a, b = left.t().reshape(-1, m1, n1), right.t().reshape(-1, m2, n2)
        scale = 1.0 if moment is None else best_scale(self.weight(a, b), target, moment)
        yield self, {"A": a * scale, "B": b}

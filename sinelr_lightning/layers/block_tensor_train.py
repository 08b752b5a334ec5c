"""Block tensor-train matrices: Monarch matrices of any rank."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from sinelr_lightning.layers.factorization import FactorGroup, Factorization, check_rank_given, wide
from sinelr_lightning.layers.fit import best_low_rank, best_scale
from sinelr_lightning.layers.kronecker import balanced, check_fewer

__all__ = ["BlockTensorTrain"]


@dataclass(frozen=True)
class BlockTensorTrain(Factorization):
    """W[(i, j), (k, l)] = Σ_ρ L[i, l, ρ, j]·R[l, i, ρ, k], i < m₁, j < m₂, k < n₁, l < n₂, sizes split evenly.

    For each (i, l) a block of m₂ × n₁ entries has rank `rank`; at rank 1 it is a Monarch matrix. Parameters:
    rank·m₁·n₂·(m₂ + n₁). Qiu et al., ICML 2024 (arXiv 2406.06248), section 3, and Dao et al., ICML 2022
    (arXiv 2204.00595). W starts with the variance of `nn.Linear`, 1/(3n), split after the fan-in of either factor.

    Args:
        rank: of each block, ≥ 1.
        own_rates: whether the factors have learning rates of their own, n/(2·d) times that of a dense layer, where a
            factor has d inputs: rank·n₂ of L, n₁ of R. A step of Adam then moves features as far as in a dense layer
            (section 3 of the paper; the half, for two factors, is of the authors' code).

    Raises:
        ValueError: rank is no whole number from 1 on, or so large that a dense weight has fewer parameters.
    """

    rank: int
    own_rates: bool = True

    def __post_init__(self) -> None:
        check_rank_given(self.rank)

    def factors(self, m: int, n: int, *, zero: bool = False) -> dict[str, Tensor]:
        """L [m₁, n₂, rank, m₂] and R [n₂, m₁, rank, n₁]; L is zero for `zero=True`."""
        (m1, m2), (n1, n2) = balanced(m), balanced(n)
        what = f"{m1}×{n2} blocks of {m2}×{n1} at rank {self.rank}"
        check_fewer(what, self.rank * m1 * n2 * (m2 + n1), m, n)
        left = torch.empty(m1, n2, self.rank, m2).uniform_(-1, 1) / math.sqrt(n2 * self.rank)
        right = torch.empty(n2, m1, self.rank, n1).uniform_(-1, 1) * math.sqrt(3 / n1)
        return {"L": torch.zeros_like(left) if zero else left, "R": right}

    def weight(self, L: Tensor, R: Tensor) -> Tensor:
        """The weight [m₁·m₂, n₁·n₂]."""
        (m1, n2, _, m2), n1 = L.shape, R.shape[-1]
        return torch.einsum("ilrj,lirk->ijkl", wide(L), wide(R)).reshape(m1 * m2, n1 * n2)

    def linear(self, x: Tensor, bias: Tensor | None, L: Tensor, R: Tensor) -> Tensor:
        """Two products of blocks: W is never formed."""
        grid = x.reshape(*x.shape[:-1], R.shape[-1], L.shape[1])
        inner = torch.einsum("...kl,lirk->...ilr", grid, R.to(x.dtype))
        y = torch.einsum("...ilr,ilrj->...ij", inner, L.to(x.dtype)).flatten(-2)
        return y if bias is None else y + bias.to(y.dtype)

    def groups(self, m: int, n: int) -> dict[str, FactorGroup]:
        """The factors' own rates, or none."""
        n1, n2 = balanced(n)
        inputs = {"L": self.rank * n2, "R": n1} if self.own_rates else {}
        return {name: FactorGroup(lr_multiplier=n / (2 * d)) for name, d in inputs.items()}

    def multiply_adds(self, L: Tensor, R: Tensor) -> int:
        """One for each entry of either factor."""
        return L.numel() + R.numel()

    def served(self, *factors: Tensor) -> tuple[Tensor, ...]:
        """Nothing: the factors multiply less than the weight would."""
        return ()

    def fit_all(
        self, targets: Tensor, moments: Tensor | None = None, steps: int = 300
    ) -> list[tuple[Self, dict[str, Tensor]]]:
        """The best there is by singular value decompositions; with moments, descended to from there."""
        return super().fit_all(targets, moments, 0 if moments is None else steps)

    def starts(self, target: Tensor, moment: Tensor | None = None) -> Iterable[tuple[Self, dict[str, Tensor]]]:
        """The truncated SVD of each block, in the norm of the moment of the inputs that the block meets."""
        (m1, m2), (n1, n2) = map(balanced, target.shape)
        blocks = target.reshape(m1, m2, n1, n2).permute(0, 3, 1, 2)  # [i, l, j, k]
        of_blocks = None
        if moment is not None:
            of_blocks = moment.reshape(n1, n2, n1, n2).diagonal(dim1=1, dim2=3).permute(2, 0, 1)  # [l, k, k']
            of_blocks = of_blocks.expand(m1, n2, n1, n1)
        left, right = best_low_rank(blocks, self.rank, of_blocks)
        left, right = left.mT, right.permute(1, 0, 3, 2)
        scale = 1.0 if moment is None else best_scale(self.weight(left, right), target, moment)  # of blocks together
        yield self, {"L": left * scale, "R": right}

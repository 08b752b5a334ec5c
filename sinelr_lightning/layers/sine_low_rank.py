"""The sine of a low-rank matrix: W = sin(ω·U·Vᵀ)/g (Ji et al., ICLR 2025, arXiv 2403.19243, eq. 3)."""

import math
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from sinelr_lightning.layers import sine_ops
from sinelr_lightning.layers.adapted import adapted_sine_linear
from sinelr_lightning.layers.factorization import wide
from sinelr_lightning.layers.select import thin_nodes
from sinelr_lightning.layers.sine_kin import SineKin
from sinelr_lightning.layers.thin import thin_factors

__all__ = ["SineLowRank", "sine_of"]


@dataclass(frozen=True)
class SineLowRank(SineKin):
    """W = sin(ω·U·Vᵀ)/g with U [m, rank], V [n, rank]; k(m + n) parameters, a rank that grows with ω.

    The argument of the sine is the *phase*, in radians. With the initialisation of the paper its spread at the start
    is ω/(3√n) at any rank: 2.1 rad for n = 256 and ω = 100. Far below 1 rad the layer is a scaled low-rank layer;
    beyond about 4 rad its stable rank grows no further.

    At rank 1 and 2 the layer computes two thin products instead of a dense one while its size and its phases allow it
    (`select.thin_nodes`), with the same values and gradients.

    Args:
        rank: number of columns k of both factors, 1 ≤ k < min(m, n).
        frequency: ω, or "auto" for the ω that starts at `phase_spread`, ω = 3·√n·phase_spread.
        gain: g, which divides; None for √n.
        phase_spread: standard deviation of the phases at the start in radians, for `frequency="auto"`.
        lr_multiplier: learning rate of the factors over that of the other parameters.
        balanced: start with U and V of one size, entries up to 1/(k·n)^¼, at the same phases; the paper's code has
            1/√k and 1/√n, so that a step of Adam turns the phases by V's share alone, and by more.

    Raises:
        ValueError: rank is no whole number from 1 on, or frequency, gain, phase_spread or lr_multiplier no finite
            number above 0; rank ≥ min(m, n) when a layer is made.
    """

    def weight(self, U: Tensor, V: Tensor) -> Tensor:
        """sin(ω·U·Vᵀ)/g, [m, n]; the phases are formed in float32 or wider."""
        return self.sine_weight(U, V)

    def linear(self, x: Tensor, bias: Tensor | None, U: Tensor, V: Tensor) -> Tensor:
        """x·Wᵀ + bias by the cheaper of the thin and the formed way; nothing of size m×n is kept for backward."""
        n = V.shape[0]
        if torch.compiler.is_exporting():
            return self._formed_linear(x, bias, U, V)
        return sine_ops.sine_linear(x, U, V, bias, self.omega(n), self.divisor(n))

    def adapted_linear(
        self,
        x: Tensor,
        base: Tensor,
        bias: Tensor | None,
        scale: float | Tensor,
        U: Tensor,
        V: Tensor,
        *,
        magnitude: Tensor | None = None,
    ) -> Tensor:
        """x·(base + scale·W)ᵀ + bias, formed or, while phases are small, by thin products beside the base's own.

        See `layers.adapted`; nothing of size m×n is kept for backward.
        """
        n = V.shape[0]
        if torch.compiler.is_exporting():
            return self._adapted_linear(x, base, bias, scale, magnitude, U, V)
        return adapted_sine_linear(x, base, bias, scale, U, V, self.omega(n), self.divisor(n), magnitude)

    @torch.no_grad()
    def multiply_adds(self, U: Tensor, V: Tensor) -> int:
        """m·n, or r(m + n) with the r columns of the thin factors at the present phases."""
        m, n = U.shape[0], V.shape[0]
        nodes = thin_nodes(U, V, self.omega(n), U.dtype)
        return m * n if nodes is None else nodes.columns(self.rank) * (m + n)

    def served(self, U: Tensor, V: Tensor) -> tuple[Tensor, ...]:
        """(W,), or the thin factors (P, Qᵀ) at rank 1 and 2 while they are cheaper."""
        n = V.shape[0]
        omega, gain = self.omega(n), self.divisor(n)
        nodes = thin_nodes(U, V, omega, U.dtype)
        if nodes is None:
            return (self.weight(U, V),)
        p, q = thin_factors(U, V, omega, gain, nodes, U.dtype)
        return p.t(), q

    def fit_all(
        self, targets: Tensor, moments: Tensor | None = None, steps: int = 300
    ) -> list[tuple[Self, dict[str, Tensor]]]:
        """For each weight the best of three descents from the truncated SVD, at phases of up to 0.1, 2 and 4 rad.

        The gain is chosen with the factors. Where no descent beats the truncated SVD the factors are those of the SVD
        itself at phases of up to 0.02 rad, where sin(T) = T up to 0.007 %: that much of ‖W‖ is all that a fit can be
        worse. Large phases fit weights with a flat spectrum better (0.63 against 0.67 of a Gaussian 96×64 matrix
        remain at rank 16).
        """
        from sinelr_lightning.layers.fit import best_low_rank, descend_all

        targets, omega = wide(targets), self.omega(targets.shape[-1])
        left, right = best_low_rank(targets, self.rank, moments)
        largest = (left @ right.mT).abs().amax((-2, -1), keepdim=True).clamp_min(1e-30)
        best: list[Tensor] = []  # U, V and gain of each layer
        least = torch.full_like(largest, math.inf)
        for phase in (0.02, 0.1, 2.0, 4.0):
            gain = phase / largest
            start = [factor * (gain / omega).sqrt() for factor in (left, right)]
            # sin(ω·U·Vᵀ) against g·W: the same relative error as with the gain divided out.
            found, errors = descend_all(
                lambda u, v: torch.sin(omega * u @ v.mT), start, targets * gain, steps if phase >= 0.1 else 0, moments
            )
            better = errors.reshape(-1, 1, 1) < least
            least = torch.where(better, errors.reshape(-1, 1, 1), least)
            new = [*found, gain]
            best = [torch.where(better, a, b) for a, b in zip(new, best, strict=True)] if best else new
        return [
            (replace(self, gain=gain.item(), frequency=omega), {"U": u, "V": v})
            for u, v, gain in zip(*best, strict=True)
        ]


def sine_of(kin: SineKin) -> SineLowRank:
    """The sine with the hyperparameters of one of its kin."""
    return SineLowRank(kin.rank, kin.frequency, kin.gain, kin.phase_spread, kin.lr_multiplier, kin.balanced)

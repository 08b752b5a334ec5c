"""What the sine shares with the factorizations that put something else, or something more, in its place."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor

from sinelr_lightning.layers.factorization import (
    FactorGroup,
    Factorization,
    check_positive,
    check_rank,
    check_rank_given,
    kaiming_factors,
)
from sinelr_lightning.layers.fit import best_low_rank, best_scale
from sinelr_lightning.layers.sine_ops import phase_of

__all__ = ["SineKin"]


@dataclass(frozen=True)
class SineKin(Factorization):
    """A function of the phases ω·U·Vᵀ, over g: the hyperparameters, the factors and their start are the sine's.

    Args:
        rank, frequency, gain, phase_spread, lr_multiplier, balanced: see `SineLowRank`.

    Raises:
        ValueError: rank is no whole number from 1 on, or frequency, gain, phase_spread or lr_multiplier no finite
            number above 0; rank ≥ min(m, n) when a layer is made.
    """

    rank: int
    frequency: float | Literal["auto"] = "auto"
    gain: float | None = None
    phase_spread: float = 2.0
    lr_multiplier: float = 1.0
    balanced: bool = False

    def __post_init__(self) -> None:
        check_rank_given(self.rank)
        if self.frequency != "auto":
            check_positive("frequency", self.frequency, ' or "auto"')
        if self.gain is not None:
            check_positive("gain", self.gain, " or None")
        check_positive("phase_spread", self.phase_spread)
        check_positive("lr_multiplier", self.lr_multiplier)

    def omega(self, n: int) -> float:
        """The frequency ω of a layer with n inputs: 96 for n = 256 and a phase spread of 2 rad."""
        return 3 * math.sqrt(n) * self.phase_spread if self.frequency == "auto" else float(self.frequency)

    def divisor(self, n: int) -> float:
        """The gain g of a layer with n inputs."""
        return math.sqrt(n) if self.gain is None else self.gain

    def factors(self, m: int, n: int, *, zero: bool = False) -> dict[str, Tensor]:
        """U [m, rank] and V [n, rank] as in the paper's code, or balanced; U is zero for `zero=True`."""
        check_rank(self.rank, m, n)
        u, v = kaiming_factors(m, n, self.rank)
        if self.balanced:
            share = (self.rank / n) ** 0.25
            u, v = u * share, v / share
        return {"U": torch.zeros_like(u) if zero else u, "V": v}

    def phases(self, U: Tensor, V: Tensor) -> Tensor:
        """ω·U·Vᵀ, [m, n], in float32 or wider."""
        return phase_of(U, V, self.omega(V.shape[0]))

    def sine_weight(self, U: Tensor, V: Tensor) -> Tensor:
        """sin(ω·U·Vᵀ)/g, [m, n], in float32 or wider."""
        return torch.sin(self.phases(U, V)) / self.divisor(V.shape[0])

    def phases_towards(self, target: Tensor) -> Tensor:
        """Phases [m, n] that give a weight proportional to `target` while they are small: itself, for a sine."""
        return target

    def starts(self, target: Tensor, moment: Tensor | None = None) -> Iterable[tuple[Self, dict[str, Tensor]]]:
        """The best low-rank phases towards the target, scaled to reach 0.02, 2 and 4 rad, each with its best gain.

        At 0.02 rad a sine is linear up to 0.007 %, hence no worse than the truncated SVD.
        """
        left, right = best_low_rank(self.phases_towards(target), self.rank, moment)
        largest = (left @ right.t()).abs().amax().clamp_min(1e-30)
        fresh = {name: factor.to(target.device) for name, factor in self.factors(*target.shape).items()}
        omega = self.omega(target.shape[1])
        for phase in (0.02, 2.0, 4.0):
            root = (phase / (omega * largest)).sqrt()
            factors = fresh | {"U": left * root, "V": right * root}
            family = replace(self, frequency=omega, gain=1.0)
            share = best_scale(family.weight(**factors), target, moment)
            if share > 0:
                yield replace(family, gain=1 / share), factors
            else:  # of another sign everywhere, as a weight below zero is for relu
                yield self, factors | {"U": torch.zeros_like(left)}

    def groups(self, m: int, n: int) -> dict[str, FactorGroup]:
        """The factors do not decay: decay would shrink the phases, and with them the rank, not the weight."""
        group = FactorGroup(lr_multiplier=self.lr_multiplier, decays=False)
        return {"U": group, "V": group}

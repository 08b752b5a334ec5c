"""Other functions than the sine on a low-rank matrix, which the paper compares with (arXiv 2403.19243)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sinelr_lightning.layers.sine_kin import SineKin

__all__ = ["ActivatedLowRank"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "gaussian": lambda t: torch.exp(-t.square() / 2),
    "sinc": torch.sinc,
}


@dataclass(frozen=True)
class ActivatedLowRank(SineKin):
    """W = (φ(ω·U·Vᵀ) − φ(0))/g; k(m + n) parameters, and the initialisation, ω and g of the sine.

    Taking off φ(0), which the paper does not, makes W zero where the phases are, as adapters want it. Whether
    it helps depends on φ and the task (benchmarks/factorizations.py has both forms).

    Args:
        rank, frequency, gain, phase_spread, lr_multiplier, balanced: of `SineLowRank`.
        activation: φ, one of tanh, relu, sigmoid, gaussian (exp(−t²/2)) and sinc (sin(πt)/(πt)).

    Raises:
        ValueError: what `SineLowRank` refuses, another activation, or `zero=True` for one whose slope at 0 is zero.
    """

    activation: Literal["tanh", "relu", "sigmoid", "gaussian", "sinc"] = "tanh"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation {self.activation!r} is none of {', '.join(ACTIVATIONS)}")

    def factors(self, m: int, n: int, *, zero: bool = False) -> dict[str, Tensor]:
        """U [m, rank] and V [n, rank]; U is zero for `zero=True`."""
        if zero and self.activation not in ("tanh", "sigmoid"):
            raise ValueError(f"{self.activation} has no slope at 0: no training would leave it, take tanh or sigmoid")
        return super().factors(m, n, zero=zero)

    def phases_towards(self, target: Tensor) -> Tensor:
        """The target where φ has a slope at 0; the root of what is below zero where φ has its maximum there."""
        return target.clamp_max(0).neg().sqrt() if self.activation in ("gaussian", "sinc") else target

    def weight(self, U: Tensor, V: Tensor) -> Tensor:
        """The weight [m, n]."""
        phi, phase = ACTIVATIONS[self.activation], self.phases(U, V)
        return (phi(phase) - phi(phase.new_zeros(()))) / self.divisor(V.shape[0])

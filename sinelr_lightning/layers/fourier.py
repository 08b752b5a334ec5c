"""Mixtures of the sine: with the low-rank matrix itself, and with its overtones. A handful of parameters more."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from sinelr_lightning.layers.factorization import FactorGroup, product_type, wide
from sinelr_lightning.layers.select import thin_nodes
from sinelr_lightning.layers.sine_kin import SineKin
from sinelr_lightning.layers.sine_low_rank import sine_of
from sinelr_lightning.layers.sine_ops import sine_linear

__all__ = ["FourierLowRank", "ResidualSine"]


@dataclass(frozen=True)
class ResidualSine(SineKin):
    """W = a·U·Vᵀ + b·sin(ω·U·Vᵀ)/g with learnt scalars (a, b) = mix; k(m + n) + 2 parameters.

    It contains low rank (b = 0) and the sine (a = 0), and starts at a = b = 1. At rank 1 and 2 it is thin where the
    sine is.

    Args:
        rank, frequency, gain, phase_spread, lr_multiplier, balanced: of `SineLowRank`.

    Raises:
        ValueError: what `SineLowRank` refuses.
    """

    def factors(self, m: int, n: int, *, zero: bool = False) -> dict[str, Tensor]:
        """U [m, rank], V [n, rank] and mix [2]; U is zero for `zero=True`."""
        return {**super().factors(m, n, zero=zero), "mix": torch.ones(2)}

    def weight(self, U: Tensor, V: Tensor, mix: Tensor) -> Tensor:
        """The weight [m, n]."""
        a, b = wide(mix)
        return a * (wide(U) @ wide(V).t()) + b * self.sine_weight(U, V)

    def linear(self, x: Tensor, bias: Tensor | None, U: Tensor, V: Tensor, mix: Tensor) -> Tensor:
        """By the low-rank and the sine's thin products where the sine has them, else formed."""
        n = V.shape[0]
        x = x.to(product_type(x))
        rows = x.numel() // n
        if torch.compiler.is_compiling() or thin_nodes(U, V, self.omega(n), x.dtype, rows) is None:
            return super().linear(x, bias, U, V, mix)
        a, b = mix.to(x.dtype)
        low_rank = F.linear(x @ V.to(x.dtype), U.to(x.dtype))
        sine = sine_linear(x, U, V, None, self.omega(n), self.divisor(n))
        return a * low_rank + b * sine + (0 if bias is None else bias.to(x.dtype))

    def multiply_adds(self, U: Tensor, V: Tensor, mix: Tensor) -> int:
        """m·n, or with c thin columns of the sine (k + c)·(m + n)."""
        return sum(matrix.numel() for matrix in self.served(U, V, mix))

    def served(self, U: Tensor, V: Tensor, mix: Tensor) -> tuple[Tensor, ...]:
        """(W,), or thin factors with those of the low-rank part beside the sine's."""
        sine, (a, b) = sine_of(self).served(U, V), mix
        if len(sine) == 1:
            return (self.weight(U, V, mix),)
        return torch.cat([a * U, b * sine[0]], 1), torch.cat([V.t(), sine[1]])

    def starts(self, target: Tensor, moment: Tensor | None = None) -> Iterable[tuple[Self, dict[str, Tensor]]]:
        """Those of the sine, with a = 0 and b = 1."""
        for sine, factors in sine_of(self).starts(target, moment):
            family = replace(self, frequency=sine.frequency, gain=sine.gain)
            yield family, {**factors, "mix": target.new_tensor([0.0, 1.0])}

    def groups(self, m: int, n: int) -> dict[str, FactorGroup]:
        """As those of the sine; the scalars do not decay either."""
        return {**super().groups(m, n), "mix": FactorGroup(decays=False)}


@dataclass(frozen=True)
class FourierLowRank(SineKin):
    """W = Σ_{f ≤ terms} mix_f·sin(f·ω·U·Vᵀ + shift_f)/g: a learnt periodic function of the phase.

    k(m + n) + 2·terms parameters. It starts at the sine, mix = (1, 0, …) and shift = 0.

    Args:
        rank, frequency, gain, phase_spread, lr_multiplier, balanced: of `SineLowRank`.
        terms: number of overtones with the fundamental, ≥ 1.

    Raises:
        ValueError: what `SineLowRank` refuses, or terms < 1.
    """

    terms: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.terms < 1:
            raise ValueError(f"terms must be at least 1, got {self.terms}")

    def factors(self, m: int, n: int, *, zero: bool = False) -> dict[str, Tensor]:
        """U [m, rank], V [n, rank], mix [terms] and shift [terms]; U is zero for `zero=True`."""
        mix = torch.zeros(self.terms)
        mix[0] = 1
        return {**super().factors(m, n, zero=zero), "mix": mix, "shift": torch.zeros(self.terms)}

    def weight(self, U: Tensor, V: Tensor, mix: Tensor, shift: Tensor) -> Tensor:
        """The weight [m, n]."""
        phase = self.phases(U, V)
        terms = zip(wide(mix), wide(shift), strict=True)
        overtones = (c * torch.sin(f * phase + s) for f, (c, s) in enumerate(terms, 1))
        return sum(overtones, torch.zeros_like(phase)) / self.divisor(V.shape[0])

    def groups(self, m: int, n: int) -> dict[str, FactorGroup]:
        """As those of the sine; the scalars do not decay either."""
        return {**super().groups(m, n), "mix": FactorGroup(decays=False), "shift": FactorGroup(decays=False)}

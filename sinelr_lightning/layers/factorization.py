"""The seam: a weight matrix as a formula of small factors.

A layer owns the parameters, a factorization owns the formula. A new family is a frozen dataclass with two methods,
`factors` and `weight`; layers, convolutions, conversion, folding, summaries and the contract tests then have it.
"""

import math
from abc import abstractmethod
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sinelr_lightning.layers.factory import LinearFactory

if TYPE_CHECKING:
    from sinelr_lightning.layers.factorized import FactorizedLinear

__all__ = [
    "FactorGroup",
    "Factorization",
    "check_positive",
    "check_rank",
    "check_rank_given",
    "kaiming_factors",
    "product_type",
    "wide",
    "without_autocast",
]


@dataclass(frozen=True)
class FactorGroup:
    """How an optimiser should treat one factor: its learning rate over the base rate, and whether it decays."""

    lr_multiplier: float = 1.0
    decays: bool = True


def wide(factor: Tensor) -> Tensor:
    """The factor in float32 or wider: half-precision types lose the phase of a sine, float64 stays."""
    return factor if factor.dtype in (torch.float32, torch.float64) else factor.float()


def product_type(x: Tensor) -> torch.dtype:
    """The type in which a product with `x` runs: that of autocast where it is on (float64 stays), else x's own."""
    device = x.device.type
    if x.dtype == torch.float64 or not _has_autocast(device):
        return x.dtype
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """A block in which products on x's device run in the types of their operands."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if _has_autocast(device) else nullcontext()


def _has_autocast(device: str) -> bool:
    """The meta device has none; torch 2.11 cannot trace the question, so a compiler is told that others have it."""
    return device != "meta" and (torch.compiler.is_compiling() or torch.amp.is_autocast_available(device))


def check_rank_given(rank: int) -> None:
    """Refuse a rank that no weight of any size can have.

    Raises:
        ValueError: rank is no whole number, or below 1.
    """
    if isinstance(rank, bool) or not isinstance(rank, Integral):
        raise ValueError(f"rank must be a whole number from 1 on, got {rank!r}")
    if rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}")


def check_positive(name: str, value: object, also: str = "") -> None:
    """Refuse a hyperparameter that is no finite number above 0; `also` is what else the message accepts.

    Raises:
        ValueError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{name} must be a positive number{also}, got {value!r}")
    if not 0 < float(value) < math.inf:
        raise ValueError(f"{name} must be a positive number, got {value}")


def check_rank(rank: int, m: int, n: int) -> None:
    """Refuse a rank that no factorization of an m×n matrix can use, and say what is smaller.

    Raises:
        ValueError: rank ≥ min(m, n).
    """
    if rank >= min(m, n):
        raise ValueError(
            f"rank {rank} is not below min(out_features={m}, in_features={n}) = {min(m, n)}: the dense layer has "
            f"{m * n:,} parameters, the factors would have {rank * (m + n):,}; take rank < {min(m, n)}, or Dense"
        )


@dataclass(frozen=True)
class Factorization(LinearFactory):
    """A weight W (m×n, m = out_features, n = in_features) as a pure function of its factors.

    Instances are frozen dataclasses of hyperparameters. Subclasses write `factors` and `weight`; the rest has
    defaults that are right for any formula.
    """

    @abstractmethod
    def factors(self, m: int, n: int, *, zero: bool = False) -> dict[str, Tensor]:
        """Named, initialised factors of an m×n weight.

        Integer tensors become buffers of the layer, the others parameters. With `zero=True` the weight is exactly
        zero while its gradient is not, which is how an adapter starts.
        """

    @abstractmethod
    def weight(self, *factors: Tensor) -> Tensor:
        """The weight [m, n] in float32 or wider, from the factors in the order of `factors`."""

    def linear(self, x: Tensor, bias: Tensor | None, *factors: Tensor) -> Tensor:
        """y = x·Wᵀ + bias for x [..., n]; W is formed once and formed again in backward, never kept between."""
        if torch.is_grad_enabled() and not torch.compiler.is_exporting():
            # No random numbers are drawn, so none need be drawn again.
            return checkpoint(self._formed_linear, x, bias, *factors, use_reentrant=False, preserve_rng_state=False)
        return self._formed_linear(x, bias, *factors)

    def _formed_linear(self, x: Tensor, bias: Tensor | None, *factors: Tensor) -> Tensor:
        return F.linear(x, self.formed(x, *factors), bias)

    def formed(self, x: Tensor, *factors: Tensor) -> Tensor:
        """The weight in the type that a product with `x` wants; formed wide also under autocast."""
        with without_autocast(x):
            return self.weight(*factors).to(x.dtype)

    def adapted(
        self, base: Tensor, scale: float | Tensor, *factors: Tensor, magnitude: Tensor | None = None
    ) -> Tensor:
        """The whole weight base + scale·W [m, n] of an adapter, in float32 or wider.

        With a magnitude [m] each row of it has that length (DoRA, arXiv 2402.09353, equation 5); the norms count as
        constants in backward.
        """
        from sinelr_lightning.layers.adapted import rows_of_length

        return rows_of_length(wide(base) + self.weight(*factors) * scale, magnitude)

    def adapted_linear(
        self,
        x: Tensor,
        base: Tensor,
        bias: Tensor | None,
        scale: float | Tensor,
        *factors: Tensor,
        magnitude: Tensor | None = None,
    ) -> Tensor:
        """y = x·adapted(base, scale, *factors)ᵀ + bias: formed once, multiplied once, formed again in backward."""
        arguments = (x, base, bias, scale, magnitude, *factors)
        if torch.is_grad_enabled() and not torch.compiler.is_exporting():
            return checkpoint(self._adapted_linear, *arguments, use_reentrant=False, preserve_rng_state=False)
        return self._adapted_linear(*arguments)

    def _adapted_linear(
        self,
        x: Tensor,
        base: Tensor,
        bias: Tensor | None,
        scale: float | Tensor,
        magnitude: Tensor | None,
        *factors: Tensor,
    ) -> Tensor:
        x = x.to(product_type(x))
        with without_autocast(x):
            weight = self.adapted(base, scale, *factors, magnitude=magnitude)
            return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))

    def served(self, *factors: Tensor) -> tuple[Tensor, ...]:
        """Constants that stand for the weight in an evaluation: `(W,)`, or `(A, B)` with W = A·B where cheaper.

        `()` where `linear` itself is cheaper than either.
        """
        return (self.weight(*factors),)

    def multiply_adds(self, *factors: Tensor) -> int:
        """Multiply-adds of `linear` for one row of x, forward: m·n where W is formed.

        What forms W, or the thin factors in its place, is spent once a step and not once a row, and is not counted.
        """
        with torch.device("meta"):
            return self.weight(*(factor.to("meta") for factor in factors)).numel()

    def fit(self, target: Tensor, steps: int = 300) -> tuple[Self, dict[str, Tensor]]:
        """A factorization of this family and factors whose weight approximates `target` [m, n] (Frobenius norm)."""
        return self.fit_all(target[None], steps=steps)[0]

    def fit_all(
        self, targets: Tensor, moments: Tensor | None = None, steps: int = 300
    ) -> list[tuple[Self, dict[str, Tensor]]]:
        """`fit` of L weights of one shape [L, m, n]; hyperparameters may come out different for each.

        With second moments C [L, n, n] of the layers' inputs the errors of the outputs are minimised,
        ‖(W − Ŵ)·C^½‖_F. By default it is the best of the descents from `starts`.
        """
        from sinelr_lightning.layers.fit import descend

        made = []
        for i, target in enumerate(wide(targets)):
            moment = None if moments is None else moments[i]
            best, least = None, math.inf
            for family, start in self.starts(target, moment):
                factors, error = descend(family, start, target, steps, moment)
                if best is None or error < least:
                    best, least = (family, factors), error
            assert best is not None
            made.append(best)
        return made

    def starts(self, target: Tensor, moment: Tensor | None = None) -> Iterable[tuple[Self, dict[str, Tensor]]]:
        """Factorizations of this family and factors from which `fit_all` descends to `target` [m, n], one or more.

        One at least is no worse than a weight of zeros, in the norm of the moment [n, n] where there is one: the fit
        is not either then. By default it is that weight itself, as an adapter starts.
        """
        yield self, {k: factor.to(target.device) for k, factor in self.factors(*target.shape, zero=True).items()}

    def groups(self, m: int, n: int) -> dict[str, FactorGroup]:
        """Optimiser settings by factor name of an m×n weight; a factor that is not named gets `FactorGroup()`."""
        return {}

    def count(self, m: int, n: int) -> int:
        """Number of parameters of an m×n weight, without allocating it."""
        with torch.device("meta"):
            return sum(f.numel() for f in self.factors(m, n).values() if f.is_floating_point())

    def __call__(self, in_features: int, out_features: int, bias: bool = True) -> "FactorizedLinear":
        from sinelr_lightning.layers.factorized import FactorizedLinear

        return FactorizedLinear(self, in_features, out_features, bias)


def kaiming_factors(m: int, n: int, rank: int) -> tuple[Tensor, Tensor]:
    """U [m, rank] and V [n, rank], each Kaiming-uniform with a = √5, as the paper's code draws them.

    U is uniform in ±1/√rank and V in ±1/√n, so each entry of U·Vᵀ has standard deviation 1/(3√n) at any rank.
    """
    u = torch.empty(m, rank).uniform_(-1, 1) / math.sqrt(rank)
    v = torch.empty(n, rank).uniform_(-1, 1) / math.sqrt(n)
    return u, v

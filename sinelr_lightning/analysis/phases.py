"""The phases ω·U·Vᵀ of a sine layer: how far they spread decides whether it is more than a low-rank layer."""

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sinelr_lightning.analysis.spectrum import stable_rank
from sinelr_lightning.layers import ActivatedLowRank, FactorizedLayer, SineLowRank
from sinelr_lightning.layers.factorization import wide
from sinelr_lightning.layers.select import thin_nodes
from sinelr_lightning.layers.sine_kin import SineKin
from sinelr_lightning.layers.sine_ops import phase_of

__all__ = ["PhaseStatistics", "Sine", "phase_spread", "phase_statistics", "sines"]

_SAMPLED = 128  # rows and columns in which the share of large phases is counted


@dataclass(frozen=True)
class Sine:
    """A sine layer or adapter: its frequency ω and its factors U [m, k] and V [n, k].

    Attributes:
        adapter: whether it is an update of a frozen weight.
    """

    omega: float
    u: Tensor
    v: Tensor
    adapter: bool = False


@dataclass(frozen=True)
class PhaseStatistics:
    """What the phases of one layer come to.

    Attributes:
        spread: standard deviation of all phases, in radians.
        beyond: share of the phases beyond half a period, |T| > π, in 128 rows and columns.
        stable_rank: ‖W‖²_F/‖W‖² of the sine, whatever its gain; by the power method up to some 6 % above it.
        columns: r, the columns of the thin form, or None where the weight is formed.
        rounding: standard deviation of the error of the phases with factors in bfloat16, in radians.
    """

    spread: float
    beyond: float
    stable_rank: float
    columns: int | None
    rounding: float


def sines(model: nn.Module) -> Iterator[tuple[str, Sine]]:
    """Every sine layer of a model by its name, those on top of a sine (`SineKin`) and adapters in PEFT as well."""
    adapters = sys.modules.get("sinelr_lightning.adapters.layers")  # without it there is no adapter of ours
    for name, layer in model.named_modules():
        if isinstance(layer, FactorizedLayer):
            family = layer.factorization
            if isinstance(family, SineKin) and not isinstance(family, ActivatedLowRank):
                yield name, Sine(family.omega(layer.weight_shape[1]), layer.U, layer.V)
        elif adapters is not None and isinstance(layer, adapters.FactorizedLoraLayer):
            for adapter in layer.active_adapters:
                if layer.ours(adapter) and isinstance(sine := layer.formula(adapter), SineLowRank):
                    u, v = layer.factors(adapter)
                    yield name, Sine(sine.omega(v.shape[0]), u, v, adapter=True)


@torch.no_grad()
def phase_spread(u: Tensor, v: Tensor, omega: float) -> float:
    """Standard deviation of the phases ω·u·vᵀ in radians, exactly, from k×k products.

    Args:
        u, v: factors [m, k] and [n, k].
        omega: frequency.
    """
    u, v = u.double(), v.double()
    square = ((u.t() @ u) * (v.t() @ v)).sum() / (len(u) * len(v))
    return omega * math.sqrt(max(0.0, float(square - (u.mean(0) @ v.mean(0)).square())))


@torch.no_grad()
def phase_statistics(sine: Sine, known: float | None = None) -> PhaseStatistics:
    """Measure one layer; its weight is formed once, unless its stable rank is `known`."""
    u, v, omega = sine.u.detach(), sine.v.detach(), sine.omega
    m, n = len(u), len(v)
    sample = phase_of(u[:: math.ceil(m / _SAMPLED)], v[:: math.ceil(n / _SAMPLED)], omega)
    u_error, v_error = _rounding_error(u), _rounding_error(v)
    # ω·((U + ΔU)·(V + ΔV)ᵀ − U·Vᵀ) = ω·[ΔU, U + ΔU]·[V, ΔV]ᵀ
    error = torch.cat([u_error, wide(u) + u_error], 1), torch.cat([wide(v), v_error], 1)
    nodes = thin_nodes(u, v, omega, torch.float32)
    return PhaseStatistics(
        spread=phase_spread(u, v, omega),
        beyond=float((sample.abs() > math.pi).float().mean()),
        stable_rank=stable_rank(phase_of(u, v, omega).sin_()) if known is None else known,
        columns=None if nodes is None else nodes.columns(u.shape[1]),
        rounding=phase_spread(*error, omega),
    )


def _rounding_error(factor: Tensor) -> Tensor:
    """Errors such as rounding to bfloat16 makes, of up to 2⁻⁸ of an entry, also where that is rounded already."""
    draws = torch.rand(factor.shape, generator=torch.Generator().manual_seed(0)).to(wide(factor))
    return wide(factor) * (2 * draws - 1) * (2**-8 / math.sqrt(2))  # entries lie between 1 and 2 times a power of 2

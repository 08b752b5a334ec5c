"""Stable rank, numerical rank and spectrum of a weight, and the stable rank that theory expects of a sine."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sinelr_lightning.layers.factorization import wide

__all__ = ["Spectrum", "expected_stable_rank", "spectrum", "stable_rank"]

_PART = 1024  # rows and columns of which singular values are computed
_ITERATIONS = 20  # of the power method: the largest singular value from below, to a few per cent


@dataclass(frozen=True)
class Spectrum:
    """Singular values of an m×n weight.

    Attributes:
        stable_rank: ‖W‖²_F/‖W‖², of the whole weight, exact up to 1024 rows and columns; 0 for W = 0.
        numerical_rank: number of singular values above max(m, n)·ε of the largest, ε of float32.
        values: singular values over the largest, falling.
        part: of how many rows and columns `numerical_rank` and `values` are, evenly spread over the weight: all of
            them up to 1024. A part's numerical rank is never above that of the whole.
    """

    stable_rank: float
    numerical_rank: int
    values: tuple[float, ...]
    part: tuple[int, int]


@torch.no_grad()
def spectrum(weight: Tensor) -> Spectrum:
    """Measure a weight [m, n]; beside it nothing larger than 1024 × 1024 is formed.

    Raises:
        ValueError: the weight is no matrix, or has entries that are not finite.
    """
    if weight.ndim != 2:
        raise ValueError(f"a spectrum is that of a matrix [m, n], got {list(weight.shape)}")
    rows, columns = (torch.linspace(0, size - 1, min(size, _PART)).round().long() for size in weight.shape)
    part = wide(weight[rows.to(weight.device)][:, columns.to(weight.device)])
    if not part.isfinite().all():
        raise ValueError("the weight has entries that are not finite")
    values = torch.linalg.svdvals(part)
    values = values / values[0].clamp_min(1e-30)
    count = int((values > max(part.shape) * torch.finfo(torch.float32).eps).sum())
    stable = float(values.square().sum()) if part.shape == weight.shape else stable_rank(weight)
    return Spectrum(stable, count, tuple(values.tolist()), (len(rows), len(columns)))


@torch.no_grad()
def stable_rank(weight: Tensor) -> float:
    """‖W‖²_F/‖W‖², up to some 6 % above it, by the power method from a fixed start; 0 for W = 0."""
    weight = wide(weight)
    start = torch.randn(weight.shape[1], generator=torch.Generator().manual_seed(0)).to(weight)
    for _ in range(_ITERATIONS):
        start = weight.t() @ (weight @ start)
        norm = start.norm()
        if not norm > 0:
            return 0.0
        start = start / norm
    # A square of the whole would be a second matrix.
    energy = sum(float(rows.square().sum()) for rows in weight.split(max(1, 2**22 // weight.shape[1])))
    return energy / float((weight @ start).square().sum())


@torch.no_grad()
def expected_stable_rank(u: Tensor, v: Tensor, omega: float) -> float:
    """Stable rank of sin(ω·u·vᵀ) that theory expects of the phases in each row, to within about threefold.

    Let the phases T of row i be normally distributed with variance σ_i² = ω²·u_iᵀ·(vᵀ·v/n)·u_i. Of sin T the part
    exp(−σ_i²/2)·T has rank k and shares its energy out to k singular values; so k·Σ_i ½(1 − exp(−2σ_i²)) over
    Σ_i σ_i²·exp(−σ_i²), until the largest singular value is that of what is left, like m×n noise with mn/(√m + √n)².
    The two join as parallel resistances do.

    Args:
        u, v: factors [m, k] and [n, k].
        omega: frequency.
    """
    u, v = u.double(), v.double()
    (m, k), n = u.shape, len(v)
    square = omega**2 * ((u @ (v.t() @ v / n)) * u).sum(1)
    linear = float((square * torch.exp(-square)).sum())
    whole = float((1 - torch.exp(-2 * square)).sum()) / 2
    bent = k * whole / linear if linear > 0 else math.inf if whole > 0 else float(k)
    return 1 / (1 / bent + (math.sqrt(m) + math.sqrt(n)) ** 2 / (m * n))

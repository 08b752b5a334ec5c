"""The one place that decides how a sine weight is computed: thin where that is cheaper, else formed.

At rank 1 and 2, sin(ω·u_i·v_j) is a smooth odd function of v_j, which few polynomials reproduce to rounding. Their
degree, below 2r for r nodes (see `layers.thin`), depends on the largest phase alone. Thin costs columns·(m + n) where
formed costs m·n.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from sinelr_lightning.layers.factorization import wide
from sinelr_lightning.layers.on_host import largest_on_host

__all__ = ["TOLERANCE", "Nodes", "column_scale", "enough_work", "nodes_for_phase", "nodes_for_phases", "thin_nodes"]

# Largest error of the sine, by the type in which the products run: each is near that type's own rounding, so more
# columns would buy nothing.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 3e-6, torch.float16: 1e-4, torch.bfloat16: 1e-3}
# Multiples of eight fill the vector units: at rank 1, 8 columns ran faster than 5 on AVX-512 (benchmarks/layers.py).
_MULTIPLE = 8
# Share of m·n up to which columns·(m + n) won in benchmarks/layers.py.
_BREAK_EVEN = 0.6
# What the many small steps towards the columns cost besides, in the same unit. At rank 1 they cost less than a step
# gains at some hundred rows of x; at rank 2 there are more of them, and below about 300×300 formed wins.
_OVERHEAD = {1: 0, 2: 40_000}

# Products of rows, outputs and inputs from which thin won on an H200 in float32 (benchmarks/layers.py, nerf_speed.py,
# llm_adapters.py): its many small kernels take over a millisecond at any size. In half precision it did not win.
_DEVICE_WORK = 1e10


def enough_work(u: Tensor, v: Tensor, rows: int | None, dtype: torch.dtype) -> bool:
    """Whether a product with that many rows may gain by thin factors; always on the CPU, and for `rows=None`.

    Never while a graph is captured: it runs again with other factors, for which these may be too thin.
    """
    if u.is_cuda and torch.cuda.is_current_stream_capturing():
        return False
    return u.is_cpu or rows is None or (dtype.itemsize >= 4 and rows * len(u) * len(v) >= _DEVICE_WORK)


@lru_cache(maxsize=4096)
def _nodes(phase: float, tolerance: float, dropped: int = 1) -> int:
    """Least r at which the polynomials of degree 2r + `dropped` and above are within the tolerance."""
    r = 1
    while True:
        # What is dropped amounts to at most twice the first coefficient and its tail, 2·|J_n(Φ)| with n = 2r + 1
        # for odd polynomials alone, and |J_n(Φ)| ≤ (Φ/2)ⁿ/n! · exp(−Φ²/(4n + 4)) for Φ < n.
        n = 2 * r + dropped
        log_bessel = n * math.log(max(phase, 1e-30) / 2) - math.lgamma(n + 1) - phase**2 / (4 * n + 4)
        if phase < n and log_bessel < math.log(tolerance / 4):
            return r
        r += 1


def _rounded_up(phase: float) -> float:
    """The phase on a grid of 2 %, so that the cache hits while training moves it."""
    return 1.02 ** math.ceil(math.log(max(phase, 1e-3), 1.02))


def nodes_for_phase(phase: float, dtype: torch.dtype) -> int:
    """Number of nodes r at which sin is reproduced at rank 1 for all phases up to `phase` radians in `dtype`.

    A multiple of 8; 8 at 6 rad, 16 at 16 rad, 24 at 28 rad in float32.
    """
    return _MULTIPLE * math.ceil(_nodes(_rounded_up(phase), TOLERANCE[dtype]) / _MULTIPLE)


class Nodes(NamedTuple):
    """Numbers of nodes for the phases of each column of the factors alone, and of all together; equal at rank 1."""

    each: int
    total: int

    def columns(self, rank: int) -> int:
        """Number of columns of the thin factors: 86 for 7 and 10 nodes at rank 2."""
        if rank == 1:
            return self.total
        beyond = self.total - self.each  # degrees of one column that pass its own nodes
        return self.total * (self.total + 1) - 2 * beyond * (beyond + 1)


def nodes_for_phases(each: float, total: float, dtype: torch.dtype, rank: int) -> Nodes:
    """The nodes for phases up to `each` radians from one column of the factors and up to `total` from all.

    At rank 2, where columns grow as r², the least numbers: 7 and 10 at 4.2 and 8.4 rad in float32.
    """
    if rank == 1:
        return Nodes(nodes_for_phase(total, dtype), nodes_for_phase(total, dtype))
    tolerance = TOLERANCE[dtype]
    return Nodes(_nodes(_rounded_up(each), tolerance, dropped=0), _nodes(_rounded_up(total), tolerance))


def thin_nodes(u: Tensor, v: Tensor, omega: float, dtype: torch.dtype, rows: int | None = None) -> Nodes | None:
    """Numbers of nodes for the thin way, or None where the formed way is to be taken.

    None for rank > 2 (rank > 1 on a device, where rank 2 lost), for phases so large that the columns pass break-even,
    for too few rows on a device, and for phases that are not finite (the formed way then shows the NaN where it is).

    Args:
        u, v: factors [m, rank] and [n, rank].
        omega: frequency.
        dtype: type in which the products run.
        rows: of x; None where the factors are made once for many products.
    """
    (m, rank), n = u.shape, v.shape[0]
    if rank > (2 if u.is_cpu else 1) or u.is_meta or not enough_work(u, v, rows, dtype):
        return None
    most = (_BREAK_EVEN * m * n - _OVERHEAD[rank]) / (m + n)
    if nodes_for_phases(0, 0, dtype, rank).columns(rank) > most:
        return None
    each, total = _largest_phases(u, v, omega)
    # A first test in closed form: r nodes reach no further than 2r + 1 rad.
    if not math.isfinite(total) or total > 2 * most + 1:
        return None
    nodes = nodes_for_phases(each, total, dtype, rank)
    return nodes if nodes.columns(rank) <= most else None


def column_scale(u: Tensor, v: Tensor, omega: float) -> Tensor:
    """b [rank] with b_a ≥ max|v_a|, the range over which the polynomials in v_a run.

    Each column contributes phases of up to a radian at least, ω·b_a·max|u_a| ≥ 1 if ω·max|u_a| ≥ 1: factors that are
    zero or tiny then keep well-scaled polynomials and gradients.
    """
    return v.abs().amax(0).maximum(1 / (omega * u.abs().amax(0)).clamp_min(1))


def _largest_phases(u: Tensor, v: Tensor, omega: float) -> tuple[float, float]:
    """Largest ω·|u_ia|·b_a and largest Σ_a ω·|u_ia|·b_a on the host, one number at rank 1.

    In training on a device they are those of the step before, with a margin.
    """
    wide_u, wide_v = wide(u.detach()), wide(v.detach())
    phases = wide_u.abs() * (omega * column_scale(wide_u, wide_v, omega))
    largest = phases.sum(1).amax()
    total = largest_on_host(v, largest, u, v)
    return (total if u.shape[1] == 1 else phases.amax().item()), total

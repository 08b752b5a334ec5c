"""Thin factors of sin(ω·U·Vᵀ)/g at any rank while the phases are small: P·Qᵀ by an odd polynomial of the phases.

With T_ij = ω·Σ_a u_ia·v_ja and |T| ≤ Φ, sin T = Σ_{d odd} c_d·T^d to rounding, and by the multinomial theorem

    T^d = Σ_{a₁ ≤ … ≤ a_d} d!/(n₁!·…·n_r!) · (Π_l ω·u_{i,a_l}) · (Π_l v_{j,a_l})

with n_a, how often a is among the a_l. So a row of P holds all monomials of odd degrees of ω·u_i, times c_d and the
multinomials, and a row of Q those of v_j: r + C(r + 2, 3) columns at degree 3. The c_d interpolate the sine at
Chebyshev nodes of [0, Φ]. Trained adapters have such phases (`benchmarks/llm_quality.py`), whole layers do not.
"""

import math
from functools import lru_cache
from itertools import combinations_with_replacement

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sinelr_lightning.layers.factorization import wide
from sinelr_lightning.layers.on_host import largest_on_host
from sinelr_lightning.layers.select import TOLERANCE, enough_work

__all__ = ["enough_degree", "power_columns", "power_factors", "power_linear"]

_DEGREES = (1, 3, 5, 7)
# Share of m·n up to which columns·(m + n) won over forming the whole weight in benchmarks/llm_adapters.py.
_BREAK_EVEN = 0.25
# Phases that an adapter may have one step after its start at zero, of which a late bound does not know yet.
_FIRST_STEP = 0.1


def enough_degree(u: Tensor, v: Tensor, omega: float, dtype: torch.dtype, rows: int) -> int | None:
    """Degree of the polynomial that is exact to rounding in `dtype` and cheaper than the weight, or None.

    On a device the phases' bound is that of the step before, with a margin (`on_host`).

    Args:
        u, v: factors [m, rank] and [n, rank].
        omega: frequency.
        dtype: in which the products run.
        rows: of x.
    """
    (m, rank), n = u.shape, v.shape[0]
    if u.is_meta or not enough_work(u, v, rows, dtype):
        return None
    most = _BREAK_EVEN * m * n / (m + n)
    if power_columns(rank, 1) > most:
        return None
    bound = omega * wide(u.detach()).norm(dim=1).amax() * wide(v.detach()).norm(dim=1).amax()
    largest = largest_on_host(u, bound, u, v)  # u, for v is made anew from a parameter each time
    if not u.is_cpu:
        largest = max(largest, _FIRST_STEP)  # NaN stays
    # NaN is below no reach.
    degree = next((degree for degree in _DEGREES if largest <= _polynomial(degree, dtype)[0]), None)
    return None if degree is None or power_columns(rank, degree) > most else degree


def power_columns(rank: int, degree: int) -> int:
    """Number of columns of P and Q: 128 at rank 8 and degree 3."""
    return sum(math.comb(rank + d - 1, d) for d in range(1, degree + 1, 2))


def power_linear(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: float | Tensor,
    u: Tensor,
    v: Tensor,
    omega: float,
    degree: int,
) -> Tensor:
    """x·(weight + scale·sin(ω·u·vᵀ))ᵀ + bias for rows x [N, n], in the type of x; without `weight` the sine alone."""
    # Formed once more in backward: the parts of its monomials would take more room than P and Q.
    p, q = checkpoint(power_factors, u, v, omega, degree, x.dtype, use_reentrant=False, preserve_rng_state=False)
    bias = None if bias is None else bias.to(x.dtype)
    if weight is not None:
        return torch.addmm(F.linear(x, weight, bias), x @ q.t(), p * scale)
    update = (x @ q.t()) @ (p * scale)
    return update if bias is None else update + bias


def power_factors(u: Tensor, v: Tensor, omega: float, degree: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Pᵀ and Qᵀ [columns, m] and [columns, n] in `dtype` with sin(ω·u·vᵀ) = P·Qᵀ, for autograd.

    Args:
        u, v: factors [m, rank] and [n, rank].
        omega: frequency.
        degree: from `enough_degree`.
        dtype: in which the products run.
    """
    u, v = wide(u), wide(v)
    length = v.detach().norm(dim=1).amax().clamp_min(1e-30)  # no power of v/length leaves the range of float16
    rows_u, rows_v = (u * (omega * length)).t(), (v / length).t()
    p, q = [], []
    for d, coefficient in zip(range(1, degree + 1, 2), _polynomial(degree, dtype)[1], strict=True):
        indices, multinomials = _monomials(u.shape[1], d, u.device)
        p.append(_products(rows_u, indices) * (coefficient * multinomials.to(u.dtype))[:, None])
        q.append(_products(rows_v, indices))
    return torch.cat(p).to(dtype), torch.cat(q).to(dtype)


def _products(rows: Tensor, indices: Tensor) -> Tensor:
    """For each column of `indices` [d, monomials] the product of those rows."""
    product = rows.index_select(0, indices[0])
    for index in indices[1:]:
        product = product * rows.index_select(0, index)
    return product


@lru_cache(maxsize=256)
@torch.inference_mode(False)
def _monomials(rank: int, degree: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Which factors each monomial of that degree multiplies [degree, monomials], and how often it occurs."""
    chosen = list(combinations_with_replacement(range(rank), degree))
    times = [math.factorial(degree) // math.prod(math.factorial(one.count(a)) for a in set(one)) for one in chosen]
    return torch.tensor(chosen, device=device).t().contiguous(), torch.tensor(times, device=device)


@lru_cache(maxsize=64)
def _polynomial(degree: int, dtype: torch.dtype) -> tuple[float, list[float]]:
    """The largest Φ at which the polynomial is within the tolerance of min(1, Φ), and its coefficients."""
    low, high = 0.0, math.pi
    while high - low > 1e-3 * high:
        middle = (low + high) / 2
        powers = torch.arange(1, degree + 1, 2, device="cpu")
        grid = torch.linspace(0, middle, 257, dtype=torch.float64, device="cpu")[:, None]
        error = grid[:, 0].sin() - (grid**powers) @ _interpolation(middle, powers)
        within = float(error.abs().max()) <= TOLERANCE[dtype] * min(1.0, middle)
        low, high = (middle, high) if within else (low, middle)
    return low, _interpolation(low, powers).tolist()


def _interpolation(phase: float, powers: Tensor) -> Tensor:
    """Coefficients of T^d for d in `powers`, of the polynomial that is the sine at Chebyshev nodes up to `phase`."""
    nodes = torch.arange(len(powers), dtype=torch.float64, device="cpu")
    nodes = torch.cos((2 * nodes + 1) * (math.pi / (4 * len(powers))))[:, None]
    # In nodes of [0, 1] the system is well conditioned.
    return torch.linalg.solve(nodes**powers, torch.sin(phase * nodes[:, 0])) / phase ** powers.double()

"""Thin factors of sin(ω·U·Vᵀ)/g at rank 1 and 2: P·Qᵀ to rounding, with few columns and whatever m and n are.

With b_a ≥ max|v_a|, t_a = v_a/b_a and α_a = ω·b_a·u_a, a sine and a cosine are short sums of Chebyshev polynomials,

    sin(α·t) = Σ_{p odd} c_p(α)·T_p(t)    and    cos(α·t) = Σ_{p even} c_p(α)·T_p(t),

and r samples at the nodes x_s = cos((2s + 1)π/4r), s < r, give the r coefficients of either, c_p(α) =
(2/r)·Σ_s T_p(x_s)·sin(α·x_s) for odd p, and so with the cosine for even p (half of it for p = 0).

At rank 1 the columns of P and Q are c_p(α)/√g and T_p(t)/√g for the odd p < 2r. At rank 2, by the sine of a sum,
they are c_p(α₁)·c_q(α₂)/√g and T_p(t₁)·T_q(t₂)/√g for all p and q < 2r with p + q odd and < 2R, where r suffices for
the phases of one column of U and V and R for those of both. The c_p are Bessel functions, 2·J_p(α) up to sign, and
fall off with p, which is why half-precision products harm neither W nor ∂L/∂V, where T' grows as p²; √g on either
side keeps x·Q and ∂L/∂y·P both within the range of float16.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from sinelr_lightning.layers.factorization import wide
from sinelr_lightning.layers.select import Nodes, column_scale

__all__ = ["thin_factors", "thin_gradients"]

# A table is a function of (t [n], r, parity) with the values at t for the r degrees 2j + parity, as [r, n].
_Table = Callable[[Tensor, int, int], Tensor]
_ODD, _EVEN = 1, 0


def thin_factors(
    u: Tensor, v: Tensor, omega: float, gain: float, nodes: Nodes, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Pᵀ and Qᵀ [columns, m] and [columns, n] in `dtype`, for factors u [m, k] and v [n, k], k = 1 or 2."""
    alpha, t, _ = _arguments(u, v, omega)
    p = _columns(_coefficients, alpha, nodes).div_(math.sqrt(gain))
    q = _columns(_chebyshev, t, nodes).div_(math.sqrt(gain))
    return p.to(dtype), q.to(dtype)


def thin_gradients(
    grad_p: Tensor, grad_q: Tensor, u: Tensor, v: Tensor, omega: float, gain: float, nodes: Nodes
) -> tuple[Tensor, Tensor]:
    """Gradients of u and v from those of Pᵀ and Qᵀ. W does not depend on b, so none flows through b."""
    alpha, t, b = _arguments(u, v, omega)
    grad_alpha = _pull_back(grad_p.to(t.dtype), _coefficients, _coefficient_slopes, alpha, nodes)
    grad_t = _pull_back(grad_q.to(t.dtype), _chebyshev, _chebyshev_slopes, t, nodes)
    grad_u = grad_alpha.t() * (omega * b / math.sqrt(gain))
    return grad_u.to(u.dtype), (grad_t.t() / (b * math.sqrt(gain))).to(v.dtype)


def _arguments(u: Tensor, v: Tensor, omega: float) -> tuple[Tensor, Tensor, Tensor]:
    """α [k, m], t [k, n] and b [k]."""
    u, v = wide(u), wide(v)
    b = column_scale(u, v, omega)
    return (u * (omega * b)).t(), (v / b).t(), b


# --------------------------------------------------------------------------------------------------- columns


def _columns(table: _Table, t: Tensor, nodes: Nodes) -> Tensor:
    """The columns of P or Q, as rows, from the values of their table at t [k, n]."""
    if len(t) == 1:
        return table(t[0], nodes.each, _ODD)
    return _products(_both(table, t[0], nodes), _both(table, t[1], nodes), nodes)


def _pull_back(grad: Tensor, table: _Table, slopes: _Table, t: Tensor, nodes: Nodes) -> Tensor:
    """The gradient of t [k, n] from that of `_columns(table, t, nodes)`, given the table of derivatives."""
    if len(t) == 1:
        return slopes(t[0], nodes.each, _ODD).mul_(grad).sum(0, keepdim=True)
    first, second = _both(table, t[0], nodes), _both(table, t[1], nodes)
    first_moved, second_moved = _both(slopes, t[0], nodes), _both(slopes, t[1], nodes)
    moved = _products(first_moved, second, nodes), _products(first, second_moved, nodes)
    return torch.stack([columns.mul_(grad).sum(0) for columns in moved])


def _both(table: _Table, t: Tensor, nodes: Nodes) -> tuple[Tensor, Tensor]:
    return table(t, nodes.each, _ODD), table(t, nodes.each, _EVEN)


def _products(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], nodes: Nodes) -> Tensor:
    """All products of an odd and an even degree with a sum < 2·total, of tables [each, n] by parity."""
    (odd_1, even_1), (odd_2, even_2) = first, second
    i, j = _degree_pairs(nodes, odd_1.device)
    return torch.cat([odd_1[i] * even_2[j], even_1[j] * odd_2[i]])


@lru_cache(maxsize=256)
@torch.inference_mode(False)
def _degree_pairs(nodes: Nodes, device: torch.device) -> tuple[Tensor, Tensor]:
    """All 0 ≤ i, j < each with i + j < total, so that (2i + 1) + 2j < 2·total."""
    index = torch.arange(nodes.each, device="cpu")
    i, j = torch.where(index[:, None] + index < nodes.total)
    return i.to(device), j.to(device)


# ---------------------------------------------------------------------------------------------------- tables


@lru_cache(maxsize=256)
@torch.inference_mode(False)
def _nodes_and_transform(r: int, parity: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Nodes x_s [r] and the matrix [r, r] that turns samples at them into coefficients of degree 2j + parity."""
    index = torch.arange(r, dtype=torch.float64, device="cpu")
    angle = (2 * index + 1) * (math.pi / (4 * r))
    transform = torch.cos(torch.outer(2 * index + parity, angle)) * (2 / r)
    if parity == _EVEN:
        transform[0] /= 2
    return torch.cos(angle).to(device, dtype), transform.to(device, dtype)


def _coefficients(alpha: Tensor, r: int, parity: int) -> Tensor:
    """c_p(α) for α [m]."""
    nodes, transform = _nodes_and_transform(r, parity, alpha.dtype, alpha.device)
    samples = torch.outer(nodes, alpha)
    return transform @ (samples.sin_() if parity == _ODD else samples.cos_())


def _coefficient_slopes(alpha: Tensor, r: int, parity: int) -> Tensor:
    """Derivatives c'_p(α)."""
    nodes, transform = _nodes_and_transform(r, parity, alpha.dtype, alpha.device)
    samples = torch.outer(nodes, alpha)
    if parity == _ODD:
        return (transform * nodes) @ samples.cos_()
    return (transform * -nodes) @ samples.sin_()


def _chebyshev(t: Tensor, r: int, parity: int) -> Tensor:
    """T_p(t) for t [n]."""
    if parity == _ODD:
        return _every_second(t, t, t, r)  # T_{−1} and T_1
    return _every_second(2 * t * t - 1, torch.ones_like(t), t, r)  # T_{−2} and T_0


def _chebyshev_slopes(t: Tensor, r: int, parity: int) -> Tensor:
    """Derivatives T'_p(t) = p·U_{p−1}(t), with the polynomials U of the second kind."""
    one = torch.ones_like(t)
    if parity == _ODD:
        values = _every_second(-one, one, t, r)  # U_{−2} and U_0
    else:
        values = _every_second(-2 * t, torch.zeros_like(t), t, r)  # U_{−3} and U_{−1}
    return values.mul_(2 * torch.arange(r, dtype=t.dtype, device=t.device)[:, None] + parity)


def _every_second(before: Tensor, now: Tensor, t: Tensor, r: int) -> Tensor:
    """r values [r, n] from `now` on of f_{p+2} = (4t² − 2)·f_p − f_{p−2}, which Chebyshev polynomials obey."""
    twice = 4 * t * t - 2
    values = t.new_empty(r, t.shape[0])
    for j in range(r):
        values[j] = now
        before, now = now, twice * now - before
    return values

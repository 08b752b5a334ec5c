"""y = x·Wᵀ + bias with W = sin(ω·U·Vᵀ)/g, forward and backward written by hand.

With T = ω·U·Vᵀ and G = ∂L/∂W:  ∂L/∂U = (ω/g)·(G ∘ cos T)·V  and  ∂L/∂V = (ω/g)·(G ∘ cos T)ᵀ·U.

Formed: W is formed, used and dropped, and formed again in backward; only x, U and V are kept.

Thin (rank 1): with b = max|v|, nodes x_p = cos((2p + 1)π/4r) for p < r, and the odd interpolation basis
L_p(t) = (2/r)·Σ_{j<r} T_{2j+1}(x_p)·T_{2j+1}(t), W equals P·Qᵀ to rounding, where P_ip = sin(ω·b·u_i·x_p)/g and
Q_jp = L_p(v_j/b). Both products with x are then r columns wide. `thin_factors` gives Pᵀ and Qᵀ.

Both take phases in float32 or wider and round only the finished weight (or P and Q) to the type of the product.
"""

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sinelr_lightning.layers.factorization import wide
from sinelr_lightning.layers.select import thin_nodes

__all__ = ["sine_linear", "thin_factors"]


def sine_linear(x: Tensor, u: Tensor, v: Tensor, bias: Tensor | None, omega: float, gain: float) -> Tensor:
    """x·sin(ω·u·vᵀ)ᵀ/g + bias, keeping nothing of size m×n between forward and backward.

    Args:
        x: [..., n]; under autocast it is taken in the autocast type.
        u, v: factors [m, k] and [n, k].
        bias: [m] or None.
        omega, gain: ω and g.

    Returns:
        [..., m] in the type of x. Gradients of gradients are not defined and raise.
    """
    device = x.device.type
    if torch.is_autocast_enabled(device):
        x = x.to(torch.get_autocast_dtype(device))
    rows = x.reshape(-1, x.shape[-1])
    if torch.compiler.is_compiling():
        y = _sine_linear_op(rows, u, v, bias, omega, gain)
    else:
        with torch.autocast(device, enabled=False):
            nodes = thin_nodes(u, v, omega, x.dtype)
            if nodes is None:
                y = _Formed.apply(rows, u, v, bias, omega, gain)
            else:
                y = _Thin.apply(rows, u, v, bias, omega, gain, nodes)
    return y.reshape(*x.shape[:-1], u.shape[0])


def _product(x: Tensor, weight_t: Tensor, bias: Tensor | None) -> Tensor:
    return torch.mm(x, weight_t) if bias is None else torch.addmm(bias.to(x.dtype), x, weight_t)


# ---------------------------------------------------------------------------------------------------- formed


def _phase(u: Tensor, v: Tensor, omega: float) -> Tensor:
    return (wide(u) * omega) @ wide(v).t()


def _formed_forward(x: Tensor, u: Tensor, v: Tensor, bias: Tensor | None, omega: float, gain: float) -> Tensor:
    weight = _phase(u, v, omega).sin_().div_(gain).to(x.dtype)
    return _product(x, weight.t(), bias)


def _formed_backward(
    grad: Tensor,
    x: Tensor,
    u: Tensor,
    v: Tensor,
    omega: float,
    gain: float,
    needs_x: bool,
    needs_weight: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    phase = _phase(u, v, omega)
    grad_x = grad_u = grad_v = None
    if needs_x:
        grad_x = grad @ phase.sin().div_(gain).to(x.dtype)
    if needs_weight:
        slope = phase.cos_().mul_(grad.t() @ x)
        grad_u = (slope @ wide(v)).mul_(omega / gain).to(u.dtype)
        grad_v = (slope.t() @ wide(u)).mul_(omega / gain).to(v.dtype)
    return grad_x, grad_u, grad_v


class _Formed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, u: Tensor, v: Tensor, bias: Tensor | None, omega: float, gain: float) -> Tensor:
        ctx.save_for_backward(x, u, v)
        ctx.omega, ctx.gain, ctx.bias_dtype = omega, gain, None if bias is None else bias.dtype
        return _formed_forward(x, u, v, bias, omega, gain)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needs_x, needs_u, needs_v, needs_bias = ctx.needs_input_grad[:4]
        with torch.autocast(grad.device.type, enabled=False):
            grads = _formed_backward(grad, *ctx.saved_tensors, ctx.omega, ctx.gain, needs_x, needs_u or needs_v)
            grad_bias = grad.sum(0).to(ctx.bias_dtype) if needs_bias else None
        return *grads, grad_bias, None, None


# ------------------------------------------------------------------------------------------------------ thin


@lru_cache(maxsize=256)
def _nodes_and_basis(r: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Nodes x_p [r] and the matrix (2/r)·T_{2j+1}(x_p) [p, j] that turns Chebyshev values into the basis L_p."""
    p, j = torch.arange(r, dtype=torch.float64)[:, None], torch.arange(r, dtype=torch.float64)
    angle = (2 * p + 1) * math.pi / (4 * r)
    basis = torch.cos((2 * j + 1) * angle) * (2 / r)
    return torch.cos(angle[:, 0]).to(device, dtype), basis.to(device, dtype)


def _odd_chebyshev(t: Tensor, r: int) -> Tensor:
    """T_1, T_3, …, T_{2r−1} at t [n], as [r, n]."""
    twice = 4 * t * t - 2  # T_{j+2} = (4t² − 2)·T_j − T_{j−2}
    values = t.new_empty(r, t.shape[0])
    before, now = t, t  # T_{−1} and T_1
    for j in range(r):
        values[j] = now
        before, now = now, twice * now - before
    return values


def _odd_chebyshev_slope(t: Tensor, r: int) -> Tensor:
    """Derivatives of T_1, T_3, …, T_{2r−1} at t [n], as [r, n]: T'_{2j+1} = (2j + 1)·U_{2j}."""
    twice = 4 * t * t - 2
    values = t.new_empty(r, t.shape[0])
    before, now = -torch.ones_like(t), torch.ones_like(t)  # U_{−2} and U_0
    for j in range(r):
        values[j] = now * (2 * j + 1)
        before, now = now, twice * now - before
    return values


def _bound(v: Tensor) -> Tensor:
    """Largest |v|, kept away from zero so that v/b is defined for factors that are all zero."""
    return v.abs().amax().clamp_min(torch.finfo(v.dtype).tiny)


def thin_factors(
    u: Tensor, v: Tensor, omega: float, gain: float, r: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Pᵀ [r, m] and Qᵀ [r, n] in `dtype` with sin(ω·u·vᵀ)/g = P·Qᵀ, for factors u [m, 1] and v [n, 1]."""
    u, v = wide(u)[:, 0], wide(v)[:, 0]
    nodes, basis = _nodes_and_basis(r, u.dtype, u.device)
    b = _bound(v)
    p = torch.outer(nodes * (omega * b), u).sin_().div_(gain)
    return p.to(dtype), (basis @ _odd_chebyshev(v / b, r)).to(dtype)


def _thin_backward(
    grad: Tensor,
    x: Tensor,
    u: Tensor,
    v: Tensor,
    omega: float,
    gain: float,
    p: Tensor,
    q: Tensor,
    h: Tensor,
    needs_x: bool,
    needs_weight: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, u and v; h = x·Q. W does not depend on b, so none flows through b."""
    grad_h = grad @ p.t()
    grad_x = grad_h @ q if needs_x else None
    if not needs_weight:
        return grad_x, None, None
    # hᵀ·grad rather than gradᵀ·h: the long sides stay contiguous, several times faster for few nodes.
    grad_p, grad_q = wide(h.t() @ grad), wide(grad_h.t() @ x)
    r, wide_v = p.shape[0], wide(v)[:, 0]
    nodes, basis = _nodes_and_basis(r, wide_v.dtype, v.device)
    b = _bound(wide_v)
    rate = nodes * (omega * b)
    slope = torch.outer(rate, wide(u)[:, 0]).cos_().mul_(grad_p)
    grad_u = (rate / gain) @ slope
    grad_v = ((basis.t() @ grad_q) * _odd_chebyshev_slope(wide_v / b, r)).sum(0) / b
    return grad_x, grad_u[:, None].to(u.dtype), grad_v[:, None].to(v.dtype)


class _Thin(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, u: Tensor, v: Tensor, bias: Tensor | None, omega: float, gain: float, r: int
    ) -> Tensor:
        p, q = thin_factors(u, v, omega, gain, r, x.dtype)
        h = x @ q.t()
        ctx.save_for_backward(x, u, v, p, q, h)
        ctx.omega, ctx.gain, ctx.bias_dtype = omega, gain, None if bias is None else bias.dtype
        return _product(h, p, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, u, v, p, q, h = ctx.saved_tensors
        needs_x, needs_u, needs_v, needs_bias = ctx.needs_input_grad[:4]
        with torch.autocast(grad.device.type, enabled=False):
            grads = _thin_backward(grad, x, u, v, ctx.omega, ctx.gain, p, q, h, needs_x, needs_u or needs_v)
            grad_bias = grad.sum(0).to(ctx.bias_dtype) if needs_bias else None
        return *grads, grad_bias, None, None, None


# -------------------------------------------------------------------------------------------------- compiled
# Under torch.compile the choice between the two ways, which depends on the factors' values, sits inside one
# operator that the compiler does not look into; its backward chooses again and keeps x, u and v alone.


@torch.library.custom_op("sinelr::sine_linear", mutates_args=())
def _sine_linear_op(x: Tensor, u: Tensor, v: Tensor, bias: Tensor | None, omega: float, gain: float) -> Tensor:
    nodes = thin_nodes(u, v, omega, x.dtype)
    if nodes is None:
        return _formed_forward(x, u, v, bias, omega, gain)
    p, q = thin_factors(u, v, omega, gain, nodes, x.dtype)
    return _product(x @ q.t(), p, bias)


@_sine_linear_op.register_fake
def _(x: Tensor, u: Tensor, v: Tensor, bias: Tensor | None, omega: float, gain: float) -> Tensor:
    return x.new_empty(x.shape[0], u.shape[0])


@torch.library.custom_op("sinelr::sine_linear_backward", mutates_args=())
def _sine_linear_backward_op(
    grad: Tensor, x: Tensor, u: Tensor, v: Tensor, omega: float, gain: float
) -> tuple[Tensor, Tensor, Tensor]:
    nodes = thin_nodes(u, v, omega, x.dtype)
    if nodes is None:
        grads = _formed_backward(grad, x, u, v, omega, gain, True, True)
        return grads  # ty: ignore[invalid-explicit-return]
    p, q = thin_factors(u, v, omega, gain, nodes, x.dtype)
    return _thin_backward(grad, x, u, v, omega, gain, p, q, x @ q.t(), True, True)  # ty: ignore[invalid-explicit-return]


@_sine_linear_backward_op.register_fake
def _(grad: Tensor, x: Tensor, u: Tensor, v: Tensor, omega: float, gain: float) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(u), torch.empty_like(v)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, u, v, bias, ctx.omega, ctx.gain = inputs
    ctx.save_for_backward(x, u, v)
    ctx.bias_dtype = None if bias is None else bias.dtype


def _compiled_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grads = _sine_linear_backward_op(grad.contiguous(), *ctx.saved_tensors, ctx.omega, ctx.gain)
    grad_bias = None if ctx.bias_dtype is None else grad.sum(0).to(ctx.bias_dtype)
    return *grads, grad_bias, None, None


_sine_linear_op.register_autograd(_compiled_backward, setup_context=_setup_context)

"""y = x·Wᵀ + bias with W = sin(ω·U·Vᵀ)/g, forward and backward written by hand.

With T = ω·U·Vᵀ and G = ∂L/∂W:  ∂L/∂U = (ω/g)·(G ∘ cos T)·V  and  ∂L/∂V = (ω/g)·(G ∘ cos T)ᵀ·U.

Formed: W is formed, used and dropped, and formed again in backward; only x, U and V are kept.

Thin (rank 1 and 2, `layers.thin`; small phases at any rank, `layers.powers`): W = P·Qᵀ to rounding with few columns,
so the products with x are thin. P, Q and x·Q are kept.

All take phases in float32 or wider and round only the finished weight (or P and Q) to the type of the product.
"""

from typing import Any

import torch
from torch import Tensor

from sinelr_lightning.layers.factorization import product_type, wide, without_autocast
from sinelr_lightning.layers.powers import enough_degree, power_linear
from sinelr_lightning.layers.select import Nodes, thin_nodes
from sinelr_lightning.layers.thin import thin_factors, thin_gradients

__all__ = ["phase_of", "sine_linear"]


def sine_linear(x: Tensor, u: Tensor, v: Tensor, bias: Tensor | None, omega: float, gain: float) -> Tensor:
    """x·sin(ω·u·vᵀ)ᵀ/g + bias by the cheaper way; nothing of size m×n is kept between forward and backward.

    Args:
        x: [..., n]; under autocast it is taken in the autocast type, unless it is float64.
        u, v: factors [m, k] and [n, k].
        bias: [m] or None.
        omega, gain: ω and g.

    Returns:
        [..., m] in the type of x. Gradients of gradients are right as well (with `create_graph=True` backward forms
        the weight and keeps it); only under torch.compile they raise.
    """
    x = x.to(product_type(x))
    rows = x.reshape(-1, x.shape[-1])
    if torch.compiler.is_compiling():
        y = _sine_linear_op(rows, u, v, bias, omega, gain)
    else:
        with without_autocast(x):
            if (nodes := thin_nodes(u, v, omega, x.dtype, len(rows))) is not None:
                y = _Thin.apply(rows, u, v, bias, omega, gain, nodes)
            elif u.is_cpu and (degree := enough_degree(u, v, omega, x.dtype, len(rows))) is not None:
                y = power_linear(rows, None, bias, 1 / gain, u, v, omega, degree)
            else:
                y = _Formed.apply(rows, u, v, bias, omega, gain)
    return y.reshape(*x.shape[:-1], u.shape[0])


def _product(x: Tensor, weight_t: Tensor, bias: Tensor | None) -> Tensor:
    return torch.mm(x, weight_t) if bias is None else torch.addmm(bias.to(x.dtype), x, weight_t)


# ---------------------------------------------------------------------------------------------------- formed


def phase_of(u: Tensor, v: Tensor, omega: float) -> Tensor:
    """The phases ω·u·vᵀ [m, n], in float32 or wider."""
    return (wide(u) * omega) @ wide(v).t()


def _formed_forward(x: Tensor, u: Tensor, v: Tensor, bias: Tensor | None, omega: float, gain: float) -> Tensor:
    weight = phase_of(u, v, omega).sin_().div_(gain).to(x.dtype)
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
    phase = phase_of(u, v, omega)
    grad_x = grad_u = grad_v = None
    if needs_x:
        grad_x = grad @ phase.sin().div_(gain).to(x.dtype)
    if needs_weight:
        slope = phase.cos_().mul_(grad.t() @ x)
        grad_u = (slope @ wide(v)).mul_(omega / gain).to(u.dtype)
        grad_v = (slope.t() @ wide(u)).mul_(omega / gain).to(v.dtype)
    return grad_x, grad_u, grad_v


def _backward_with_graph(
    grad: Tensor, x: Tensor, u: Tensor, v: Tensor, omega: float, gain: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The formed gradients by ordinary operations, so that autograd can differentiate them once more."""
    phase = phase_of(u, v, omega)
    slope = phase.cos() * (grad.t() @ x).to(phase.dtype) * (omega / gain)
    grad_x = grad @ (phase.sin() / gain).to(x.dtype)
    return grad_x, (slope @ wide(v)).to(u.dtype), (slope.t() @ wide(u)).to(v.dtype)


class _Formed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, u: Tensor, v: Tensor, bias: Tensor | None, omega: float, gain: float) -> Tensor:
        ctx.save_for_backward(x, u, v)
        ctx.constants, ctx.bias_dtype = (omega, gain), None if bias is None else bias.dtype
        return _formed_forward(x, u, v, bias, omega, gain)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needs_x, needs_u, needs_v, needs_bias = ctx.needs_input_grad[:4]
        with without_autocast(grad):
            if torch.is_grad_enabled():  # create_graph=True
                grads = _backward_with_graph(grad, *ctx.saved_tensors, *ctx.constants)
            else:
                grads = _formed_backward(grad, *ctx.saved_tensors, *ctx.constants, needs_x, needs_u or needs_v)
            grad_bias = grad.sum(0).to(ctx.bias_dtype) if needs_bias else None
        return *grads, grad_bias, None, None


# ------------------------------------------------------------------------------------------------------ thin


def _thin_backward(
    grad: Tensor,
    x: Tensor,
    u: Tensor,
    v: Tensor,
    omega: float,
    gain: float,
    nodes: Nodes,
    p: Tensor,
    q: Tensor,
    h: Tensor,
    needs_x: bool,
    needs_weight: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, u and v; p and q are Pᵀ and Qᵀ, and h = x·Q."""
    grad_h = grad @ p.t()
    grad_x = grad_h @ q if needs_x else None
    if not needs_weight:
        return grad_x, None, None
    # hᵀ·grad rather than gradᵀ·h: the long sides stay contiguous, several times faster for few nodes.
    return grad_x, *thin_gradients(h.t() @ grad, grad_h.t() @ x, u, v, omega, gain, nodes)


class _Thin(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, u: Tensor, v: Tensor, bias: Tensor | None, omega: float, gain: float, nodes: Nodes
    ) -> Tensor:
        p, q = thin_factors(u, v, omega, gain, nodes, x.dtype)
        h = x @ q.t()
        ctx.save_for_backward(x, u, v, p, q, h)
        ctx.constants, ctx.bias_dtype = (omega, gain, nodes), None if bias is None else bias.dtype
        return _product(h, p, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, u, v, p, q, h = ctx.saved_tensors
        needs_x, needs_u, needs_v, needs_bias = ctx.needs_input_grad[:4]
        with without_autocast(grad):
            if torch.is_grad_enabled():  # create_graph=True
                grads = _backward_with_graph(grad, x, u, v, *ctx.constants[:2])
            else:
                grads = _thin_backward(grad, x, u, v, *ctx.constants, p, q, h, needs_x, needs_u or needs_v)
            grad_bias = grad.sum(0).to(ctx.bias_dtype) if needs_bias else None
        return *grads, grad_bias, None, None, None


# -------------------------------------------------------------------------------------------------- compiled
# Under torch.compile the choice between the two ways, which depends on the factors' values, sits inside one
# operator that the compiler does not look into; its backward chooses again and keeps x, u and v alone.


@torch.library.custom_op("sinelr::sine_linear", mutates_args=())
def _sine_linear_op(x: Tensor, u: Tensor, v: Tensor, bias: Tensor | None, omega: float, gain: float) -> Tensor:
    with without_autocast(x):
        nodes = thin_nodes(u, v, omega, x.dtype, len(x))
        if nodes is None:
            return _formed_forward(x, u, v, bias, omega, gain)
        p, q = thin_factors(u, v, omega, gain, nodes, x.dtype)
        return _product(x @ q.t(), p, bias)


@_sine_linear_op.register_fake
def _(x: Tensor, u: Tensor, v: Tensor, bias: Tensor | None, omega: float, gain: float) -> Tensor:
    return x.new_empty(x.shape[0], u.shape[0])


@torch.library.custom_op("sinelr::sine_linear_backward", mutates_args=())
def _sine_linear_backward_op(
    grad: Tensor, x: Tensor, u: Tensor, v: Tensor, omega: float, gain: float, needs_x: bool, needs_weight: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, u and v; an empty tensor for one that is not needed."""
    with without_autocast(x):
        nodes = thin_nodes(u, v, omega, x.dtype, len(x))
        if nodes is None:
            grads = _formed_backward(grad, x, u, v, omega, gain, needs_x, needs_weight)
        else:
            p, q = thin_factors(u, v, omega, gain, nodes, x.dtype)
            h = x @ q.t()
            grads = _thin_backward(grad, x, u, v, omega, gain, nodes, p, q, h, needs_x, needs_weight)
    grad_x, grad_u, grad_v = (x.new_empty(0) if g is None else g.contiguous() for g in grads)
    return grad_x, grad_u, grad_v


@_sine_linear_backward_op.register_fake
def _(
    grad: Tensor, x: Tensor, u: Tensor, v: Tensor, omega: float, gain: float, needs_x: bool, needs_weight: bool
) -> tuple[Tensor, Tensor, Tensor]:
    # The gradient of x is laid out row by row, also where x itself is transposed.
    grad_x = x.new_empty(x.shape if needs_x else 0)
    if not needs_weight:
        return grad_x, x.new_empty(0), x.new_empty(0)
    return grad_x, u.new_empty(u.shape), v.new_empty(v.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, u, v, bias, ctx.omega, ctx.gain = inputs
    ctx.save_for_backward(x, u, v)
    ctx.bias_dtype = None if bias is None else bias.dtype


def _compiled_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needs_x, needs_u, needs_v, needs_bias = ctx.needs_input_grad[:4]
    needs = (needs_x, needs_u or needs_v)
    grads = _sine_linear_backward_op(grad.contiguous(), *ctx.saved_tensors, ctx.omega, ctx.gain, *needs)
    grad_x, grad_u, grad_v = (g if n else None for g, n in zip(grads, (needs_x, needs_u, needs_v), strict=True))
    return grad_x, grad_u, grad_v, grad.sum(0).to(ctx.bias_dtype) if needs_bias else None, None, None


_sine_linear_op.register_autograd(_compiled_backward, setup_context=_setup_context)

"""A frozen weight with a sine on top, y = x·(W₀ + s·sin(ω·U·Vᵀ)/g)ᵀ + bias: formed once, multiplied once.

While the phases are small enough for it to be cheaper (`layers.powers`): x·W₀ᵀ and two thin products instead.

Formed, with T = ω·U·Vᵀ and G = ∂L/∂W of the whole weight:

    ∂L/∂U = (s·ω/g)·(G ∘ cos T)·V,    ∂L/∂V = (s·ω/g)·(G ∘ cos T)ᵀ·U.

With magnitudes m each row of the whole weight is brought to its length, W = (m/‖·‖) ∘ (W₀ + …), and the norm counts
as a constant in backward (DoRA, arXiv 2402.09353, section 4.3).

Between forward and backward only x, U, V, W₀ and the norms are kept: nothing of the size of W₀, which lives anyway.
The formed sum is taken in float32 or wider and rounded once, to the type of the product, as a merged weight is.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sinelr_lightning.layers.factorization import product_type, wide, without_autocast
from sinelr_lightning.layers.powers import enough_degree, power_linear
from sinelr_lightning.layers.sine_ops import phase_of

__all__ = ["adapted_sine_linear", "rows_of_length"]


def rows_of_length(weight: Tensor, magnitude: Tensor | None) -> Tensor:
    """The weight [m, n] with each row brought to length `magnitude` [m], the norms constants in backward."""
    if magnitude is None:
        return weight
    return weight * (wide(magnitude) / weight.detach().norm(dim=1))[:, None]


def adapted_sine_linear(
    x: Tensor,
    base: Tensor,
    bias: Tensor | None,
    scale: float | Tensor,
    u: Tensor,
    v: Tensor,
    omega: float,
    gain: float,
    magnitude: Tensor | None = None,
) -> Tensor:
    """x·(base + scale·sin(ω·u·vᵀ)/g)ᵀ + bias, its rows brought to length `magnitude` where that is given.

    Args:
        x: [..., n]; under autocast it is taken in the autocast type, unless it is float64.
        base: W₀ [m, n]; a gradient is made for it only if it requires one.
        bias: [m] or None.
        scale: s, a number or a tensor of one element, which gets no gradient.
        u, v: factors [m, r] and [n, r].
        omega, gain: ω and g.
        magnitude: [m] or None.

    Returns:
        [..., m] in the type of x. Gradients of gradients are right as well.
    """
    x = x.to(product_type(x))
    rows = x.reshape(-1, x.shape[-1])
    if torch.compiler.is_compiling():  # the compiler fuses it, and chooses what it keeps
        with without_autocast(x):
            y = _by_autograd(rows, base, u, v, magnitude, scale, omega, gain, bias)
    elif (degree := _thin_degree(rows, base, u, v, omega, magnitude)) is not None:
        with without_autocast(x):
            y = power_linear(rows, base, bias, scale / gain, u, v, omega, degree)
    else:
        y = _Adapted.apply(rows, base, u, v, bias, magnitude, scale, omega, gain)
    return y.reshape(*x.shape[:-1], u.shape[0])


def _thin_degree(x: Tensor, base: Tensor, u: Tensor, v: Tensor, omega: float, magnitude: Tensor | None) -> int | None:
    """Degree of the polynomial of the phases by which thin products are cheaper; None for the whole weight.

    A magnitude needs the whole weight's rows, and a base of another type would be kept once more in that of x.
    """
    if magnitude is not None or base.dtype != x.dtype:
        return None
    return enough_degree(u, v, omega, x.dtype, len(x))


def _by_autograd(
    x: Tensor,
    base: Tensor,
    u: Tensor,
    v: Tensor,
    magnitude: Tensor | None,
    scale: float | Tensor,
    omega: float,
    gain: float,
    bias: Tensor | None = None,
) -> Tensor:
    """The same by ordinary operations, for the compiler and for gradients of gradients."""
    weight = rows_of_length(wide(base) + phase_of(u, v, omega).sin() * (scale / gain), magnitude)
    return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


class _Adapted(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        base: Tensor,
        u: Tensor,
        v: Tensor,
        bias: Tensor | None,
        magnitude: Tensor | None,
        scale: float | Tensor,
        omega: float,
        gain: float,
    ) -> Tensor:
        with without_autocast(x):
            weight = phase_of(u, v, omega).sin_().mul_(scale / gain).add_(base)
            norm = None
            if magnitude is not None:
                norm = weight.norm(dim=1)
                weight.mul_((wide(magnitude) / norm)[:, None])
            weight = weight.to(x.dtype)
            ctx.save_for_backward(x, base, u, v, magnitude, norm)
            ctx.constants, ctx.bias_dtype = (scale, omega, gain), None if bias is None else bias.dtype
            return x @ weight.t() if bias is None else torch.addmm(bias.to(x.dtype), x, weight.t())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad
        with without_autocast(grad):
            if torch.is_grad_enabled():  # create_graph=True
                grads = _graph_gradients(grad, ctx.saved_tensors[:5], ctx.constants, needs)
            else:
                grads = _gradients(grad, *ctx.saved_tensors, *ctx.constants, needs)
            grad_bias = grad.sum(0).to(ctx.bias_dtype) if needs[4] else None
        grad_x, grad_base, grad_u, grad_v, grad_magnitude = grads
        return grad_x, grad_base, grad_u, grad_v, grad_bias, grad_magnitude, None, None, None


Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]


def _gradients(
    grad: Tensor,
    x: Tensor,
    base: Tensor,
    u: Tensor,
    v: Tensor,
    magnitude: Tensor | None,
    norm: Tensor | None,
    scale: float | Tensor,
    omega: float,
    gain: float,
    needs: tuple[bool, ...],
) -> Gradients:
    """Gradients of x, base, u, v and magnitude; without DoRA at most two matrices of W₀'s size live at once."""
    needs_x, needs_base, needs_u, needs_v, _, needs_magnitude = needs[:6]
    stretch = None if magnitude is None or norm is None else (wide(magnitude) / norm)[:, None]
    grad_x = grad_base = grad_u = grad_v = grad_magnitude = grad_weight = None
    if needs_x or needs_magnitude:
        weight = phase_of(u, v, omega).sin_().mul_(scale / gain).add_(base)
        if needs_magnitude and norm is not None and magnitude is not None:
            grad_weight = grad.t() @ x
            grad_magnitude = ((grad_weight * weight).sum(1) / norm).to(magnitude.dtype)
        if needs_x:
            grad_x = grad @ (weight if stretch is None else weight.mul_(stretch)).to(x.dtype)
        del weight
    if needs_base or needs_u or needs_v:
        if grad_weight is None:
            grad_weight = grad.t() @ x
        if stretch is not None:
            grad_weight = grad_weight * stretch
        if needs_base:
            grad_base = grad_weight.to(base.dtype)
        if needs_u or needs_v:
            # The phases are formed once more: kept from above they would be a third matrix.
            slope = phase_of(u, v, omega).cos_().mul_(grad_weight)
            grad_u = (slope @ wide(v)).mul_(scale * omega / gain).to(u.dtype)
            grad_v = (slope.t() @ wide(u)).mul_(scale * omega / gain).to(v.dtype)
    return grad_x, grad_base, grad_u, grad_v, grad_magnitude


def _graph_gradients(
    grad: Tensor, inputs: tuple[Any, ...], constants: tuple[Any, ...], needs: tuple[bool, ...]
) -> Gradients:
    """The gradients of x, base, u, v and magnitude once more, in a form that autograd can differentiate."""
    needs = (*needs[:4], needs[5])
    wanted = [tensor for tensor, need in zip(inputs, needs, strict=True) if need and tensor is not None]
    found = iter(torch.autograd.grad(_by_autograd(*inputs, *constants), wanted, grad, create_graph=True))
    grad_x, grad_base, grad_u, grad_v, grad_magnitude = (next(found) if need else None for need in needs)
    return grad_x, grad_base, grad_u, grad_v, grad_magnitude

"""Where along its ray a scene is looked at.

Two words are used throughout: **positions** t [..., S], sorted, at which a field is evaluated, and **edges**
[..., S + 1] of the intervals that tile the ray, one position in each. `edges_around` and `edges_after` make edges
from positions, `midpoints` makes positions from edges. Random numbers come from an explicit generator (on the device
of the tensors); without one, every function is deterministic.
"""

import torch
from torch import Tensor

__all__ = ["edges_after", "edges_around", "merge", "midpoints", "sample_pdf", "stratified"]


def stratified(
    near: float | Tensor,
    far: float | Tensor,
    samples: int,
    rays: Tensor,
    generator: torch.Generator | None = None,
    *,
    lindisp: bool = False,
) -> Tensor:
    """One position in each of S even bins between near and far.

    `t_i = near + s_i·(far - near)` with `s_i = (i + u_i)/S`, u_i uniform in [0, 1), or 1/2 without a generator. With
    `lindisp` the bins are even in disparity instead: `1/t_i = (1 - s_i)/near + s_i/far` (near > 0; far may be `inf`).

    Worked numbers: near = 2, far = 6, S = 4, no generator: t = 2.5, 3.5, 4.5, 5.5; with `lindisp` and S = 2:
    t = 2.4, 4. Source: Mildenhall et al. 2020, eq. 2.

    Args:
        near, far: ends of the ray in units of t, numbers or [...].
        samples: S.
        rays: [..., 3], the origins or directions; only leading shape, dtype and device are used.
        generator: source of the u_i.
        lindisp: even in disparity instead of depth.

    Returns:
        [..., S], sorted.
    """
    share = _strata(samples, rays[..., 0], generator)
    near, far = _column(near), _column(far)
    if lindisp:
        return 1 / ((1 - share) * (1 / near) + share * (1 / far))
    return near + share * (far - near)


def sample_pdf(
    edges: Tensor, weights: Tensor, samples: int, generator: torch.Generator | None = None, padding: float = 1e-5
) -> Tensor:
    """Positions distributed like the weights, by inverting the cumulative distribution of a histogram.

    The density is constant in each interval and proportional to `w_i + padding`; the n-th position is where its
    cumulative distribution passes `(n + u_n)/N`, u_n uniform in [0, 1), or 1/2 without a generator. The positions are
    therefore sorted already. Rays with all weights 0 are sampled evenly over the intervals. No gradient passes.

    Worked numbers: edges 0, 1, 2, 4, weights 0, 0.5, 0.5, N = 4, no generator: 1.25, 1.75, 2.5, 3.5. Source:
    Mildenhall et al. 2020, section 5.2 (stratified, so of lower variance than their independent draws). The original
    hierarchical way gives `midpoints(t)` as edges with `weights[..., 1:-1]`.

    Args:
        edges: [..., S + 1], sorted.
        weights: [..., S], non-negative, of any sum.
        samples: N.
        generator: source of the u_n.
        padding: added to every weight, > 0; a larger one (mip-NeRF takes 0.01) keeps looking at the whole ray.

    Returns:
        [..., N], sorted.
    """
    with torch.no_grad():
        cumulative = _from_zero((weights + padding).cumsum(-1))
        target = _strata(samples, weights[..., 0], generator) * cumulative[..., -1:]
        # u = 1 by rounding, or NaN weights, must not index outside: a NaN should reach the loss, where it is named
        upper = torch.searchsorted(cumulative, target, right=True).clamp_(1, weights.shape[-1])
        lower = upper - 1
        below = cumulative.gather(-1, lower)
        mass = (cumulative.gather(-1, upper) - below).clamp_(min=torch.finfo(target.dtype).tiny)
        share = target.sub_(below).div_(mass)
        return torch.lerp(edges.gather(-1, lower), edges.gather(-1, upper), share)


def merge(first: Tensor, second: Tensor) -> Tensor:
    """All positions of both, sorted: [..., S] and [..., N] → [..., S + N].

    Worked numbers: (1, 3) and (2, 4) → (1, 2, 3, 4). Source: Mildenhall et al. 2020, section 5.2 (the fine network
    sees the union of coarse and fine positions).
    """
    return torch.cat([first, second], dim=-1).sort(dim=-1).values


def midpoints(edges: Tensor) -> Tensor:
    """Middles of neighbours, `(e_i + e_{i+1})/2`: [..., S + 1] → [..., S]. Worked numbers: 0, 1, 4 → 0.5, 2.5."""
    return 0.5 * (edges[..., 1:] + edges[..., :-1])


def edges_around(positions: Tensor, near: float | Tensor, far: float | Tensor) -> Tensor:
    """Intervals that part midway between neighbouring positions and together cover the ray from near to far.

    The way of proposal sampling: a field is then evaluated at `midpoints(edges)`, and the histograms of two levels
    share their support, as `interlevel_loss` needs. Worked numbers: positions 1, 2, 4 in [0, 6] → 0, 1.5, 3, 6.

    Args:
        positions: [..., S], sorted, between near and far.
        near, far: numbers or [...].

    Returns:
        [..., S + 1].
    """
    return torch.cat([_end(near, positions), midpoints(positions), _end(far, positions)], dim=-1)


def edges_after(positions: Tensor, far: float | Tensor) -> Tensor:
    """Intervals that begin at each position and end at the next, the last one at far.

    The quadrature of the original: δ_i = t_{i+1} - t_i (Mildenhall et al. 2020, eq. 3). Worked numbers: positions
    1, 2, 4 with far = 6 → 1, 2, 4, 6.

    Args:
        positions: [..., S], sorted, at most far.
        far: a number or [...].

    Returns:
        [..., S + 1].
    """
    return torch.cat([positions, _end(far, positions)], dim=-1)


def _strata(samples: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
    """[..., S] in [0, 1), one number in each of S even bins, with the leading shape of `like`."""
    shape = (*like.shape, samples)
    start = torch.arange(samples, dtype=like.dtype, device=like.device)
    if generator is None:
        return ((start + 0.5) / samples).expand(shape).contiguous()
    jitter = torch.rand(shape, dtype=like.dtype, device=like.device, generator=generator)
    return jitter.add_(start).div_(samples)


def _from_zero(cumulative: Tensor) -> Tensor:
    return torch.nn.functional.pad(cumulative, (1, 0))


def _column(value: float | Tensor) -> float | Tensor:
    return value[..., None] if isinstance(value, Tensor) else value


def _end(value: float | Tensor, positions: Tensor) -> Tensor:
    if isinstance(value, Tensor):
        return value[..., None].to(positions.dtype).expand(*positions.shape[:-1], 1)
    return positions.new_full((*positions.shape[:-1], 1), value)

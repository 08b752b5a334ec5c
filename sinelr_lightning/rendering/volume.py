"""Volume rendering: from densities and colours along rays to pixels, and the losses on the weights in between.

Lengths are metric: where directions are not unit vectors, an interval of t is multiplied by the direction's norm
(`render_rays` does it). Under autocast everything here stays in the precision of the positions (float32 or float64).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from sinelr_lightning.rendering.sampling import midpoints

__all__ = [
    "Field",
    "Rendered",
    "composite",
    "distortion_loss",
    "interlevel_loss",
    "render_rays",
    "volume_weights",
]

Field = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""`field(positions [..., S, 3], view_directions [..., 3]) -> (density [..., S], colour [..., S, 3])`."""


class Rendered(NamedTuple):
    """Pixels of rays, and the weights they were made with.

    Attributes:
        colour: [..., 3], in the range of the field's colours.
        depth: [...], expected t of what was hit, in units of t.
        opacity: [...], Σ w_i in [0, 1].
        weights: [..., S], for `sample_pdf` and the losses.
    """

    colour: Tensor
    depth: Tensor
    opacity: Tensor
    weights: Tensor


def volume_weights(density: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Share of a pixel that each interval of its ray contributes.

        T_i = exp(-Σ_{j<i} σ_j·δ_j),    w_i = T_i·(1 - exp(-σ_i·δ_i)) = T_i - T_{i+1}

    Worked numbers: σ = (0.5, 2), δ = (1, 1): T = (1, 0.606531), w = (0.393469, 0.524446), and Σ w = 1 - e^-2.5.
    Source: Mildenhall et al. 2020, eq. 3.

    Args:
        density: [..., S], σ ≥ 0 per unit of length.
        lengths: [..., S], δ ≥ 0, broadcasts with density.

    Returns:
        weights w [..., S], accurate to the rounding of 1, and transmittance T [..., S].
    """
    # w_i = T_i - T_{i+1}: one exponential for both, and the weights add up to the opacity exactly
    transmittance = torch.exp(-pad((density * lengths).cumsum(-1), (1, 0)))
    return transmittance[..., :-1] - transmittance[..., 1:], transmittance[..., :-1]


def composite(weights: Tensor, colour: Tensor, t: Tensor, background: Tensor | float | None = None) -> Rendered:
    """Sum what the intervals contribute.

        C = Σ w_i·c_i + (1 - Σ w_i)·background,    depth = Σ w_i·t_i / Σ w_i

    The depth is that of the hits alone; a ray that hits nothing gets the last t, as far as it was looked.

    Worked numbers: w = (0.25, 0.5), red then green, t = (2, 4), white background: C = (0.5, 0.75, 0.25),
    depth = 10/3, opacity = 0.75. Source: Mildenhall et al. 2020, eqs. 3 and 5.

    Args:
        weights: [..., S]. colour: [..., S, 3]. t: [..., S], positions.
        background: [3] or [..., 3], a number (1 is white), or None for black.

    Returns:
        `Rendered`.
    """
    opacity = weights.sum(-1)
    pixel = (weights[..., None] * colour).sum(-2)
    if background is not None:
        pixel = pixel + (1 - opacity)[..., None] * background
    tiny = torch.finfo(weights.dtype).eps
    depth = ((weights * t).sum(-1) + tiny * t[..., -1]) / (opacity + tiny)
    return Rendered(pixel, depth, opacity, weights)


def render_rays(
    field: Field,
    origins: Tensor,
    directions: Tensor,
    edges: Tensor,
    view_directions: Tensor | None = None,
    background: Tensor | float | None = None,
    *,
    positions: Tensor | None = None,
    infinite_end: bool = False,
) -> Rendered:
    """Evaluate a field once in each interval of each ray, and composite.

    Worked numbers: a field of density 0.5 and colour (1, 0.5, 0) along a ray with |d| = 2 from t = 0 to 1, in any
    number of intervals: opacity = 1 - e^-1 = 0.632121, colour = 0.632121·(1, 0.5, 0). Source: Mildenhall et al. 2020,
    eq. 3.

    Args:
        field: callback, see `Field`. It gets one view direction a ray, so that it can encode it once.
        origins, directions: [..., 3]; directions need not be unit vectors.
        edges: [..., S + 1], t of the intervals' ends, sorted.
        view_directions: [..., 3], unit vectors; default: the directions, normalised. NDC rays need the world's.
        background: as in `composite`.
        positions: [..., S], t at which the field is evaluated; default: the middles. The original way gives its
            samples here, and `edges_after(samples, far)` as edges.
        infinite_end: let the last interval reach to infinity, so it takes all light that comes that far: w_S = T_S.
            The original's last length of 1e10 means the same, but puts 1e10 into the gradient of a small density. It
            suits NDC scenes, whose t = 1 is infinity; leave it out where a background should show through.

    Returns:
        `Rendered`, with depth in units of t.
    """
    t = midpoints(edges) if positions is None else positions
    if view_directions is None:
        view_directions = normalize(directions, dim=-1)
    points = torch.addcmul(origins[..., None, :], directions[..., None, :], t[..., None])
    density, colour = field(points, view_directions)
    lengths = edges.diff(dim=-1) * directions.norm(dim=-1, keepdim=True)
    weights, transmittance = volume_weights(density, lengths)
    if infinite_end:
        weights = torch.cat([weights[..., :-1], transmittance[..., -1:]], dim=-1)
    return composite(weights, colour, t, background)


def interlevel_loss(edges: Tensor, weights: Tensor, proposal_edges: Tensor, proposal_weights: Tensor) -> Tensor:
    """Penalise proposal weights that do not bound the weights of the main network.

        bound_i = Σ_j ŵ_j over the proposal's intervals that overlap interval i,
        L = Σ_i max(0, w_i - bound_i)² / (w_i + ε),    averaged over rays

    It is 0 exactly when the proposal could be a coarser view of the same density. The main weights are detached: only
    the proposal learns from it.

    Worked numbers: edges (0, 1, 2), w = (0.2, 0.8), proposal of edges (0, 1.5, 2), ŵ = (0.1, 0.3): bounds (0.1, 0.4),
    L = 0.01/0.2 + 0.16/0.8 = 0.25. Source: Barron et al. 2022 (mip-NeRF 360), eqs. 12 and 13.

    Args:
        edges: [..., S + 1], sorted. weights: [..., S].
        proposal_edges: [..., P + 1], sorted, over the same range. proposal_weights: [..., P].

    Returns:
        scalar.
    """
    weights = weights.detach()
    cumulative = pad(proposal_weights.cumsum(-1), (1, 0))
    first, after = _overlapping(edges.detach(), proposal_edges.detach())
    bound = cumulative.gather(-1, after) - cumulative.gather(-1, first)
    excess = (weights - bound).clamp(min=0)
    return (excess.square() / (weights + torch.finfo(weights.dtype).eps)).sum(-1).mean()


def distortion_loss(edges: Tensor, weights: Tensor) -> Tensor:
    """Pull the weights of a ray together, into few and short intervals.

    With midpoints m_i and lengths δ_i:

        L = Σ_ij w_i·w_j·|m_i - m_j| + 1/3·Σ_i w_i²·δ_i,    averaged over rays

    The double sum is `2·Σ_k (m_{k+1} - m_k)·C_k·(W - C_k)` with C the running and W the total sum of the weights:
    each gap between neighbours counts for the pairs on either side of it. That is O(S), and without cancellation.

    Worked numbers: one interval of length 0.5 with w = 0.6: L = 0.36·0.5/3 = 0.06; edges (0, 1, 2), w = (0.5, 0.5):
    L = 2·0.25·1 + (0.25 + 0.25)/3 = 2/3. Source: Barron et al. 2022 (mip-NeRF 360), eq. 15.

    Args:
        edges: [..., S + 1], sorted, normalised to [0, 1] along the ray (the loss is proportional to their unit).
        weights: [..., S].

    Returns:
        scalar.
    """
    running = weights.cumsum(-1)
    before = running[..., :-1]
    between = 2 * (midpoints(edges).diff(dim=-1) * before * (running[..., -1:] - before)).sum(-1)
    within = (weights.square() * edges.diff(dim=-1)).sum(-1) / 3
    return (between + within).mean()


def _overlapping(edges: Tensor, proposal_edges: Tensor) -> tuple[Tensor, Tensor]:
    """[..., S] each: the first of the proposal's intervals that overlaps interval i, and the first one after it."""
    edges, proposal_edges = edges.contiguous(), proposal_edges.contiguous()
    last = proposal_edges.shape[-1] - 1
    below = torch.searchsorted(proposal_edges, edges)  # how many of the proposal's edges are smaller
    # an edge in common ends one interval before the other begins; a second search would say so at twice the time
    common = proposal_edges.gather(-1, below.clamp(max=last)) == edges
    first = (below + common)[..., :-1].sub_(1).clamp_(0, last)
    return first, below[..., 1:].clamp(max=last)

"""From rays to colours: the networks of a radiance field and the way their samples are placed."""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from sinelr_lightning.errors import UserError
from sinelr_lightning.layers import LinearFactory
from sinelr_lightning.models import DensityField, NeRF
from sinelr_lightning.rendering import (
    Rendered,
    edges_after,
    edges_around,
    interlevel_loss,
    merge,
    midpoints,
    render_rays,
    sample_pdf,
    stratified,
)

__all__ = ["RayColours", "RayRenderer", "Rays", "Sampling"]

Sampling = Literal["proposal", "hierarchical"]


class Rays(NamedTuple):
    """Rays in the space of the field.

    Attributes:
        origins, directions: [..., 3], positions are origin + t·direction.
        views: [..., 3], unit vectors that the colour depends on.
        near, far: range of t.
        background: grey value behind everything, or None where the last interval reaches to infinity.
    """

    origins: Tensor
    directions: Tensor
    views: Tensor
    near: float
    far: float
    background: float | None


class RayColours(NamedTuple):
    """What a ray shows, and what its training needs beside the colour.

    Attributes:
        colour: [..., 3].
        depth: [...], in units of t.
        first: [...], the weight of the first interval; near one on every ray, a wall stands before the cameras.
        beyond: [...], the weight of what lies behind all samples; near one on every ray, the scene is empty.
        coarse_colour: [..., 3] of the coarse field (hierarchical), else None.
        interlevel: loss that lets the proposal bound the weights (proposal), else None.
    """

    colour: Tensor
    depth: Tensor
    first: Tensor
    beyond: Tensor
    coarse_colour: Tensor | None
    interlevel: Tensor | None


class RayRenderer(nn.Module):
    """Renders rays with a radiance field.

    `hierarchical` is Mildenhall et al. 2020, §5.2: a coarse field of the same size is rendered at even samples, the
    fine one at those and at more where the coarse one saw something. `proposal` is the idea of Barron et al. 2022: a
    small density field finds where to look, and the radiance field is asked at few samples only.

    Args:
        linear: makes the hidden layers of all networks.
        sampling: "proposal" or "hierarchical".
        coarse_samples: even samples a ray, at the proposal or the coarse field.
        fine_samples: samples a ray drawn from what those saw.
        proposal_width: width of the proposal's two layers.
        field: further arguments of `NeRF` (depth, width, skips).
    """

    def __init__(
        self,
        linear: LinearFactory,
        sampling: Sampling,
        coarse_samples: int,
        fine_samples: int,
        proposal_width: int = 64,
        **field: Any,
    ) -> None:
        super().__init__()
        if sampling not in ("proposal", "hierarchical"):
            raise UserError(f"sampling must be proposal or hierarchical, got {sampling!r}")
        # Two even samples would leave the hierarchical way no interval to draw the fine ones in.
        if min(coarse_samples, fine_samples) < 3:
            raise UserError(f"a ray needs at least 3 samples a pass, got {coarse_samples} and {fine_samples}")
        self.coarse_samples, self.fine_samples = coarse_samples, fine_samples
        self.field = NeRF(linear, **field)
        self.coarse = NeRF(linear, **field) if sampling == "hierarchical" else None
        self.proposal = DensityField(linear, width=proposal_width) if sampling == "proposal" else None

    def forward(self, rays: Rays, generator: torch.Generator | None = None) -> RayColours:
        """Render rays; the samples are jittered if a generator is given, else in the middle of their bins."""
        even = stratified(rays.near, rays.far, self.coarse_samples, rays.origins, generator)
        if self.proposal is not None:
            return self._by_proposal(self.proposal, rays, even, generator)
        assert self.coarse is not None
        coarse = _render(self.coarse, rays, edges_after(even, rays.far), even)
        drawn = sample_pdf(midpoints(even), coarse.weights[..., 1:-1], self.fine_samples, generator)
        samples = merge(even, drawn)
        fine = _render(self.field, rays, edges_after(samples, rays.far), samples)
        return _colours(fine, rays, coarse.colour, None)

    def _by_proposal(
        self, proposal: DensityField, rays: Rays, even: Tensor, generator: torch.Generator | None
    ) -> RayColours:
        wide = edges_around(even, rays.near, rays.far)

        def density_alone(positions: Tensor, views: Tensor) -> tuple[Tensor, Tensor]:
            return proposal(positions), torch.zeros((), device=positions.device).expand(positions.shape)

        proposed = _render(density_alone, rays, wide)
        drawn = sample_pdf(wide, proposed.weights, self.fine_samples, generator, padding=0.01 / self.coarse_samples)
        edges = edges_around(drawn, rays.near, rays.far)
        fine = _render(self.field, rays, edges)
        loss = interlevel_loss(edges, fine.weights, wide, proposed.weights) if torch.is_grad_enabled() else None
        return _colours(fine, rays, None, loss)


def _colours(fine: Rendered, rays: Rays, coarse_colour: Tensor | None, interlevel: Tensor | None) -> RayColours:
    beyond = fine.weights[..., -1] if rays.background is None else 1 - fine.opacity
    return RayColours(fine.colour, fine.depth, fine.weights[..., 0], beyond, coarse_colour, interlevel)


def _render(field: Any, rays: Rays, edges: Tensor, positions: Tensor | None = None) -> Rendered:
    return render_rays(
        lambda points, views: field(points, views[..., None, :]),
        rays.origins,
        rays.directions,
        edges,
        rays.views,
        rays.background,
        positions=positions,
        infinite_end=rays.background is None,
    )

import math

import pytest
import torch

from sinelr_lightning.rendering import (
    composite,
    distortion_loss,
    edges_after,
    edges_around,
    interlevel_loss,
    merge,
    midpoints,
    render_rays,
    sample_pdf,
    stratified,
    volume_weights,
)

RED, GREEN = [1.0, 0, 0], [0.0, 1, 0]


def constant_field(density, colour):
    """A fog of one density and colour everywhere."""

    def field(positions, view_directions):
        return positions.new_full(positions.shape[:-1], density), positions.new_tensor(colour).expand_as(positions)

    return field


def test_worked_weights():
    weights, transmittance = volume_weights(torch.tensor([0.5, 2]), torch.ones(2))
    torch.testing.assert_close(weights, torch.tensor([0.393469, 0.524446]), rtol=0, atol=1e-6)
    torch.testing.assert_close(transmittance, torch.tensor([1, 0.606531]), rtol=0, atol=1e-6)
    torch.testing.assert_close(weights.sum(), torch.tensor(1 - math.exp(-2.5)))


@pytest.mark.parametrize("samples", [1, 7, 64])
def test_fog_of_constant_density_over_a_length(samples):
    lengths = torch.rand(3, samples, dtype=torch.float64)
    lengths = 2 * lengths / lengths.sum(-1, keepdim=True)
    weights, _ = volume_weights(torch.full_like(lengths, 0.7), lengths)
    torch.testing.assert_close(weights.sum(-1), torch.full((3,), 1 - math.exp(-1.4)).double())


def test_nothing_is_seen_behind_an_opaque_wall():
    weights, transmittance = volume_weights(torch.tensor([0.5, 1e12, 3.0]), torch.ones(3))
    torch.testing.assert_close(weights, torch.tensor([1 - math.exp(-0.5), math.exp(-0.5), 0]))
    torch.testing.assert_close(transmittance, torch.tensor([1, math.exp(-0.5), 0]))


def test_weights_have_the_right_gradient():
    density = torch.rand(2, 6, dtype=torch.float64, requires_grad=True)
    lengths = torch.rand(2, 6, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: volume_weights(x, lengths), density)


def test_worked_composite():
    weights, t = torch.tensor([0.25, 0.5]), torch.tensor([2.0, 4])
    rendered = composite(weights, torch.tensor([RED, GREEN]), t, background=1.0)
    torch.testing.assert_close(rendered.colour, torch.tensor([0.5, 0.75, 0.25]))
    torch.testing.assert_close(rendered.depth, torch.tensor(10 / 3))
    torch.testing.assert_close(rendered.opacity, torch.tensor(0.75))
    black = composite(weights, torch.tensor([RED, GREEN]), t)
    torch.testing.assert_close(black.colour, torch.tensor([0.25, 0.5, 0]))
    blue = composite(weights, torch.tensor([RED, GREEN]), t, background=torch.tensor([0.0, 0, 1]))
    torch.testing.assert_close(blue.colour, torch.tensor([0.25, 0.5, 0.25]))


def test_an_empty_ray_shows_the_background_at_the_end_of_the_ray():
    weights = torch.zeros(3, requires_grad=True)
    rendered = composite(weights, torch.rand(3, 3), torch.tensor([1.0, 2, 3]), background=1.0)
    assert rendered.colour.tolist() == [1.0, 1.0, 1.0] and rendered.opacity == 0
    torch.testing.assert_close(rendered.depth, torch.tensor(3.0))
    (rendered.depth + rendered.colour.sum()).backward()
    assert weights.grad.isfinite().all()


def test_worked_render_of_a_fog_along_a_long_direction():
    direction = torch.tensor([0.0, 0, -2])
    for samples in (1, 5, 40):
        edges = torch.linspace(0, 1, samples + 1)
        rendered = render_rays(constant_field(0.5, [1, 0.5, 0]), torch.zeros(3), direction, edges)
        torch.testing.assert_close(rendered.opacity, torch.tensor(0.632121))
        torch.testing.assert_close(rendered.colour, 0.632121 * torch.tensor([1, 0.5, 0]))


def test_two_slabs():
    """Red of density 1 in z from -1 to -2, green and opaque from -3 on, nothing between."""

    def field(positions, view_directions):
        z = positions[..., 2]
        red, green = (z < -1) & (z > -2), z < -3
        colour = torch.stack([red, green, torch.zeros_like(red)], dim=-1).to(positions)
        return red.to(positions) + 1e6 * green.to(positions), colour

    edges = torch.linspace(0, 4, 401, dtype=torch.float64).expand(2, 401)
    directions = torch.tensor([[0.0, 0, -1], [0.3, 0.4, -1]], dtype=torch.float64)
    rendered = render_rays(field, torch.zeros(2, 3, dtype=torch.float64), directions, edges)
    for i, length in enumerate([1.0, 1.25**0.5]):  # the oblique ray runs 1.118 in the red slab
        seen = 1 - math.exp(-length)
        torch.testing.assert_close(rendered.colour[i], torch.tensor([seen, 1 - seen, 0]).double())
        # mean depth in the red slab: 1 + 1/length - e^-length/(1 - e^-length), by integration over t
        in_red = 1 + 1 / length - math.exp(-length) / seen
        torch.testing.assert_close(rendered.depth[i].item(), seen * in_red + (1 - seen) * 3.005, rtol=0, atol=1e-4)


def test_the_field_gets_unit_view_directions_once_a_ray():
    seen = {}

    def field(positions, view_directions):
        seen.update(positions=positions, view=view_directions)
        return torch.ones(positions.shape[:-1]), torch.ones_like(positions)

    directions = torch.tensor([[0.0, 3, -4], [0, 0, -2]])
    edges = torch.tensor([[0.0, 1, 2]]).expand(2, 3)
    render_rays(field, torch.zeros(2, 3), directions, edges)
    torch.testing.assert_close(seen["view"], torch.tensor([[0, 0.6, -0.8], [0, 0, -1]]))
    torch.testing.assert_close(seen["positions"][0], torch.tensor([[0, 1.5, -2], [0, 4.5, -6]]))
    render_rays(field, torch.zeros(2, 3), directions, edges, directions, positions=edges[..., :-1])
    assert torch.equal(seen["view"], directions)
    assert torch.equal(seen["positions"][0, 0], torch.zeros(3))


def test_infinite_end_makes_a_wall_of_the_last_interval_alone():
    edges = torch.tensor([0.0, 1, 2])
    ray = torch.zeros(3), torch.tensor([0.0, 0, -1])
    finite = render_rays(constant_field(0.1, RED), *ray, edges)
    walled = render_rays(constant_field(0.1, RED), *ray, edges, infinite_end=True)
    torch.testing.assert_close(finite.opacity, torch.tensor(1 - math.exp(-0.2)))
    torch.testing.assert_close(walled.weights, torch.tensor([1 - math.exp(-0.1), math.exp(-0.1)]))
    empty = render_rays(constant_field(0.0, RED), *ray, edges, infinite_end=True)
    torch.testing.assert_close(empty.weights, torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize("leading", [(), (4,), (2, 3), (0,)])
def test_leading_shapes(leading):
    edges = torch.rand(*leading, 9).sort(-1).values
    rendered = render_rays(
        constant_field(1.0, RED), torch.zeros(*leading, 3), torch.ones(*leading, 3), edges, background=1.0
    )
    assert rendered.colour.shape == (*leading, 3)
    assert rendered.depth.shape == rendered.opacity.shape == leading
    assert rendered.weights.shape == (*leading, 8)


def test_worked_interlevel_loss():
    edges, weights = torch.tensor([0.0, 1, 2]), torch.tensor([0.2, 0.8], requires_grad=True)
    proposal = torch.tensor([0.1, 0.3], requires_grad=True)
    loss = interlevel_loss(edges, weights, torch.tensor([0.0, 1.5, 2]), proposal)
    torch.testing.assert_close(loss, torch.tensor(0.25))
    loss.backward()
    # d/dŵ = -2·excess/w of each bounded interval: the first proposal interval bounds both, the second one
    torch.testing.assert_close(proposal.grad, torch.tensor([-2 * 0.1 / 0.2 - 2 * 0.4 / 0.8, -2 * 0.4 / 0.8]))
    assert weights.grad is None


def test_a_proposal_equal_to_the_main_weights_or_coarser_costs_nothing():
    edges = torch.rand(50, 33, dtype=torch.float64).sort(-1).values
    weights = torch.rand(50, 32, dtype=torch.float64)
    coarse = weights.unflatten(-1, (8, 4)).sum(-1)
    assert interlevel_loss(edges, weights, edges, weights) < 1e-20
    assert interlevel_loss(edges, weights, edges[:, ::4], coarse) < 1e-20
    assert interlevel_loss(edges, weights, edges, 0.99 * weights) > 1e-4  # only its own interval bounds each
    assert interlevel_loss(edges, weights, edges[:, ::4], 0.2 * coarse) > 1e-3


def test_interlevel_loss_against_loops():
    edges, proposal_edges = torch.rand(6, 9).sort(-1).values, torch.rand(6, 13).sort(-1).values
    proposal_edges[:, 5] = edges[:, 3]  # one edge in common; the others differ, also at the ends
    proposal_edges = proposal_edges.sort(-1).values
    weights, proposal = torch.rand(6, 8), 0.2 * torch.rand(6, 12)
    expected = 0.0
    for r in range(6):
        for i in range(8):
            bound = sum(
                proposal[r, j]
                for j in range(12)
                if proposal_edges[r, j] < edges[r, i + 1] and proposal_edges[r, j + 1] > edges[r, i]
            )
            expected += max(0, weights[r, i] - bound) ** 2 / weights[r, i] / 6
    torch.testing.assert_close(interlevel_loss(edges, weights, proposal_edges, proposal), expected, rtol=1e-4, atol=0)


def test_worked_distortion_loss():
    one = distortion_loss(torch.tensor([1.0, 1.5]), torch.tensor([0.6]))
    torch.testing.assert_close(one, torch.tensor(0.06))
    two = distortion_loss(torch.tensor([0.0, 1, 2]), torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(two, torch.tensor(2 / 3))


def test_distortion_loss_against_all_pairs():
    edges = torch.rand(5, 13, dtype=torch.float64).sort(-1).values
    weights = torch.rand(5, 12, dtype=torch.float64, requires_grad=True)
    middles = midpoints(edges)
    pairs = (middles[:, :, None] - middles[:, None, :]).abs() * weights[:, :, None] * weights[:, None, :]
    expected = (pairs.sum((-1, -2)) + (weights**2 * edges.diff()).sum(-1) / 3).mean()
    torch.testing.assert_close(distortion_loss(edges, weights), expected)
    assert torch.autograd.gradcheck(lambda w: distortion_loss(edges, w), weights)


def ball(positions, view_directions):
    """An opaque red ball of radius 1 at the origin, its density rising over a thin skin."""
    density = 200 * ((1 - positions.norm(dim=-1)) / 0.02).clamp(0, 1)
    return density, positions.new_tensor(RED).expand_as(positions)


def rays_at_the_ball():
    x = torch.linspace(-0.8, 0.8, 64)
    origins = torch.stack([x, torch.zeros(64), torch.full((64,), 4.0)], dim=-1)
    return origins, torch.tensor([0.0, 0, -1]).expand(64, 3), 4 - (1 - x * x).sqrt()


@pytest.mark.parametrize("source", [None, 0], ids=["midpoints", "jittered"])
def test_hierarchical_sampling_finds_the_surface(source):
    origins, directions, truth = rays_at_the_ball()
    random = None if source is None else torch.Generator().manual_seed(source)
    t = stratified(2.0, 6.0, 32, origins, random)
    coarse = render_rays(ball, origins, directions, edges_after(t, 6.0), positions=t)
    new = sample_pdf(midpoints(t), coarse.weights[..., 1:-1], 64, random)
    t = merge(t, new)
    assert t.shape == (64, 96)
    fine = render_rays(ball, origins, directions, edges_after(t, 6.0), positions=t)
    assert (fine.depth - truth).abs().mean() < 0.04 < (coarse.depth - truth).abs().mean()
    torch.testing.assert_close(fine.colour[:, 0], torch.ones(64), rtol=0, atol=1e-3)


@pytest.mark.parametrize("source", [None, 0], ids=["midpoints", "jittered"])
def test_proposal_sampling_finds_the_surface(source):
    origins, directions, truth = rays_at_the_ball()
    random = None if source is None else torch.Generator().manual_seed(source)
    edges = edges_around(stratified(2.0, 6.0, 32, origins, random), 2.0, 6.0)
    first = render_rays(ball, origins, directions, edges)
    new = edges_around(sample_pdf(edges, first.weights, 32, random, padding=1e-3), 2.0, 6.0)
    final = render_rays(ball, origins, directions, new)
    assert (final.depth - truth).abs().mean() < 0.04 < (first.depth - truth).abs().mean()


def test_half_precision_networks_are_composited_in_the_precision_of_the_positions():
    def field(positions, view_directions):
        shape = positions.shape[:-1]
        return torch.full(shape, 0.5, dtype=torch.bfloat16), torch.ones(*shape, 3, dtype=torch.bfloat16)

    edges = torch.linspace(0, 1, 301)
    with torch.autocast("cpu", torch.bfloat16):
        rendered = render_rays(field, torch.zeros(3), torch.tensor([0.0, 0, -2]), edges, background=1.0)
    assert {value.dtype for value in rendered} == {torch.float32}
    torch.testing.assert_close(rendered.opacity, torch.tensor(1 - math.exp(-1)))

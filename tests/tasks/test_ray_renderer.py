import pytest
import torch
from torch.nn.functional import mse_loss, normalize

from sinelr_lightning.layers import SineLowRank
from sinelr_lightning.tasks.ray_renderer import RayRenderer, Rays


def rendered(sampling):
    renderer = RayRenderer(SineLowRank(2), sampling, 16, 8, depth=3, width=32, skips=(1,))
    directions = normalize(torch.randn(32, 3), dim=-1)
    rays = Rays(-2 * directions, directions, directions, 0.5, 4.0, 1.0)
    return renderer, renderer(rays, torch.Generator().manual_seed(1)), torch.rand(32, 3)


def reached(renderer, loss):
    """Names of the networks that get a gradient of the loss."""
    renderer.zero_grad()
    loss.backward(retain_graph=True)
    return {
        name
        for name, network in renderer.named_children()
        if any(p.grad is not None and p.grad.any() for p in network.parameters())
    }


def test_the_colour_teaches_the_field_and_the_bound_the_proposal():
    renderer, out, truth = rendered("proposal")
    assert out.coarse_colour is None
    assert reached(renderer, mse_loss(out.colour, truth)) == {"field"}
    assert reached(renderer, out.interlevel) == {"proposal"}


def test_each_field_of_the_hierarchy_learns_from_its_own_colour():
    renderer, out, truth = rendered("hierarchical")
    assert out.interlevel is None
    assert reached(renderer, mse_loss(out.colour, truth)) == {"field"}
    assert reached(renderer, mse_loss(out.coarse_colour, truth)) == {"coarse"}


@pytest.mark.parametrize("sampling", ["proposal", "hierarchical"])
def test_what_is_not_stopped_shows_the_background(sampling):
    renderer, out, _ = rendered(sampling)
    with torch.no_grad():
        renderer.field.density.weight.zero_()
        renderer.field.density.bias.fill_(-100)
        empty = renderer(Rays(*(torch.randn(4, 3) for _ in range(3)), 0.5, 4.0, 1.0))
    torch.testing.assert_close(empty.colour, torch.ones(4, 3))
    torch.testing.assert_close(empty.beyond, torch.ones(4))
    assert empty.interlevel is None and (out.beyond < 1).all()

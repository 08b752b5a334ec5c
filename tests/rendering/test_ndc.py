import pytest
import torch

from sinelr_lightning.rendering import ndc_depth_to_depth, ndc_rays


def test_worked_ray():
    origin, direction = ndc_rays(torch.zeros(3), torch.tensor([0.5, 0, -1]), 2.0, 2.0, height=4, width=4)
    assert origin.tolist() == [0.5, 0.0, -1.0]
    assert direction.tolist() == [0.0, 0.0, 2.0]


def test_worked_depth():
    origin, direction = torch.tensor([0, 0, 0.5]), torch.tensor([0.2, 0, -1])
    depth = ndc_depth_to_depth(torch.tensor([0.0, 0.5, 0.9]), origin[None], direction[None])
    torch.testing.assert_close(depth, torch.tensor([1.5, 2.5, 10.5]))


@pytest.mark.parametrize("near", [1.0, 1.7])
def test_a_point_on_the_ray_is_projected_onto_the_ndc_ray(near):
    """The projection itself, written as the frustum's matrix, is the oracle."""
    height, width, fx, fy = 30, 40, 50.0, 44.0
    origins = 0.3 * torch.randn(200, 3, dtype=torch.float64)
    directions = torch.cat([0.4 * torch.randn(200, 2), -torch.rand(200, 1) - 0.5], dim=-1).double()
    t_ndc = torch.rand(200, dtype=torch.float64) * 0.95
    t = ndc_depth_to_depth(t_ndc, origins, directions, near)
    x, y, z = (origins + t[:, None] * directions).unbind(-1)
    projected = torch.stack([-fx / (width / 2) * x / z, -fy / (height / 2) * y / z, 1 + 2 * near / z], dim=-1)
    o, d = ndc_rays(origins, directions, fx, fy, height, width, near)
    torch.testing.assert_close(o + t_ndc[:, None] * d, projected)


def test_infinity_stays_finite_and_far():
    depth = ndc_depth_to_depth(torch.ones(1), torch.zeros(1, 3), torch.tensor([[0.0, 0, -1]]))
    assert depth.isfinite().all() and depth > 1e6


def test_samples_dimension_and_focal_tensors():
    origins, directions = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    t = torch.rand(2, 5, 7)
    assert ndc_depth_to_depth(t, origins[..., None, :], directions[..., None, :]).shape == (2, 5, 7)
    focal = torch.full((2, 5), 3.0)
    many = ndc_rays(origins, directions, focal, focal, 4, 4)
    one = ndc_rays(origins, directions, 3.0, 3.0, 4, 4)
    torch.testing.assert_close(many, one)

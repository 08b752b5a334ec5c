import pytest
import torch

from sinelr_lightning.rendering import distort, image_rays, pixel_rays, undistort

IDENTITY = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 4]])


def test_worked_ray():
    origin, direction = pixel_rays(IDENTITY, torch.tensor([2.0, 2, 2, 2]), torch.tensor([3, 0]))
    assert direction.tolist() == [0.75, 0.75, -1.0]
    assert (origin + 4 * direction).tolist() == [3.0, 3.0, 0.0]


def test_directions_are_turned_by_the_camera():
    # the camera looks along world +x: its backward axis is -x, its up axis z, so its right axis is -y
    camera = torch.tensor([[0.0, 0, -1, 5], [-1, 0, 0, 6], [0, 1, 0, 7]])
    origin, direction = pixel_rays(camera, torch.tensor([2.0, 4, 2, 2]), torch.tensor([3, 0]))
    assert origin.tolist() == [5.0, 6.0, 7.0]
    assert direction.tolist() == [1.0, -0.75, 0.375]


def test_image_rays_run_row_by_row():
    origins, directions = image_rays(IDENTITY, torch.tensor([2.0, 2, 2, 1]), height=2, width=4)
    assert origins.shape == directions.shape == (2, 4, 3)
    assert directions[0, 0].tolist() == [-0.75, 0.25, -1.0]
    assert directions[1, 3].tolist() == [0.75, -0.25, -1.0]


@pytest.mark.parametrize("leading", [(), (5,), (2, 3), (0,)])
def test_leading_shapes_and_broadcasting(leading):
    cameras = torch.randn(*leading, 3, 4, dtype=torch.float64)
    intrinsics = torch.rand(*leading, 4, dtype=torch.float64) + 1
    pixels = torch.randint(0, 9, (*leading, 2))
    lens = 0.01 * torch.randn(4, dtype=torch.float64)
    origins, directions = pixel_rays(cameras, intrinsics, pixels, lens)
    assert origins.shape == directions.shape == (*leading, 3)
    assert directions.dtype == torch.float64


def test_worked_distortion():
    lens = torch.tensor([0.1, 0, 0.01, 0], dtype=torch.float64)
    ideal = torch.tensor([0.5, 0.5], dtype=torch.float64)
    bent = torch.tensor([0.53, 0.535], dtype=torch.float64)
    torch.testing.assert_close(distort(ideal, lens), bent, rtol=0, atol=1e-12)
    torch.testing.assert_close(undistort(bent, lens), ideal, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "lens",
    [[0.2, 0.05, 0.01, -0.02], [-0.25, 0.08, 0.003, 0.002], [0, 0, 0.01, 0.01], [0, 0, 0, 0]],
    ids=["pincushion", "barrel", "tangential", "none"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_distort_undoes_undistort(lens, dtype):
    line = torch.linspace(-0.7, 0.7, 21, dtype=dtype)
    plane = torch.cartesian_prod(line, line)
    coefficients = torch.tensor(lens, dtype=dtype)
    ideal = undistort(plane, coefficients)
    assert (distort(ideal, coefficients) - plane).abs().max() < (1e-6 if dtype == torch.float32 else 1e-12)


def test_second_radial_and_second_tangential_terms():
    ideal = torch.tensor([0.5, 1.0], dtype=torch.float64)  # ρ = 1.25
    by_k2 = distort(ideal, torch.tensor([0, 0.1, 0, 0], dtype=torch.float64))
    by_p2 = distort(ideal, torch.tensor([0, 0, 0, 0.1], dtype=torch.float64))
    torch.testing.assert_close(by_k2, ideal * 1.15625)
    torch.testing.assert_close(by_p2, torch.tensor([0.5 + 0.175, 1.0 + 0.1], dtype=torch.float64))


def test_image_rays_with_a_lens_project_back_to_their_pixel():
    intrinsics = torch.tensor([30.0, 32, 21, 14], dtype=torch.float64)
    lens = torch.tensor([-0.2, 0.05, 0.004, -0.003], dtype=torch.float64)
    _, directions = image_rays(IDENTITY.double(), intrinsics, 28, 40, lens)
    ideal = directions[..., :2] * torch.tensor([1.0, -1], dtype=torch.float64)
    pixels = distort(ideal, lens) * intrinsics[:2] + intrinsics[2:]
    torch.testing.assert_close(pixels[5, 7], torch.tensor([7.5, 5.5], dtype=torch.float64), rtol=0, atol=1e-9)


def test_a_point_beyond_the_fold_stays_finite():
    far_out = torch.tensor([3.0, 3.0])
    assert undistort(far_out, torch.tensor([-0.5, 0, 0, 0])).isfinite().all()

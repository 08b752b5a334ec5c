import math

import pytest
import torch

from sinelr_lightning.errors import UserError
from sinelr_lightning.rendering import look_at, orbit_path, spiral_path

Y, Z = torch.tensor([0.0, 1, 0]), torch.tensor([0.0, 0, 1])


def assert_proper(path):
    rotations = path[:, :, :3]
    identity = torch.eye(3, dtype=path.dtype).expand_as(rotations)
    torch.testing.assert_close(rotations.mT @ rotations, identity, rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.linalg.det(rotations), torch.ones(len(path), dtype=path.dtype))


def assert_look_at(path, target):
    towards = torch.nn.functional.normalize(target - path[:, :, 3], dim=-1)
    torch.testing.assert_close(-path[:, :, 2], towards, rtol=0, atol=1e-5)


def forward_facing(count=40):
    """Cameras in a plate of 2 × 1 × 0.2 about the origin that look along -z, tilted a little."""
    offsets = (torch.rand(count, 3) - 0.5) * torch.tensor([2, 1, 0.2])
    return look_at(offsets, offsets - Z + 0.02 * torch.randn(count, 3), Y)


def ring(radius, height, up=Z, centre=None, start=0.0, end=2 * math.pi, count=12):
    """Cameras on (a part of) a circle, with level x axes, that look at its centre `height` below them."""
    first = torch.linalg.cross(up, up.roll(1) + 0.3)
    first = first / first.norm()
    angle = torch.linspace(start, end, count + 1)[:-1, None]
    centre = torch.zeros(3) if centre is None else centre
    around = angle.cos() * first + angle.sin() * torch.linalg.cross(up, first)
    positions = centre + height * up + radius * around
    return look_at(positions, centre, up)


def test_worked_look_at():
    camera = look_at(torch.tensor([0.0, 0, 4]), torch.zeros(3), Y)
    assert camera.tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 4]]


def test_spiral_frames_look_at_the_worked_focus():
    cameras = torch.stack([look_at(p, p - Z, Y) for p in torch.tensor([[-1.0, 0, 0], [1, 0, 0]])])
    path = spiral_path(cameras, near=1.0, far=10.0, frames=30)
    assert path.shape == (30, 3, 4)
    assert_proper(path)
    assert_look_at(path, torch.tensor([0, 0, -3.4156]))


def test_spiral_radii_are_the_90th_percentile_of_the_offsets():
    x = torch.linspace(-1, 1, 21)  # |x| sorted: 0, 0.1, 0.1, …, 1, 1; index 0.9·20 is 0.9
    positions = torch.stack([x, 0.5 * x, torch.zeros(21)], dim=-1)
    path = spiral_path(look_at(positions, positions - Z, Y), 1.0, 5.0, frames=80)[:, :, 3]
    radius = torch.quantile(x.abs(), 0.9)
    torch.testing.assert_close(radius, torch.tensor(0.9))
    torch.testing.assert_close(path[0], torch.tensor([0.9, 0, 0]), rtol=0, atol=1e-6)
    torch.testing.assert_close(path[10], torch.tensor([0, -0.45, 0]), rtol=0, atol=1e-6)  # a quarter turn
    torch.testing.assert_close(path[:, :2].abs().amax(0), torch.tensor([0.9, 0.45]))


def test_spiral_goes_along_the_axis_at_half_the_rate():
    positions = torch.tensor([[0.0, 0, 1], [0, 0, -1], [0, 0, 1], [0, 0, -1]])
    path = spiral_path(look_at(positions, positions - Z, Y), 1.0, 5.0, frames=8)[:, :, 3]
    expected = -torch.sin(torch.arange(8) / 8 * 2 * math.pi)  # two turns, one swing
    torch.testing.assert_close(path[:, 2], expected, rtol=0, atol=1e-6)


def test_spiral_of_turned_cameras_is_the_turned_spiral():
    cameras = forward_facing()
    turn = torch.linalg.qr(torch.randn(3, 3)).Q
    turn = turn * torch.linalg.det(turn)
    moved = turn @ cameras + torch.tensor([[0, 0, 0, 3.0], [0, 0, 0, -2], [0, 0, 0, 7]])
    expected = turn @ spiral_path(cameras, 1.0, math.inf, 20)
    expected[:, :, 3] += torch.tensor([3.0, -2, 7])
    torch.testing.assert_close(spiral_path(moved, 1.0, math.inf, 20), expected, rtol=0, atol=1e-5)


def test_worked_orbit():
    positions = torch.tensor([[2.0, 0, 1], [-2, 0, 1], [0, 4, 2], [0, -4, 2]])
    cameras = look_at(positions, torch.zeros(3), Z)
    path = orbit_path(cameras, frames=16)
    assert path.shape == (16, 3, 4) and path.dtype == torch.float32
    assert_proper(path)
    assert_look_at(path, torch.zeros(3))
    torch.testing.assert_close(path[:, :2, 3].norm(dim=-1), torch.full((16,), 3.0))
    torch.testing.assert_close(path[:, 2, 3], torch.full((16,), 1.5))
    torch.testing.assert_close(path[0, :, 3], torch.tensor([3, 0, 1.5]), rtol=0, atol=1e-5)
    torch.testing.assert_close(path[4, :, 3], torch.tensor([0, 3, 1.5]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("end", [0.8, math.pi, 2 * math.pi], ids=["eighth", "half", "whole"])
def test_orbit_recovers_axis_and_centre_from_part_of_a_circle(end):
    up = torch.tensor([0.6, 0, 0.8])
    centre = torch.tensor([3.0, -1, 2])
    path = orbit_path(ring(2.0, 1.5, up, centre, end=end), frames=24)
    assert_proper(path)
    assert_look_at(path, centre)
    offsets = path[:, :, 3] - centre
    torch.testing.assert_close(offsets @ up, torch.full((24,), 1.5), rtol=0, atol=0.02)
    torch.testing.assert_close(offsets.norm(dim=-1), torch.full((24,), 2.5), rtol=0, atol=1e-4)
    assert (path[:, :, 1] @ up > 0).all()


@pytest.mark.parametrize(
    "make",
    [lambda frames: spiral_path(forward_facing(), 1.0, 8.0, frames), lambda f: orbit_path(ring(2.0, 1.0), f)],
    ids=["spiral", "orbit"],
)
def test_paths_close_evenly(make):
    torch.manual_seed(1)
    path = make(60)
    torch.manual_seed(1)
    finer = make(120)
    torch.testing.assert_close(path, finer[::2], rtol=0, atol=1e-5)
    steps = (path.roll(-1, dims=0) - path)[:, :, 3].norm(dim=-1)
    assert steps[-1] < 1.2 * max(steps[0], steps[-2]) and steps[-1] > 0


def test_an_orbit_refuses_cameras_that_do_not_look_inward():
    positions = torch.rand(5, 3)
    with pytest.raises(UserError, match="parallel"):
        orbit_path(look_at(positions, positions - Z, Y))
    outward = ring(2.0, 0.0)
    outward[:, :, [0, 2]] *= -1
    with pytest.raises(UserError, match="outward"):
        orbit_path(outward)

from math import cos, pi, sin, sqrt

import numpy as np
import pytest
import torch

from sinelr_lightning.datamodules.poses import (
    average_pose,
    hold_out,
    inward,
    looks_one_way,
    recentre,
    scale_intrinsics,
)
from sinelr_lightning.errors import UserError

AHEAD = np.eye(3)  # looks along -z
TURNED = np.array([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]])  # columns right (0,0,-1), up (0,1,0), backward (1,0,0)


def pose(rotation, position):
    return np.column_stack([rotation, position])


def yaw(degrees):
    a = degrees * pi / 180
    return pose([[cos(a), 0, sin(a)], [0, 1, 0], [-sin(a), 0, cos(a)]], [0, 0, 0])


def test_average_of_two_cameras_at_right_angles():
    h = 1 / sqrt(2)
    average = average_pose(np.stack([pose(AHEAD, [0, 2, 0]), pose(TURNED, [2, 0, 4])]))
    np.testing.assert_allclose(average, [[h, 0, h, 1], [0, 1, 0, 1], [-h, 0, h, 2]], atol=1e-12)


def test_recentred_row_of_cameras():
    moved = recentre(np.stack([pose(AHEAD, [x, 7, -3]) for x in (0, 4, 8)]))
    np.testing.assert_allclose(moved, [pose(AHEAD, [x, 0, 0]) for x in (-4, 0, 4)], atol=1e-12)


def test_recentred_turned_cameras_move_along_their_own_right():
    """Their right is -z of the world: the one at z = 0 stands to the left of the one at z = -4."""
    moved = recentre(np.stack([pose(TURNED, [5, 0, z]) for z in (0, -4)]))
    np.testing.assert_allclose(moved, [pose(AHEAD, [-2, 0, 0]), pose(AHEAD, [2, 0, 0])], atol=1e-12)


def test_opposite_cameras_have_no_average():
    with pytest.raises(UserError, match="no average pose"):
        average_pose(np.stack([yaw(0), yaw(180)]))


def test_inward_puts_the_subject_at_the_origin_and_up_along_z():
    """Both look at (1, 1, 1), from 4 along x and 2 along z."""
    poses, scale = inward(np.stack([pose(TURNED, [5, 1, 1]), pose(AHEAD, [1, 1, 3])]))
    assert scale == pytest.approx(0.25)
    # y → z, z → -y: right (0,0,-1) → (0,1,0), up → (0,0,1), backward (1,0,0) stays
    np.testing.assert_allclose(poses[0], [[0, 0, 1, 1], [1, 0, 0, 0], [0, 1, 0, 0]], atol=1e-12)
    np.testing.assert_allclose(poses[1], [[1, 0, 0, 0], [0, 0, -1, -0.5], [0, 1, 0, 0]], atol=1e-12)


def test_inward_turns_a_scene_that_stands_on_its_head():
    head = np.diag([1.0, -1, -1])
    poses, _ = inward(np.stack([pose(r, p) for r, p in ((head, [0, 0, -1]), (head @ TURNED, [2, 0, 0]))]))
    assert poses[:, 2, 1].min() > 0


def test_inward_straightens_a_tilted_scene():
    """Up leans by 60° from z towards x; the turn about y that rights it leaves right angles and the y axis alone."""
    up, side = np.array([sqrt(3) / 2, 0, 0.5]), np.array([0.0, 1, 0])
    across = np.array([0.5, 0, -sqrt(3) / 2])  # side × up, which becomes y × z = x
    first = pose(np.stack([side, up, across], axis=1), 2 * across)
    second = pose(np.stack([-across, up, side], axis=1), 2 * side)
    poses, _ = inward(np.stack([first, second]))
    np.testing.assert_allclose(poses[0], [[0, 0, 1, 1], [1, 0, 0, 0], [0, 1, 0, 0]], atol=1e-12)
    np.testing.assert_allclose(poses[1], [[-1, 0, 0, 0], [0, 0, 1, 1], [0, 1, 0, 0]], atol=1e-12)


def test_inward_needs_several_places():
    with pytest.raises(UserError, match="one point"):
        inward(np.stack([yaw(0), yaw(90), yaw(200)]))


@pytest.mark.parametrize(("angles", "expected"), [((-44, 44), True), ((-46, 46), False), ((0, 180), False)])
def test_looks_one_way_within_45_degrees_of_the_mean(angles, expected):
    poses = np.stack([yaw(a) for a in angles])
    assert looks_one_way(poses) is expected
    assert looks_one_way(torch.from_numpy(poses).float()) is expected


def test_scaled_intrinsics():
    scaled = scale_intrinsics(np.array([[3260.0, 3200, 2016, 1500]]), np.array([[3024.0, 4032]]), 378, 504, "file")
    np.testing.assert_allclose(scaled, [[407.5, 400, 252, 187.5]])


def test_sizes_that_shrinking_has_rounded_are_taken():
    intrinsics = scale_intrinsics(np.array([[400.0, 400, 200, 150]]), np.array([[300, 400]]), 38, 50, "poses")
    np.testing.assert_allclose(intrinsics, [[50, 400 * 38 / 300, 25, 19]])


def test_another_aspect_ratio_is_refused():
    sizes = np.array([[3024.0, 4032]])
    scale_intrinsics(np.ones((1, 4)), sizes, 378, 507, "file")  # 0.6 % off: rounding
    with pytest.raises(UserError, match="file: is for images of 4032 × 3024 pixels, but the images have 504 × 504"):
        scale_intrinsics(np.ones((1, 4)), sizes, 504, 504, "file")


def test_hold_out():
    train, held = hold_out(20, 8)
    assert held == [0, 8, 16]
    assert len(train) == 17
    assert sorted(train + held) == list(range(20))
    assert hold_out(2, 8) == ([1], [0])


@pytest.mark.parametrize(("count", "hold", "message"), [(20, 1, "hold: 1"), (20, 0, "hold: 0"), (1, 8, "views: 1")])
def test_hold_out_with_an_empty_set(count, hold, message):
    with pytest.raises(UserError, match=message):
        hold_out(count, hold)

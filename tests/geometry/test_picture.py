import numpy as np
import pytest
import trimesh
from PIL import Image

from sinelr_lightning.geometry import picture as picture_module
from sinelr_lightning.geometry.picture import PAPER, contact_sheet, save_picture, shade

BARE = {"ground": False, "supersample": 1}


def boxes(*bounds):
    """Boxes from one corner to the other as one mesh."""
    return trimesh.util.concatenate([trimesh.creation.box(bounds=b) for b in bounds])


def corner_piece():
    """An L: tall at x < 1, a foot to x = 2, and a spike to +y at the top. Every axis and end is its own."""
    return boxes([(0, 0, 0), (1, 0.5, 3)], [(1, 0, 0), (2, 0.5, 1)], [(0, 0.5, 2.6), (0.4, 1.6, 3)])


def mask(picture):
    return (picture != PAPER).any(2)


@pytest.mark.parametrize(("width", "height"), [(300, 240), (200, 260)])
def test_a_sphere_fills_nine_tenths_of_the_shorter_side(width, height):
    ball = trimesh.creation.icosphere(subdivisions=5, radius=7.0)
    seen = mask(shade(ball, width, height, **BARE))
    # a frame that touches the sphere at tangent t' sees it as a disc of that tangent: t'/t = 0.9
    assert seen.sum() == pytest.approx(np.pi * (0.45 * min(width, height)) ** 2, rel=0.01)
    rows, columns = np.nonzero(seen)
    np.testing.assert_allclose([columns.mean() + 0.5, rows.mean() + 0.5], [width / 2, height / 2], atol=0.5)


def test_perspective_is_that_of_a_pinhole():
    """Two equal squares, the second half a unit behind the first: their sides are as their distances."""
    front, back = (boxes([(x, y, 0), (x + 0.2, y + 1e-3, 0.2)]) for x, y in ((0.0, 0.0), (0.8, 0.5)))
    seen = mask(shade(front + back, 900, 500, 0, 0, **BARE))
    near, far = seen[:, :450].sum(0).max(), seen[:, 450:].sum(0).max()
    reach = np.flatnonzero(seen.any(0))
    assert reach[0] == pytest.approx(45, abs=2) and reach[-1] == pytest.approx(855, abs=2)
    # the nearest camera whose frame of half width t' = 0.9·0.24·1.8 holds x from 0 (y = 0) to 1 (y = 0.5)
    tangent = 0.9 * 0.24 * 1.8
    distance = (1 - 0.5 * tangent) / (2 * tangent)  # to the front square
    assert near / far == pytest.approx((distance + 0.5) / distance, rel=0.02)


def test_up_right_and_near_are_where_they_should_be():
    piece = corner_piece()
    front = mask(shade(piece, 120, 120, 0, 0, **BARE))
    left, right = front[:, :60].sum(1), front[:, 60:].sum(1)
    assert left[20] > 20 and right[20] == 0  # tall on the left
    assert left[100] > 20 and right[100] > 20  # the foot on the right
    side = mask(shade(piece, 120, 120, 90, 0, **BARE))  # from +x: +y to the right
    assert side[15, 75] and not side[100, 75] and side[100, 40]


@pytest.mark.parametrize("azimuth", [-130, 0, 35])
def test_a_mirrored_shape_gives_the_mirrored_outline(azimuth):
    piece, mirrored = corner_piece(), corner_piece()
    mirrored.apply_scale([-1, 1, 1])
    seen, other = (mask(shade(m, 160, 120, a, 25, **BARE)) for m, a in ((piece, azimuth), (mirrored, -azimuth)))
    assert (seen != other[:, ::-1]).mean() < 2e-3
    assert (seen != other).mean() > 0.05


def test_up_y_is_up_z_turned():
    piece, turned = corner_piece(), corner_piece()
    turned.vertices = turned.vertices[:, [0, 2, 1]] * (1, 1, -1)
    one, other = shade(piece, 80, 60), shade(turned, 80, 60, up="y")
    assert np.abs(one.astype(int) - other).mean() < 0.05
    assert np.abs(one.astype(int) - shade(turned, 80, 60)).mean() > 5


def test_place_and_unit_do_not_matter():
    piece, moved = corner_piece(), corner_piece()
    moved.apply_scale(0.01)
    moved.apply_translation([1e6, -3e6, 2e6])
    one, other = shade(piece, 100, 75).astype(int), shade(moved, 100, 75).astype(int)
    assert np.abs(one - other).mean() < 0.1
    assert (np.abs(one - other).max(2) > 8).mean() < 5e-3


def test_sharp_edges_stay_sharp_and_round_ones_round():
    cube = shade(trimesh.creation.box(), 200, 150, 35, 25, ground=False).astype(float)
    left, right = cube[80:100, 70:80, 0], cube[80:100, 120:130, 0]
    assert left.std() < 3 and right.std() < 3  # each face in one tone
    assert abs(left.mean() - right.mean()) > 20
    ball = shade(trimesh.creation.icosphere(subdivisions=1), 200, 150, ground=False, colour=(128, 128, 128))
    inside = ball[50:75, 80:120, 0].astype(int)  # a facet spans some 30 pixels, and would be one tone
    assert np.ptp(inside) > 20
    assert np.abs(np.diff(inside, axis=1)).max() <= 8


def test_both_sides_are_lit():
    piece, inverted = corner_piece(), corner_piece()
    inverted.invert()
    np.testing.assert_allclose(shade(piece, 80, 60).astype(int), shade(inverted, 80, 60), atol=2)
    sheet = trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [1, 0, 1], [0, 0, 1]], [[0, 1, 2], [0, 2, 3]], process=False)
    for azimuth in (20, 200):
        picture = shade(sheet, 80, 60, azimuth, 10, **BARE)
        assert picture[mask(picture)].mean() > 60


def test_the_foot_of_a_wall_sees_half_the_sky():
    """The key light comes from the left, the wall stands to the right: what it takes is the sky's light alone."""
    tray = boxes([(0, 0, 0), (4, 4, 0.2)], [(2.4, 0, 0.2), (2.8, 4, 2)])
    row = shade(tray, 200, 200, 0, 90, ground=False)[100].astype(int).sum(1)
    open_floor, foot, top = row[40], row[111], row[125]
    assert 0.85 < foot / open_floor < 0.97
    assert top == pytest.approx(open_floor, rel=0.03)


def test_only_samples_that_cannot_meet_the_mesh_are_skipped(monkeypatch):
    sheet = trimesh.Trimesh([[0, 0, 0], [1, 0, 0.3], [1, 0, 1], [0.2, 0, 1]], [[0, 1, 2], [0, 2, 3]], process=False)
    for mesh in (sheet, corner_piece()):
        quick = shade(mesh, 60, 50, **BARE)
        with monkeypatch.context() as patch:
            patch.setattr(picture_module, "_covered", lambda vertices, faces, view, shape: np.ones(shape, bool))
            assert (shade(mesh, 60, 50, **BARE) == quick).all()


def test_shadow_lies_below_and_leaves_the_border_alone():
    piece = corner_piece()
    bare, grounded = (shade(piece, 160, 120, ground=g).astype(int) for g in (False, True))
    shadow = (bare - grounded)[mask(bare.astype(np.uint8)) == 0]
    assert shadow.min() >= 0 and shadow.max() > 30
    border = np.concatenate([grounded[0], grounded[-1], grounded[:, 0], grounded[:, -1]])
    assert (border == PAPER).all()
    assert (grounded[:30, -40:] == PAPER).all()  # nothing above the horizon of the shadow
    for mesh, elevation in ((piece, -30), (boxes([(0, 0, 0), (4, 40, 1)]), -8)):  # from below there is no ground
        below = [shade(mesh, 80, 60, 0, elevation, ground=g) for g in (False, True)]
        assert (below[0] == below[1]).all()


def test_colours_are_the_given_ones():
    picture = shade(trimesh.creation.icosphere(), 60, 60, colour=(40, 90, 200), background=(10, 20, 30), ground=False)
    assert (picture[0, 0] == (10, 20, 30)).all()
    r, g, b = picture[30, 30].astype(int)
    assert b > g > r


def test_what_has_no_surface_gives_the_background():
    nothing = trimesh.Trimesh(np.zeros((0, 3)), np.zeros((0, 3), int), process=False)
    needle = trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [2, 0, 0]], [[0, 1, 2]], process=False)
    for mesh in (nothing, needle):
        picture = shade(mesh, 16, 12)
        assert picture.shape == (12, 16, 3) and picture.dtype == np.uint8
        assert (picture == PAPER).all()


@pytest.mark.filterwarnings("error")
def test_broken_and_unused_vertices_are_left_out():
    piece = corner_piece()
    vertices = np.vstack([piece.vertices, [[np.nan, 0, 0], [np.inf, 0, 0], [1e9, 0, 0]]])
    faces = np.vstack([piece.faces, [0, 1, len(vertices) - 3], [0, 1, len(vertices) - 2], [3, 3, 3]])
    broken = trimesh.Trimesh(vertices, faces, process=False)
    assert (shade(broken, 80, 60) == shade(piece, 80, 60)).all()


@pytest.mark.parametrize("elevation", [-90, 0, 90])
def test_every_elevation_has_a_camera(elevation):
    plane = trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [1, 2, 0]], [[0, 1, 2]], process=False)
    seen = mask(shade(plane, 60, 60, 0, elevation, **BARE)).mean()
    assert seen < 0.05 if elevation == 0 else 0.1 < seen < 0.4  # edge-on it is a line at most


def test_contact_sheet_holds_pictures_and_labels():
    red, green, blue = (np.full((40, 60, 3), c, np.uint8) for c in ((255, 0, 0), (0, 255, 0), (0, 0, 255)))
    sheet = contact_sheet(
        [red, green, blue], ["one", "a label far too long for its picture, so it shrinks", "three"], 2
    )
    assert sheet.dtype == np.uint8 and sheet.shape[1:] == (120, 3)
    strip = sheet.shape[0] // 2 - 40
    assert (sheet[:40, :60] == red).all() and (sheet[:40, 60:] == green).all()
    assert (sheet[40 + strip : 80 + strip, :60] == blue).all()
    for top, left in ((40, 0), (40, 60), (80 + strip, 0)):
        assert (sheet[top : top + strip, left : left + 60].min(2) < 100).any()
    assert (sheet[40 + strip :, 60:] == PAPER).all()


@pytest.mark.parametrize(("count", "labels", "columns"), [(0, [], 1), (2, ["one"], 1), (1, ["one"], 0)])
def test_contact_sheet_refuses_what_does_not_add_up(count, labels, columns):
    with pytest.raises(ValueError, match="labels"):
        contact_sheet([np.zeros((4, 4, 3), np.uint8)] * count, labels, columns)


def test_picture_is_saved_whole(tmp_path):
    picture = np.random.default_rng(0).integers(0, 255, (5, 7, 3), np.uint8)
    path = save_picture(tmp_path / "folder" / "a.png", picture)
    with Image.open(path) as image:
        assert (np.asarray(image) == picture).all()
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]

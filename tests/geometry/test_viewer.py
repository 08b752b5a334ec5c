import base64
import io
import re

import numpy as np
import pytest
import trimesh

from sinelr_lightning.errors import UserError
from sinelr_lightning.geometry import viewer
from sinelr_lightning.geometry.viewer import save_html


def shown(page):
    """The scene inside a page."""
    data = base64.b64decode(re.search(r'base64_data="([^"]+)"', page)[1])
    return trimesh.load_scene(io.BytesIO(data), file_type="glb", process=False)


def far_box():
    box = trimesh.creation.box(bounds=[(0, 0, 0), (1, 2, 4)])
    box.apply_translation([1e6, 2e6, -3e6])
    return box


def test_page_stands_alone_and_has_its_title(tmp_path):
    path = save_html(trimesh.creation.icosphere(), tmp_path / "new" / "a.html", 'a <b> & "c"')
    page = path.read_text(encoding="utf-8")
    assert [p.name for p in path.parent.iterdir()] == ["a.html"]
    assert re.findall("<title>(.*?)</title>", page) == ["a &lt;b&gt; &amp; &quot;c&quot;"]
    tags = re.findall(r"<(?:script|link|img|iframe)\b[^>]*>", page)
    assert tags and not any(re.search(r"\b(?:src|href)\s*=\s*[\"']?(?:https?:)?//", tag) for tag in tags)
    assert not re.search(r"(?:fetch|importScripts|import)\([\"']https?:", page)
    assert 500_000 < path.stat().st_size < 1_500_000


@pytest.mark.parametrize("up", ["y", "z"])
def test_shape_is_centred_upright_and_inside_the_picture(tmp_path, up):
    scene = shown(save_html(far_box(), tmp_path / "a.html", "box", up=up).read_text(encoding="utf-8"))
    mesh = scene.to_geometry()
    size = np.array([1, 4, 2]) if up == "z" else np.array([1, 2, 4])
    np.testing.assert_allclose(mesh.extents, 2 * size / np.linalg.norm(size), rtol=1e-5)
    np.testing.assert_allclose(mesh.bounds.sum(0), 0, atol=1e-5)
    camera = viewer._scene(far_box(), up)
    seen = trimesh.transform_points(mesh.vertices, np.linalg.inv(camera.camera_transform))
    assert (seen[:, 2] < 0).all()  # in front
    slope = np.abs(seen[:, :2]) / -seen[:, 2:] / np.tan(np.radians(camera.camera.fov / 2))
    assert 0.5 < slope.max() < 1
    assert camera.camera_transform[1, 1] > 0.9  # the head upright


def test_z_up_is_turned_not_mirrored():
    piece = trimesh.creation.box()
    for up in ("y", "z"):
        assert viewer._scene(piece, up).to_geometry().volume > 0


def test_corners_are_split_where_sharp_and_shared_where_round():
    box = viewer._scene(far_box(), "z").to_geometry()
    assert len(box.vertices) == 24
    ball = viewer._scene(trimesh.creation.icosphere(subdivisions=2), "z").to_geometry()
    assert len(ball.vertices) == 162
    np.testing.assert_allclose(np.abs((ball.vertex_normals * ball.vertices).sum(1)), 1, atol=1e-2)


def test_normals_are_in_the_page(tmp_path):
    page = save_html(trimesh.creation.icosphere(), tmp_path / "a.html", "ball").read_text(encoding="utf-8")
    data = base64.b64decode(re.search(r'base64_data="([^"]+)"', page)[1])
    assert b'"NORMAL"' in data


def test_large_meshes_are_simplified(tmp_path, monkeypatch):
    monkeypatch.setattr(viewer, "_MOST_FACES", 500)
    ball = trimesh.creation.icosphere(subdivisions=4)
    mesh = shown(save_html(ball, tmp_path / "a.html", "ball").read_text(encoding="utf-8")).to_geometry()
    assert 400 <= len(mesh.faces) <= 500
    assert len(ball.faces) == 5120


def test_nothing_to_show_is_said(tmp_path):
    nothing = trimesh.Trimesh(np.zeros((0, 3)), np.zeros((0, 3), int), process=False)
    with pytest.raises(UserError, match=r"a\.html: a mesh without faces"):
        save_html(nothing, tmp_path / "a.html", "nothing")
    assert not (tmp_path / "a.html").exists()

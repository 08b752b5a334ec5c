"""A mesh to turn in the browser: one page that needs neither network nor server."""

import html
import math
import os
import re
from pathlib import Path
from typing import Literal

import numpy as np
import trimesh
from trimesh.viewer import scene_to_html
from trimesh.visual import TextureVisuals
from trimesh.visual.material import PBRMaterial

from sinelr_lightning.errors import UserError
from sinelr_lightning.files import user_file

__all__ = ["save_html"]

_MOST_FACES = 200_000  # some 9 MB of page; beyond it browsers turn slowly
_CLAY, _PAPER = (0.46, 0.385, 0.325, 1.0), "f0efec"
_HALF_ANGLE, _AZIMUTH, _ELEVATION = 15.0, 35.0, 20.0  # degrees: of view, around the shape, above it


def save_html(mesh: trimesh.Trimesh, path: str | os.PathLike[str], title: str, up: Literal["y", "z"] = "z") -> Path:
    """Write a page that shows the mesh: drag to turn, scroll to zoom. It opens from disk, without network.

    The page holds three.js (by trimesh) and the mesh, centred and scaled to one size; above 200,000 faces it is
    simplified to that many. Shading is smooth within patches that edges of more than 50° part from the rest; both
    sides of faces are seen.

    Args:
        mesh: in any unit, anywhere.
        path: of the page, written whole or not at all.
        title: the page's.
        up: the mesh's vertical axis.

    Returns:
        The path.

    Raises:
        UserError: the mesh has no faces, or the page cannot be written there.
    """
    if not len(mesh.faces):
        raise UserError(f"{path}: a mesh without faces has nothing to show")
    page = scene_to_html(_scene(mesh, up))
    page = re.sub("<title>.*?</title>", lambda _: f"<title>{html.escape(title)}</title>", page, count=1)
    page = page.replace("</body>", f"<script>{_LIGHTS}</script></body>")
    with user_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return Path(path)


# `scene` and `tracklight`, which travels with the camera, are the page's own.
_LIGHTS = f"""
scene.background = new THREE.Color(0x{_PAPER});
tracklight.intensity = 1.2;
scene.add(new THREE.HemisphereLight(0xffffff, 0x665c55, 0.6));
"""


def _scene(mesh: trimesh.Trimesh, up: str) -> trimesh.Scene:
    """The shape in the unit ball around 0 with y up, which three.js expects, and a camera that sees all of it."""
    vertices = np.asarray(mesh.vertices, np.float64)
    if up == "z":
        vertices = vertices[:, [0, 2, 1]] * (1, 1, -1)
    corners = vertices[mesh.faces].reshape(-1, 3)
    corners = corners - (corners.min(0) + corners.max(0)) / 2
    corners = corners / (np.linalg.norm(corners, axis=1).max() or 1.0)
    shape = trimesh.Trimesh(corners, np.arange(len(corners)).reshape(-1, 3), process=False)
    shape.merge_vertices()
    if len(shape.faces) > _MOST_FACES:
        shape = shape.simplify_quadric_decimation(face_count=_MOST_FACES)
    shape = trimesh.graph.smooth_shade(shape, angle=math.radians(50), facet_minarea=None)
    material = PBRMaterial(baseColorFactor=_CLAY, metallicFactor=0.0, roughnessFactor=0.85, doubleSided=True)
    shape.visual = TextureVisuals(material=material)
    shape.vertex_normals  # noqa: B018  (the exporter writes those that have been asked for)
    scene = trimesh.Scene(shape)
    scene.camera = trimesh.scene.Camera(fov=(2 * _HALF_ANGLE, 2 * _HALF_ANGLE))
    a, e = math.radians(_AZIMUTH), math.radians(_ELEVATION)
    backward = np.array([math.cos(e) * math.sin(a), math.sin(e), math.cos(e) * math.cos(a)])
    right, distance = np.array([math.cos(a), 0.0, -math.sin(a)]), 1.02 / math.sin(math.radians(_HALF_ANGLE))
    pose = np.eye(4)
    pose[:3] = np.stack([right, np.cross(backward, right), backward, distance * backward], 1)
    scene.camera_transform = pose
    return scene

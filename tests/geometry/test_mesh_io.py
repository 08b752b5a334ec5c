import json
import logging
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
import trimesh

from sinelr_lightning.errors import UserError
from sinelr_lightning.geometry.mesh_formats import vertex_colours
from sinelr_lightning.geometry.mesh_io import READABLE, WRITABLE, CubePlacement, load_mesh, save_mesh

FAR = np.array([1e6, -2e6, 3e6])


def body(offset=(0.0, 0.0, 0.0), colours=False) -> trimesh.Trimesh:
    """An irregular closed body of size 10 with vertices that float32 cannot hold."""
    sphere, rng = trimesh.creation.icosphere(2, 5.0), np.random.default_rng(0)
    vertices = sphere.vertices + rng.normal(0, 0.1, sphere.vertices.shape) + offset
    colour = rng.integers(0, 256, (len(vertices), 4), np.uint8) if colours else None
    return trimesh.Trimesh(vertices, sphere.faces, vertex_colors=colour, process=False)


def glb_of(*parts: tuple[trimesh.Trimesh, np.ndarray]) -> bytes:
    scene = trimesh.Scene()
    for mesh, transform in parts:
        scene.add_geometry(mesh, transform=transform)
    return scene.export(file_type="glb")


def text_of(suffix: str) -> str:
    box = trimesh.creation.box()
    if suffix == ".ply":
        return box.export(file_type="ply", encoding="ascii").decode()
    return str(box.export(file_type=suffix[1:]))


# reading


@pytest.mark.parametrize("suffix", WRITABLE)
@pytest.mark.parametrize("offset", [np.zeros(3), FAR], ids=["near", "far"])
def test_every_format_keeps_where_the_vertices_are(suffix: str, offset: np.ndarray, tmp_path: Path):
    mesh = body(offset)
    assert save_mesh(mesh, tmp_path / f"body{suffix}") == tmp_path / f"body{suffix}"
    read = load_mesh(tmp_path / f"body{suffix}")
    assert type(read) is trimesh.Trimesh and read.vertices.dtype == np.float64
    exact = suffix in (".ply", ".obj", ".off") or (suffix == ".stl" and offset.any())
    np.testing.assert_allclose(read.triangles, mesh.triangles, rtol=0, atol=0 if exact else 1e-6 * 10)
    assert (suffix == ".stl") == (len(read.vertices) == 3 * len(mesh.faces))  # nothing merged, nothing split
    assert suffix == ".stl" or np.array_equal(read.faces, mesh.faces)


def test_stl_is_binary_where_float32_suffices(tmp_path: Path):
    assert save_mesh(body(), tmp_path / "near.stl").stat().st_size == 84 + 50 * 320
    assert save_mesh(body(FAR), tmp_path / "far.stl").read_bytes().startswith(b"solid")


@pytest.mark.parametrize("suffix", [".ply", ".obj", ".glb"])
def test_vertex_colours_are_kept(suffix: str, tmp_path: Path):
    mesh = body(FAR, colours=True)
    read = load_mesh(save_mesh(mesh, tmp_path / f"body{suffix}"))
    stored, kept = vertex_colours(mesh), vertex_colours(read)
    assert stored is not None and kept is not None
    channels = 3 if suffix == ".obj" else 4
    assert np.array_equal(kept[:, :channels], stored[:, :channels])


def test_an_obj_with_seams_normals_and_polygons_keeps_its_vertices(tmp_path: Path):
    ring = [(float(np.cos(a)), float(np.sin(a))) for a in np.linspace(0, 2 * np.pi, 5, endpoint=False)]
    lines = ["# a prism", "mtllib none.mtl", "v 9 9 9  # used by no face"]
    lines += [f"v {x!r} {y!r} {z}" for z in (0, 2) for x, y in ring]
    lines += [f"vt 0.{i} 0.5" for i in range(9)] + ["vn 0 0 1", "vn 1 0 0", "g caps", "usemtl one"]
    lines += ["f 6/1/1 5/2/1 4/3/1 3/4/1 2/5/1", "f 7//2 8//2 9//2 10//2 11//2", "o sides", "usemtl two", "s off"]
    lines += [f"f {2 + i}/{i + 1} {2 + (i + 1) % 5}/7 \\\n {7 + (i + 1) % 5} {i - 5}" for i in range(5)]
    (tmp_path / "prism.obj").write_bytes("\n".join(lines).replace("\n", "\r\n").encode())
    prism = load_mesh(tmp_path / "prism.obj")
    assert prism.vertices.shape == (11, 3) and prism.faces.shape == (2 * 3 + 5 * 2, 3)
    assert prism.is_watertight and prism.volume == pytest.approx(2 * 2.5 * np.sin(2 * np.pi / 5), rel=1e-15)
    assert np.array_equal(prism.vertices[1:6, :2], ring)


@pytest.mark.parametrize("suffix", [".obj", ".off", ".ply"])
def test_quads_become_triangles(suffix: str, tmp_path: Path):
    corners = [(x, y, z) for z in (0, 1) for y in (0, 1) for x in (0, 1)]
    quads = [(0, 2, 3, 1), (4, 5, 7, 6), (0, 1, 5, 4), (2, 6, 7, 3), (0, 4, 6, 2), (1, 3, 7, 5)]
    header = {
        ".obj": "",
        ".off": "OFF\n# a cube\n8 6 12\n",
        ".ply": "ply\nformat ascii 1.0\nelement vertex 8\nproperty double x\nproperty double y\nproperty double z\n"
        "element face 6\nproperty list uchar int vertex_indices\nend_header\n",
    }[suffix]
    v, f, base = ("v ", "f ", 1) if suffix == ".obj" else ("", "4 ", 0)
    rows = [f"{v}{x} {y} {z}" for x, y, z in corners]
    rows += [f + " ".join(str(i + base) for i in quad) for quad in quads]
    (tmp_path / f"cube{suffix}").write_text(header + "\n".join(rows) + "\n")
    cube = load_mesh(tmp_path / f"cube{suffix}")
    assert len(cube.faces) == 12 and cube.volume == pytest.approx(1, rel=1e-15)


def test_a_scene_is_joined_with_its_transforms_in_float64(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    near, far, mirror = np.eye(4), np.eye(4), np.diag([-1.0, 1, 1, 1])
    far[:3, 3], mirror[:3, 3] = FAR + 1 / 3, (20, 0, 0)
    box = trimesh.creation.box()
    (tmp_path / "scene.glb").write_bytes(glb_of((box, near), (box, far), (box, mirror)))
    with caplog.at_level(logging.INFO, "sinelr_lightning"):
        scene = load_mesh(tmp_path / "scene.glb")
    assert "scene.glb: 3 meshes joined into one" in caplog.text
    assert len(scene.vertices) == 24 and np.abs(scene.vertices.max(axis=0) - (FAR + 1 / 3 + 0.5))[[0, 2]].max() < 1e-9
    assert scene.volume == pytest.approx(3)  # the mirrored one is no hole


BINARY = bytes([137, 80, 78, 71, 13, 10, 26, 10, *range(256)]) * 4
FEW = "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nf 1 2 3\n"
FLAT = "v 1 0 0\nv 0 1 0\nv 0 0 1\nv 1 1 -1\nf 1 2 3\nf 2 3 4\nf 1 2 4\nf 1 3 4\n"
STL = str(trimesh.creation.box().export(file_type="stl_ascii"))
LONG = trimesh.Trimesh(
    [(np.inf, 0, 0), *trimesh.creation.box().vertices[1:]], trimesh.creation.box().faces, process=False
)
BAD = {
    "points.obj": ("v 0 0 0\nv 1 0 0\n", "2 points but no faces"),
    "points.ply": (text_of(".ply").replace("face 12", "face 0"), "8 points but no faces"),
    "nan.obj": (text_of(".obj").replace("v 0.50000000", "v nan", 2), "2 of 8 vertices are NaN or infinite"),
    "infinite.off": (text_of(".off").replace("0.5000000000", "inf", 1), "1 of 8 vertices are NaN or infinite"),
    "word.obj": (text_of(".obj").replace(" 0.50000000\n", " 1.#QNAN\n", 1), r"line \d+ is 'v .* 1.#QNAN'"),
    "word.ply": (text_of(".ply").replace("0.50000000", "half", 1), "damaged"),
    "word.stl": ("outer loop\nvertex half".join(STL.rsplit("outer loop\nvertex ", 1)), "damaged"),
    "infinite.glb": (glb_of((LONG, trimesh.transformations.rotation_matrix(1, (1, 2, 3)))), "1 of 8 vertices"),
    "few.obj": (FEW, "fewer than 4 faces"),
    "flat.obj": (FLAT, "flat"),
    "line.obj": (FLAT.replace("v 0 1 0", "v 3 0 0").replace("v 0 0 1", "v 5 0 0").replace("1 1 -1", "2 0 0"), "flat"),
    "spot.obj": ("v 1 2 3\n" * 4 + FLAT[FLAT.index("f") :], "flat"),
    "range.obj": (text_of(".obj") + "f 1 2 99\n", "names vertex 98, counted from 0; there are 8"),
    "zero.obj": (text_of(".obj") + "f 0 1 2\n", "'f 0 1 2'"),
    "before.obj": (text_of(".obj") + "f -9 1 2\n", "'f -9 1 2'"),
    "range.ply": (text_of(".ply").replace("3 1 3 0", "3 1 3 77"), "names vertex 77"),
    "negative.ply": (text_of(".ply").replace("3 1 3 0", "3 1 3 -7"), "names vertex -7"),
    "cut.ply": (text_of(".ply")[:-30], "fewer than 12 of face"),
    "cut.off": (text_of(".off")[:-30], "fewer than 12 faces"),
    "cut.stl": (trimesh.creation.box().export(file_type="stl")[:-20], "damaged, incomplete or wrongly named"),
    "cut.glb": (glb_of((trimesh.creation.box(), np.eye(4)))[:-30], "damaged, incomplete or wrongly named"),
    "apart.gltf": (json.dumps({"asset": {"version": "2.0"}, "buffers": [{"uri": "a.bin"}]}), "a.bin"),
    "empty_scene.gltf": (json.dumps({"asset": {"version": "2.0"}, "scenes": [{}], "scene": 0}), "no faces"),
    "points.xyz": ("0 0 0\n", r"accepted are \.glb \.gltf \.obj"),
    "no_suffix": ("0 0 0\n", r"accepted are \.glb \.gltf \.obj"),
    **{f"binary{suffix}": (BINARY, "no faces|wrongly named") for suffix in READABLE},
    **{f"empty{suffix}": ("", "no faces|wrongly named") for suffix in READABLE},
    **{f"words{suffix}": ("a solid story\nof v and f\n", "no faces|wrongly named") for suffix in READABLE},
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_named_in_one_line(name: str, tmp_path: Path, caplog, recwarn):
    content, message = BAD[name]
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError, match=message) as error:
        load_mesh(tmp_path / name)
    assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)
    assert not caplog.records and not recwarn.list


def test_a_missing_texture_goes_unsaid(tmp_path: Path, caplog, recwarn):
    textured = text_of(".ply").replace("ascii 1.0\n", "ascii 1.0\ncomment TextureFile gone.png\n")
    (tmp_path / "textured.ply").write_text(textured)
    assert load_mesh(tmp_path / "textured.ply").volume == pytest.approx(1)
    assert not caplog.records and not recwarn.list


def test_what_is_no_file_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"gone\.obj does not exist"):
        load_mesh(tmp_path / "gone.obj")
    (tmp_path / "folder.obj").mkdir()
    with pytest.raises(UserError, match=r"folder\.obj is a folder"):
        load_mesh(tmp_path / "folder.obj")


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "part.step").write_text("")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs the package cascadio"):
        load_mesh(tmp_path / "part.step")


# writing


def test_another_suffix_or_place_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"\.glb \.obj \.off \.ply \.stl, not as '\.fbx'"):
        save_mesh(body(), tmp_path / "body.fbx")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        save_mesh(body(), tmp_path / "file" / "body.ply")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = save_mesh(body(), tmp_path / "body.ply")
    before = path.read_bytes()

    def full(self: Path, content: bytes) -> int:
        self.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="No space left on device"):
        save_mesh(body(FAR), path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


VALIDATE = """
const validator = require('gltf-validator'), fs = require('fs');
validator.validateBytes(new Uint8Array(fs.readFileSync(process.argv[1])))
  .then(report => console.log(JSON.stringify(report.issues)));
"""


def test_a_glb_passes_the_gltf_validator(tmp_path: Path):
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("node and npm are not installed")
    command = ["npm", "install", "--no-audit", "--no-fund", "--fetch-retries=0", "--prefix", "."]
    command += ["--cache", str(tmp_path / "cache"), "gltf-validator"]
    try:
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=30)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"npm cannot install gltf-validator: {error}")
    glb = save_mesh(body(FAR, colours=True), tmp_path / "body.glb")
    run = ["node", "-e", VALIDATE, str(glb)]
    issues = json.loads(subprocess.run(run, cwd=tmp_path, check=True, capture_output=True, timeout=30).stdout)
    assert issues["numErrors"] == issues["numWarnings"] == 0, issues["messages"]
    content = glb.read_bytes()
    nodes = json.loads(content[20 : 20 + struct.unpack("<I", content[12:16])[0]])["nodes"]
    moved = [node["matrix"][12:15] for node in nodes if "matrix" in node]
    np.testing.assert_allclose(moved, [body(FAR).bounds.mean(axis=0)], rtol=1e-15)


# the cube


def test_the_longest_side_spans_the_cube_but_its_padding():
    box = trimesh.creation.box((4, 2, 1)).apply_translation((10, 0, 0))
    placement = CubePlacement.of(box, padding=0.2)
    assert placement == CubePlacement((10.0, 0.0, 0.0), 2.5) == CubePlacement.of(box.vertices, padding=0.2)
    np.testing.assert_allclose(placement.to_cube(box.bounds), [[-0.8, -0.4, -0.2], [0.8, 0.4, 0.2]], atol=1e-15)
    lonely = trimesh.Trimesh(np.vstack([box.vertices, [[99, 99, 99]]]), box.faces, process=False)
    assert CubePlacement.of(lonely, padding=0.2) == placement  # no face uses that vertex


def test_there_and_back_far_from_the_origin():
    mesh = body(FAR)
    placement = CubePlacement.of(mesh)
    assert np.abs(placement.to_cube(mesh.vertices)).max() == pytest.approx(0.9, abs=1e-9)
    assert np.abs(placement.from_cube(placement.to_cube(mesh.vertices)) - mesh.vertices).max() < 1e-9
    grid = mesh.vertices.reshape(2, 81, 3)
    assert placement.to_cube(grid).shape == (2, 81, 3) and placement.to_cube(grid[0, 0]).shape == (3,)


def test_a_placement_is_plain_values_in_a_checkpoint():
    placement = CubePlacement.of(body(FAR))
    stored = json.loads(json.dumps(placement.to_dict()))
    assert CubePlacement.from_dict(stored) == placement
    assert type(placement.scale) is float and all(type(c) is float for c in placement.centre)


def test_a_placement_that_cannot_be_is_refused():
    with pytest.raises(UserError, match="padding is 1"):
        CubePlacement.of(body(), padding=1.0)
    with pytest.raises(UserError, match="extent"):
        CubePlacement.of(np.ones((3, 3)))

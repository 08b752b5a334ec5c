"""Time, evaluations and memory of a trained field's surface: coarse to fine against the full grid.

    python benchmarks/mesh_extraction.py RUN_OR_CHECKPOINT [--resolutions 128 256 512 1024] [--full 128 256 512]

Both are scikit-image's marching cubes on the same nodes. Each measurement is made once, in a process of its own: its
memory is the peak beyond what the loaded network and one batch took. The distances are from the vertices of either
surface to the nearest vertex of the other.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import trimesh
from scipy.spatial import KDTree
from skimage.measure import marching_cubes
from timing import Setting, machine, table

from sinelr_lightning.files import atomic_path
from sinelr_lightning.geometry.marching import estimate_memory, extract_surface
from sinelr_lightning.runs import load_task, resolve_checkpoint
from sinelr_lightning.tasks import OccupancyTask

Field = Callable[[np.ndarray], np.ndarray]
BATCH = 65_536


def extract_full(field: Field, resolution: int) -> trimesh.Trimesh:
    """The plain way: all nodes of the grid, one call of marching cubes."""
    nodes = resolution + 1
    values = np.empty(nodes**3, np.float32)
    for start in range(0, len(values), BATCH):
        index = np.unravel_index(np.arange(start, min(start + BATCH, len(values))), (nodes,) * 3)
        values[start : start + BATCH] = field((np.stack(index, axis=-1) * (2 / resolution) - 1).astype(np.float32))
    vertices, faces, *_ = marching_cubes(values.reshape((nodes,) * 3), 0.0, gradient_direction="ascent")
    return trimesh.Trimesh(vertices * (2 / resolution) - 1.0, faces, process=False)


def peak() -> float:
    """GB that this process had at most, so far (on Linux; `ru_maxrss` would begin with that of the parent)."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1e6


def measure(checkpoint: str, way: str, resolution: int, folder: Path) -> None:
    """One measurement, in a process of its own: figures and vertices as files in a folder."""
    task = load_task(resolve_checkpoint(checkpoint))
    if not isinstance(task, OccupancyTask):
        raise SystemExit(f"{checkpoint} is not a run of the occupancy task")
    field = task.field()
    field(np.zeros((BATCH, 3), np.float32))
    before, start = peak(), time.perf_counter()
    if way == "full":
        mesh, evaluations = extract_full(field, resolution), (resolution + 1) ** 3
    else:
        surface = extract_surface(field, resolution, batch=BATCH)
        mesh, evaluations = surface.mesh, surface.evaluations
    figures = {"seconds": time.perf_counter() - start, "memory": peak() - before, "evaluations": evaluations}
    figures |= {"faces": len(mesh.faces), "watertight": bool(mesh.is_watertight)}
    np.save(folder / f"{way}_{resolution}.npy", mesh.vertices)
    (folder / f"{way}_{resolution}.json").write_text(json.dumps(figures))


def run(checkpoint: str, way: str, resolution: int, threads: int, folder: Path) -> dict[str, float]:
    command = [sys.executable, __file__, checkpoint, "--threads", str(threads), "--folder", str(folder)]
    subprocess.run([*command, "--one", way, str(resolution)], check=True)
    return json.loads((folder / f"{way}_{resolution}.json").read_text())


def apart(folder: Path, resolution: int) -> str:
    """Largest and mean distance of the two surfaces' vertices, in cells."""
    one, other = (np.load(folder / f"{way}_{resolution}.npy") for way in ("sparse", "full"))
    distances = np.concatenate([KDTree(one).query(other)[0], KDTree(other).query(one)[0]]) * resolution / 2
    return f"{distances.max():.1e} / {distances.mean():.1e}"


def row(checkpoint: str, resolution: int, full: bool, threads: int, folder: Path) -> list[str]:
    sparse = run(checkpoint, "sparse", resolution, threads, folder)
    whole = run(checkpoint, "full", resolution, threads, folder) if full else None
    nodes = (resolution + 1) ** 3
    cells = [str(resolution), f"{sparse['faces']:,}", "yes" if sparse["watertight"] else "no"]
    cells += [f"{sparse['evaluations']:,} ({nodes / sparse['evaluations']:.0f}×)", f"{sparse['seconds']:.1f}"]
    cells += [f"{whole['seconds']:.1f} ({whole['seconds'] / sparse['seconds']:.1f}×)" if whole else "–"]
    cells += [f"{sparse['memory']:.2f}", f"{estimate_memory(resolution) / 1e9:.2f}"]
    return [*cells, *([f"{whole['memory']:.2f}", apart(folder, resolution)] if whole else ["–", "–"])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a run's folder or a checkpoint of the occupancy task")
    parser.add_argument("--resolutions", type=int, nargs="+", default=[128, 256, 512, 1024])
    parser.add_argument(
        "--full", type=int, nargs="*", default=[128, 256, 512], help="where to take the full grid, too"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "mesh_extraction.md")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.one:
        measure(args.checkpoint, args.one[0], int(args.one[1]), args.folder)
        return
    columns = ["cells along an axis", "faces", "watertight", "evaluations (full/these)", "s", "full grid, s (ratio)"]
    columns += ["GB", "GB, estimated", "full grid, GB", "vertices apart, cells (largest / mean)"]
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            row(args.checkpoint, resolution, resolution in args.full, args.threads, Path(folder))
            for resolution in args.resolutions
        ]
    where, *_ = machine(Setting("cpu", autocast=False, seconds=0)).partition(", fastest")  # of one each
    title = "The surface of a trained field, coarse to fine and by the full grid"
    text = f"{table(title, columns, rows)}\n{where}\n"
    with atomic_path(args.out) as temporary:
        temporary.write_text(text)
    print(text)


if __name__ == "__main__":
    main()

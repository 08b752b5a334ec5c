"""`sinelr mesh`: the surface of an occupancy checkpoint."""

import logging
import math
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sinelr_lightning.errors import UserError

if TYPE_CHECKING:
    import trimesh

    from sinelr_lightning.geometry.marching import Surface
    from sinelr_lightning.tasks.occupancy import OccupancyTask

__all__ = ["mesh"]

log = logging.getLogger(__name__)

GIB = 2**30


def mesh(
    ckpt_path: str = "last",
    out: str = "shape.ply",
    resolution: int = 256,
    level: float = 0.5,
    keep_largest: bool = False,
    simplify: int | None = None,
    picture: bool = True,
    html: bool = False,
    up: Literal["auto", "y", "z"] = "auto",
    device: str = "auto",
) -> None:
    """Extract the surface of an occupancy checkpoint, in the coordinates and units of the shape it was trained on.

    Args:
        ckpt_path: A checkpoint, a run folder, or last or best for the newest run.
        out: File to write: .ply, .obj, .glb, .stl or .off.
        resolution: Cells along each axis of the cube around the shape.
        level: Probability of being inside at which the surface lies.
        keep_largest: Keep the part with the largest area, and the cavities inside of it, alone.
        simplify: Reduce the mesh to about this many faces.
        picture: Write a picture beside the file, with its name and .png.
        html: Write a page beside the file that opens in a browser, with its name and .html.
        up: Vertical axis of picture and page; auto takes that of the input's format, y for OBJ and glTF, else z.
        device: Where to evaluate the network: auto, cpu, cuda, cuda:1 …
    """
    if not 0 < level < 1:
        raise UserError(f"level is a probability between 0 and 1, got {level}")
    if simplify is not None and simplify < 4:
        raise UserError(f"simplify needs at least 4 faces, got {simplify}")
    from sinelr_lightning.geometry.mesh_io import encoder_of, save_mesh

    encoder_of(out)  # told before the work, not after it
    _check_memory(resolution)
    from sinelr_lightning.commands.loading import load
    from sinelr_lightning.geometry.picture import save_picture, shade, usual_up
    from sinelr_lightning.layers import summarize
    from sinelr_lightning.tasks.occupancy import OccupancyTask

    task = load(ckpt_path, OccupancyTask, device)
    assert task.placement is not None  # every checkpoint has it
    began = time.perf_counter()
    surface = _extract(task, resolution, level)
    seconds = time.perf_counter() - began
    shape = _reduced(surface.mesh, keep_largest, simplify)
    shape.vertices = task.placement.from_cube(shape.vertices)
    written = [save_mesh(shape, out)]
    if up == "auto":
        up = usual_up(task.source)
    if picture:
        written.append(save_picture(Path(out).with_suffix(".png"), shade(shape, up=up)))
    if html:
        from sinelr_lightning.geometry.viewer import save_html

        written.append(save_html(shape, Path(out).with_suffix(".html"), Path(out).stem, up))
    size = summarize(task)
    closed = "watertight" if shape.is_watertight else "not watertight"
    sys.stderr.write(
        f"{', '.join(map(str, written))}: {len(shape.vertices):,} vertices, {len(shape.faces):,} faces, {closed}; "
        f"{surface.evaluations:,} of {surface.nodes:,} grid nodes evaluated in {seconds:.1f} s; "
        f"network of {size.parameters:,} parameters, {size.compression:.2%} of dense\n"
    )
    if surface.leaves_cube:
        sys.stderr.write(
            "the surface leaves the cube around the shape, so it is open there: train longer, or with a larger "
            "--data.padding\n"
        )


def _check_memory(resolution: int) -> None:
    """Say how much memory the extraction takes at most, and refuse what this machine does not have.

    Raises:
        UserError: more than its physical memory.
    """
    from sinelr_lightning.geometry.marching import estimate_memory

    needed = estimate_memory(resolution) / GIB
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    if needed > machine:
        raise UserError(
            f"resolution {resolution} may take {needed:.1f} GiB of memory, this machine has {machine:.1f}; take less"
        )
    log.info("resolution %d: about %.1f GiB of memory at most, beside the network's own", resolution, needed)


def _extract(task: "OccupancyTask", resolution: int, level: float) -> "Surface":
    from sinelr_lightning.geometry.marching import NoSurface, extract_surface
    from sinelr_lightning.progress import progress_bar
    from sinelr_lightning.tasks.occupancy import POLISH

    height = math.log(level / (1 - level))  # the field is a logit
    try:
        with progress_bar() as show:
            return extract_surface(
                task.field(), resolution, height, polish=POLISH, progress=lambda stage, done: show(stage, done, 1.0)
            )
    except NoSurface as error:
        raise UserError(_no_surface(error.quantiles, level)) from error


def _no_surface(quantiles: tuple[float, ...], level: float) -> str:
    """Why there is none, in probabilities; `quantiles` are logits."""
    least, low, middle, high, most = (1 / (1 + math.exp(-value)) for value in quantiles)
    spread = (
        f"the probability of being inside lies in [{least:.3g}, {most:.3g}] (1 %, 50 %, 99 %: "
        f"{low:.3g}, {middle:.3g}, {high:.3g})"
    )
    if least < 0.5 < most:
        return f"level {level:g} is outside of the field's range: {spread}"
    if least >= 0.5:
        return f"the network calls the whole cube inside, so there is no surface: {spread}"
    return f"the network calls nothing inside, so there is no surface: {spread}"


def _reduced(surface: "trimesh.Trimesh", keep_largest: bool, simplify: int | None) -> "trimesh.Trimesh":
    """The largest part alone, and with fewer faces, where that is wanted."""
    if keep_largest:
        from sinelr_lightning.geometry.parts import largest_part

        surface = largest_part(surface)
    if simplify is not None and simplify < len(surface.faces):
        surface = surface.simplify_quadric_decimation(face_count=simplify)
    return surface

"""Labelled points of a shape, sampled once and kept in a cache."""

import hashlib
import json
import logging
import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import trimesh

from sinelr_lightning.datamodules.shape import Shape
from sinelr_lightning.errors import first_line
from sinelr_lightning.files import atomic_path

__all__ = ["NEAR_SPREADS", "Samples", "cache_folder", "labelled_grid", "sample"]

log = logging.getLogger(__name__)

NEAR_SPREADS = (0.01, 0.05)  # of the cube's half side: where detail is decided, and its surroundings
VERSION = 2  # raise it when the same parameters shall give other points


class Samples(NamedTuple):
    """Points [N, 3] float32 in the cube and whether each is inside, bool [N]; the first half is uniform."""

    points: np.ndarray
    inside: np.ndarray


def sample(shape: Shape, count: int, seed: int, cache: Path | None) -> Samples:
    """Draw `count` points, half uniform in the cube and half near the surface, and label them.

    A point near the surface is one on it, uniform by area, moved by a normal deviate of 0.01 or 0.05 along each axis
    (half of them each), and kept in the cube. What was drawn is read from the cache the next time.

    Args:
        shape: the solid.
        count: number of points.
        seed: of the generator.
        cache: folder of the cache, None for none.
    """
    parameters = {"count": count, "seed": seed, "spreads": NEAR_SPREADS}

    def draw() -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        uniform = rng.uniform(-1, 1, (count - count // 2, 3))
        # A stream of its own: trimesh makes a generator of the seed, and the same one would draw the same numbers.
        near, _ = trimesh.sample.sample_surface(shape.surface, count // 2, seed=[seed, 1])
        spread = np.where(np.arange(count // 2) % 2, *NEAR_SPREADS)
        near = np.clip(near + rng.normal(size=near.shape) * spread[:, None], -1, 1)
        # Rounded before they are labelled: what is trained on is what was asked.
        points = np.concatenate([uniform, near]).astype(np.float32)
        return {"points": points, "inside": np.packbits(shape.contains(points.astype(np.float64)))}

    stored = _cached(cache, shape, parameters, draw)
    return Samples(stored["points"], np.unpackbits(stored["inside"], count=count).astype(bool))


def labelled_grid(shape: Shape, size: int, cache: Path | None) -> np.ndarray:
    """Whether the centres of a grid of size³ voxels over the cube are inside: bits [size³/8], packed, C order.

    The centre of voxel i of an axis is at (2i + 1)/size − 1. It is read from the cache the next time.
    """

    def draw() -> dict[str, np.ndarray]:
        log.info("labelling %s voxel centres, once", f"{size**3:,}")
        axis = (2 * np.arange(size) + 1) / size - 1
        plane = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
        inside = np.zeros((size, size * size), dtype=bool)
        for i, x in enumerate(axis):
            inside[i] = shape.contains(np.column_stack([np.full(len(plane), x), plane]))
        return {"inside": np.packbits(inside)}

    return _cached(cache, shape, {"grid": size}, draw)["inside"]


def cache_folder() -> Path:
    """Give the folder of our cache: sinelr in $XDG_CACHE_HOME, else in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sinelr"


Arrays = dict[str, np.ndarray]


def _cached(cache: Path | None, shape: Shape, parameters: dict[str, Any], draw: Callable[[], Arrays]) -> Arrays:
    """Read what `draw` gave for this shape and these parameters, or draw and keep it.

    Two runs that begin at once both draw the same and rename whole files: neither sees half of one.
    """
    if cache is None:
        return draw()
    text = json.dumps({"version": VERSION, "shape": shape.fingerprint, **parameters}, sort_keys=True)
    path = cache / "occupancy" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.npz"
    try:
        with np.load(path, allow_pickle=False) as stored:
            return dict(stored)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        log.warning("%s cannot be read (%s); sampling again", path, first_line(error))
    drawn = draw()
    try:
        with atomic_path(path) as temporary:
            np.savez(temporary, **drawn)  # ty: ignore[invalid-argument-type]
    except OSError as error:
        log.warning("samples are not kept: %s cannot be written (%s)", path, error.strerror or error)
    return drawn

"""Parts of a mesh that hang together."""

import numpy as np
import trimesh

from sinelr_lightning.geometry.inside import Solid

__all__ = ["largest_part"]


def largest_part(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    """The part with the largest area that faces outward, together with the cavities inside of it.

    A cavity is a closed part of negative volume, all of it inside the largest part.
    """
    parts = mesh.split(only_watertight=False, repair=False)
    cavities = [part for part in parts if part.is_watertight and part.volume < 0]
    bodies = [part for part in parts if not any(part is cavity for cavity in cavities)]
    largest = max(bodies, key=lambda part: part.area)
    solid = Solid(largest)
    inner = [cavity for cavity in cavities if solid.contains(np.asarray(cavity.vertices[:1], np.float64)).all()]
    kept = [largest, *inner]
    starts = np.cumsum([0, *(len(part.vertices) for part in kept[:-1])])
    faces = [part.faces + start for part, start in zip(kept, starts, strict=True)]
    return trimesh.Trimesh(np.concatenate([part.vertices for part in kept]), np.concatenate(faces), process=False)

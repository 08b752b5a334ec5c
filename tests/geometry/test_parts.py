import numpy as np
import trimesh

from sinelr_lightning.geometry.parts import largest_part


def ball(radius, centre, inward=False):
    made = trimesh.creation.icosphere(3, radius)
    made.apply_translation(centre)
    if inward:
        made.invert()
    return made


def test_the_largest_part_keeps_its_cavity_and_loses_the_others():
    hollow = [ball(1.0, (5, 0, 0)), ball(0.5, (5.2, 0, 0), inward=True)]
    other = [ball(0.8, (0, 0, 0)), ball(0.3, (0, 0, 0), inward=True)]
    part = largest_part(trimesh.util.concatenate([*other, *hollow]))
    assert part.body_count == 2 and np.isclose(part.volume, hollow[0].volume + hollow[1].volume)
    assert part.bounds[0, 0] > 3


def test_an_open_part_is_judged_by_its_area():
    plate = trimesh.creation.box((3, 3, 3))
    open_box = trimesh.Trimesh(plate.vertices + 100, plate.faces[:-2], process=False)
    part = largest_part(trimesh.util.concatenate([ball(1.0, (0, 0, 0)), open_box]))
    assert part.body_count == 1 and np.isclose(part.area, open_box.area)

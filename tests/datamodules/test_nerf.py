import types

import pytest
import torch
from scenes import write_llff

from sinelr_lightning.datamodules import NeRFData
from sinelr_lightning.errors import UserError
from sinelr_lightning.rendering import image_rays


@pytest.fixture
def data(tmp_path):
    data = NeRFData(str(write_llff(tmp_path / "scene")), batch_size=8, epoch_steps=3)
    data.setup("fit")
    return data


def test_an_index_becomes_the_ray_and_colour_of_its_pixel(data):
    # Training views are all but 0 and 8; index 2·192 + 5·16 + 3 is row 5, column 3 of the third of them, view 3.
    batch = data.on_after_batch_transfer(torch.tensor([2 * 192 + 5 * 16 + 3]), 0)
    assert data.scene.train[2] == 3
    origins, directions = image_rays(data.cameras.cam_to_world[3], data.cameras.intrinsics[3], 12, 16)
    torch.testing.assert_close(batch["origins"][0], origins[5, 3])
    torch.testing.assert_close(batch["directions"][0], directions[5, 3])
    torch.testing.assert_close(batch["colours"][0], data.scene.images[3, 5, 3] / 255)


def test_batches_depend_on_the_seed_and_their_number(data):
    first = list(data.train_dataloader())
    again = data.train_dataloader()
    again.load_state_dict({"next": 1})
    assert torch.equal(next(iter(again)), first[1])
    assert not torch.equal(first[0], first[1]) and len(first) == 3
    data.seed += 1
    assert not torch.equal(next(iter(data.train_dataloader())), first[0])


def test_ranks_share_one_batch_and_every_held_out_view(data):
    whole = next(iter(data.train_dataloader()))
    shares, views = [], []
    for rank in (0, 1):
        data.trainer = types.SimpleNamespace(global_rank=rank, world_size=2)
        shares.append(next(iter(data.train_dataloader())))
        views += [batch["number"] for batch in data.val_dataloader()]
    assert torch.equal(torch.stack(shares, 1).flatten(), whole)
    assert sorted(views) == [0, 1]
    data.trainer = None


def test_a_held_out_view_is_whole(data):
    batch = data.on_after_batch_transfer(next(iter(data.test_dataloader())), 0)
    assert batch["name"] == "00.png" and batch["origins"].shape == (12, 16, 3)
    assert torch.equal(batch["colours"], data.scene.images[0] / 255)


def test_protocol(data):
    protocol = data.protocol()
    assert (protocol["train_views"], protocol["test_views"], protocol["format"]) == (7, 2, "llff")


def test_mistakes_are_named(tmp_path):
    with pytest.raises(UserError, match="batch_size"):
        NeRFData(batch_size=0)
    with pytest.raises(UserError, match="nowhere"):
        NeRFData(str(tmp_path / "nowhere")).setup("fit")

import numpy as np
import pytest
import torch
import trimesh

from sinelr_lightning.datamodules import OccupancyData
from sinelr_lightning.errors import UserError


@pytest.fixture
def box(tmp_path):
    trimesh.creation.box((4, 2, 1)).export(tmp_path / "box.ply")
    return str(tmp_path / "box.ply")


def inside_box(points):
    return (points.abs() < torch.tensor([0.9, 0.45, 0.225])).all(-1)


def batches(data):
    data.setup("fit")
    return [data.on_after_batch_transfer(batch, 0) for batch in data.train_dataloader()]


@pytest.mark.parametrize("options", [{"points": 5000}, {"grid": 32}])
def test_training_batches_are_points_with_their_labels(box, options):
    for batch in batches(OccupancyData(box, batch_size=512, epoch_steps=3, **options)):
        assert batch["points"].shape == (512, 3) and batch["points"].dtype == batch["inside"].dtype == torch.float32
        assert (batch["inside"].bool() == inside_box(batch["points"])).all()
        assert 0 < batch["inside"].mean() < 1


def test_grid_points_are_voxel_centres(box):
    (batch,) = batches(OccupancyData(box, grid=16, batch_size=20_000, epoch_steps=1))
    assert sorted(batch["points"].unique().tolist()) == pytest.approx([(2 * i + 1) / 16 - 1 for i in range(16)])


def test_evaluation_points_are_fresh_and_seen_once(box):
    data = OccupancyData(box, points=3000, eval_points=45_001, batch_size=8)
    data.setup("test")
    pieces = {"train": data._sample("train", 3000).points}
    for split, loader in (("val", data.val_dataloader()), ("test", data.test_dataloader())):
        batches = list(loader)
        assert [b["number"] for b in batches] == list(range(6))
        assert [len(b["points"]) for b in batches[:3]] == [10_000, 10_000, 2_501]
        assert [b["near"] for b in batches] == [False] * 3 + [True] * 3
        points = torch.cat([b["points"] for b in batches])
        assert len(points) == 45_001
        assert (torch.cat([b["inside"] for b in batches]) == inside_box(points)).all()
        pieces[split] = points.numpy()
    first = [set(map(tuple, part.tolist())) for part in pieces.values()]
    assert not (first[0] & first[1] or first[0] & first[2] or first[1] & first[2])


def test_two_processes_share_the_pieces_and_the_batch(box, monkeypatch):
    whole = OccupancyData(box, points=1000, eval_points=60_000, batch_size=64, epoch_steps=1)
    whole.setup("fit")
    (drawn,) = whole.train_dataloader()
    shares, numbers = [], []
    for rank in range(2):
        data = OccupancyData(box, points=1000, eval_points=60_000, batch_size=64, epoch_steps=1)
        data.setup("fit")
        monkeypatch.setattr(data, "_ranks", lambda rank=rank: (rank, 2))
        shares += list(data.train_dataloader())
        numbers += [batch["number"] for batch in data.val_dataloader()]
    assert sorted(torch.cat(shares).tolist()) == sorted(drawn.tolist())
    assert sorted(numbers) == list(range(6))


def test_a_volume_takes_the_place_of_the_default_mesh(tmp_path):
    volume = np.zeros((8, 8, 8))
    volume[2:6, 3:5, 3:4] = 1
    np.save(tmp_path / "volume.npy", volume)
    data = OccupancyData(volume=str(tmp_path / "volume.npy"), points=2000, batch_size=256, epoch_steps=1)
    (batch,) = batches(data)
    assert (batch["inside"].bool() == inside_box(batch["points"])).all()
    assert data.protocol()["volume"] == "volume.npy"


def test_the_protocol_says_counts_and_seeds(box):
    said = OccupancyData(box, eval_points=1001).protocol()
    assert said["uniform_points"] == 501 and said["near_points"] == 500 and said["train_points"] == 1_000_000
    assert said["sample_seeds"] == {"train": 0, "val": 1, "test": 2}


@pytest.mark.parametrize(
    ("options", "words"),
    [({"points": 1}, "data.points"), ({"batch_size": 0}, "data.batch_size"), ({"eval_points": 0}, "data.eval_points"),
     ({"grid": 4}, "data.grid"), ({"grid": 4096}, "data.grid"), ({"points": 10**12}, "data.points")],
)  # fmt: skip
def test_bad_options(options, words):
    with pytest.raises(UserError, match=words):
        OccupancyData(**options)

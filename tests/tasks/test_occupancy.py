import logging

import lightning.pytorch as L
import numpy as np
import pytest
import torch
import trimesh
from lightning.pytorch.loggers import TensorBoardLogger
from solids import write_l_shape
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy import ToyData, quiet_trainer

from sinelr_lightning.callbacks.collapse import RestartOnCollapse
from sinelr_lightning.datamodules import OccupancyData
from sinelr_lightning.errors import UserError
from sinelr_lightning.layers import Dense, SineLowRank
from sinelr_lightning.runs import load_task
from sinelr_lightning.tasks import OccupancyTask


def small_task(**options):
    adam = torch.optim.Adam
    small = {"width": 32, "resolution": 32, "optimizer": lambda p: adam(p, lr=1e-2)}
    return OccupancyTask(**{"linear": SineLowRank(2), **small, **options})


def small_data(folder, **options):
    mesh = write_l_shape(folder / "l.obj")
    small = {"points": 20_000, "eval_points": 30_000, "batch_size": 512, "epoch_steps": 200, "cache": False}
    return OccupancyData(str(mesh), **{**small, **options})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("occupancy")
    task, data = small_task(linear=SineLowRank(4), width=64), small_data(folder, batch_size=1024)
    run = quiet_trainer(folder, max_steps=200, logger=TensorBoardLogger(folder, name="", version="board"))
    run.fit(task, data)
    run.save_checkpoint(folder / "run.ckpt")
    return task, data, run, folder


def test_it_learns_the_shape(trained):
    metrics = trained[2].callback_metrics
    assert metrics["val/iou"] > 0.8 and metrics["val/iou_near"] > 0.6
    assert metrics["val/chamfer"] < 0.02 and metrics["val/normal_consistency"] > 0.9 and metrics["val/f_score"] > 0.4


def test_the_score_is_the_iou_over_all_points_of_a_kind(trained):
    task, data, run, _ = trained
    for split, name in ((slice(0, 15_000), "val/iou"), (slice(15_000, None), "val/iou_near")):
        points, truth = data._sample("val", 30_000)
        inside = task.field()(points[split]) > 0
        iou = (inside & truth[split]).sum() / (inside | truth[split]).sum()
        assert run.callback_metrics[name] == pytest.approx(iou, abs=1e-4)  # a point on the border may change sides


def test_the_field_is_the_network(trained):
    task = trained[0]
    points = np.random.default_rng(0).uniform(-1, 1, (500, 3))
    logits = task.network(torch.from_numpy(points).float()).detach()
    np.testing.assert_allclose(task.field()(points), logits, atol=1e-3 * float(logits.abs().max()))
    assert "hidden.0.U" in task.network.state_dict()  # the task's own network is not folded


def test_nothing_inside_on_either_side_is_agreement():
    task = small_task()
    none = {"intersection": 0.0, "union": 0.0, "loss_sum": 1.0, "points": 2.0}
    assert task.combine({0: none}) == {"iou": 1.0, "loss": 0.5}
    half = {"intersection_near": 1.0, "union_near": 4.0, "loss_sum_near": 3.0, "points_near": 2.0}
    assert task.combine({0: none, 1: half, 2: half}) == {"iou": 1.0, "iou_near": 0.25, "loss": 7 / 6}


def test_a_checkpoint_knows_where_the_shape_lies(trained):
    task, data, _, folder = trained
    loaded = load_task(folder / "run.ckpt")
    assert loaded.placement == data.shape.placement and loaded.source == "l.obj"
    points = np.random.default_rng(0).uniform(-1, 1, (100, 3))
    np.testing.assert_array_equal(loaded.field()(points), task.field()(points))


def test_tensorboard_shows_surface_slices_and_figures(trained):
    board = EventAccumulator(str(trained[3] / "board"), size_guidance={"images": 0, "tensors": 0})
    board.Reload()
    tags = board.Tags()
    assert {"val/iou", "val/chamfer", "train/loss"} <= set(tags["scalars"])
    assert {"val/true surface, surface of the network", "val/inside and probability at x = 0, y = 0, z = 0"} <= set(
        tags["images"]
    )
    assert "val/surface_VERTEX" in tags["tensors"]


def test_slices_lie_as_their_title_says(trained):
    # The L has its foot at low x, reaching to high y: above in the slice z = 0, the last of the three.
    task, _, _, _ = trained
    left_up, right_up = task._true_slices[:, 2 * 256 :][64, 30], task._true_slices[:, 2 * 256 :][64, 200]
    assert left_up and not right_up


def test_a_network_without_a_surface_is_told_and_scored_by_its_points(tmp_path, caplog):
    task = small_task()
    with torch.no_grad():
        task.network.head.weight.zero_()
        task.network.head.bias.fill_(-3.0)
    run = quiet_trainer(tmp_path)
    with caplog.at_level(logging.WARNING):
        run.validate(task, small_data(tmp_path), verbose=False)
    assert "no surface" in caplog.text and run.callback_metrics["val/iou"] == 0
    assert run.callback_metrics["val/chamfer"] == float("inf") and run.callback_metrics["val/f_score"] == 0


def test_a_dead_network_is_drawn_anew_once(tmp_path):
    class Kill(L.Callback):
        def on_train_batch_start(self, trainer, module, *_):
            with torch.no_grad():
                module.network.head.weight.zero_()

    run = quiet_trainer(tmp_path, max_steps=8, limit_val_batches=0, callbacks=[Kill(), RestartOnCollapse(every=2)])
    with pytest.raises(UserError, match=r"collapsed again at step 4: .*same answer at every point"):
        run.fit(small_task(optimizer=lambda p: torch.optim.SGD(p, lr=1e-8)), small_data(tmp_path, epoch_steps=8))


def test_a_network_that_is_slow_to_start_is_not_dead():
    task = small_task()
    task._last = torch.tensor([0.1, 0.1 + 1e-5])
    assert task.collapse() is None
    task._last = torch.tensor([0.1, 0.1])
    assert "same answer" in str(task.collapse())
    task._last = torch.tensor([0.1])  # one point says nothing
    assert task.collapse() is None


def write_other(path):
    trimesh.creation.box((3, 2, 1)).export(path)
    return path


def test_a_run_of_another_shape_or_place_is_not_gone_on_with(trained, tmp_path):
    for options in ({"padding": 0.4}, {"mesh": str(write_other(tmp_path / "other.obj"))}):
        data = small_data(tmp_path)
        for name, value in options.items():
            setattr(data, name, value)
        task = small_task(linear=SineLowRank(4), width=64)
        with pytest.raises(UserError, match=r"another shape \(l\.obj\).*start a new run"):
            quiet_trainer(tmp_path, max_steps=300).fit(task, data, ckpt_path=trained[3] / "run.ckpt")


def test_data_of_another_task_is_refused(tmp_path):
    with pytest.raises(UserError, match="OccupancyTask needs OccupancyData as its data, got ToyData"):
        quiet_trainer(tmp_path, max_steps=1).fit(small_task(), ToyData())


def test_it_trains_in_other_precisions(tmp_path):
    for precision in ("64-true", "bf16-mixed"):
        run = quiet_trainer(tmp_path, max_steps=2, precision=precision)
        run.fit(small_task(), small_data(tmp_path, epoch_steps=2))
        assert torch.isfinite(run.callback_metrics["val/loss"])
        assert len(run.predict(small_task(), small_data(tmp_path))) == 4


def test_predictions_are_in_the_coordinates_of_the_input(trained, tmp_path):
    task, data, _, _ = trained
    paths = quiet_trainer(tmp_path).predict(task, data)
    assert len(paths) == 4
    piece = np.load(paths[0])
    assert np.abs(piece["points"] - (1e6, -2e5, 30)).max() < 4 / 0.9 + 1e-6
    assert ((piece["probability"] > 0.5) == piece["inside"]).mean() > 0.95


@pytest.mark.parametrize("activation", ["siren", "wire", "relu", "gelu"])
def test_every_activation_trains(activation, tmp_path):
    frequencies = 4 if activation in ("relu", "gelu") else None
    task = small_task(activation=activation, frequencies=frequencies, linear=Dense(), width=64)
    run = quiet_trainer(tmp_path, max_steps=100)
    run.fit(task, small_data(tmp_path, epoch_steps=100))
    assert run.callback_metrics["val/iou"] > 0.3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"depth": 0}, "depth"),
        ({"sigma": 0.0}, "sigma"),
        ({"resolution": 8}, "resolution"),
        ({"mesh_every": 0}, "mesh"),
        ({"frequencies": -1}, "frequencies"),
        ({"frequencies": 4, "activation": "wire"}, "wire"),
    ],
)
def test_bad_options(options, words):
    with pytest.raises(UserError, match=words):
        OccupancyTask(**options)

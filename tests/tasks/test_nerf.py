import copy
import csv
import logging
import math
from dataclasses import replace
from pathlib import Path

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from scenes import write_llff
from toy import quiet_trainer

from sinelr_lightning.callbacks.collapse import RestartOnCollapse
from sinelr_lightning.datamodules import NeRFData
from sinelr_lightning.errors import UserError
from sinelr_lightning.layers import SineLowRank
from sinelr_lightning.rendering import image_rays
from sinelr_lightning.runs import load_task
from sinelr_lightning.tasks import NeRFTask


def small_task(**options):
    size = {"depth": 2, "width": 32, "skip": 0, "coarse_samples": 8, "fine_samples": 8}
    return NeRFTask(**{"linear": SineLowRank(1), **size, **options})


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return write_llff(tmp_path_factory.mktemp("scene") / "llff")


@pytest.fixture(scope="module", params=["proposal", "hierarchical"])
def trained(request, scene, tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("run")
    optimizer = torch.optim.Adam
    task = small_task(sampling=request.param, optimizer=lambda p: optimizer(p, lr=1e-2))
    data = NeRFData(str(scene), batch_size=128, epoch_steps=150)
    run = quiet_trainer(folder, max_steps=150)
    run.fit(task, data)
    run.save_checkpoint(folder / "run.ckpt")
    return task, data, run, folder


def test_it_learns_the_scene(trained):
    _, data, run, _ = trained
    colours = data.scene.images.float() / 255
    constant = -10 * math.log10(colours.var(dim=(0, 1, 2), unbiased=False).mean())
    assert run.callback_metrics["val/psnr"] > constant + 6  # the best single colour, and 6 dB over it
    assert 0 < run.callback_metrics["val/ssim"] <= 1


def test_the_score_is_the_psnr_of_the_rendered_view(trained):
    task, data, run, _ = trained
    scores = []
    for view in data.scene.val:
        camera = data.cameras.cam_to_world[view], data.cameras.intrinsics[view]
        colour, depth = task.render(*image_rays(*camera, data.cameras.height, data.cameras.width))
        truth = data.scene.images[view].double() / 255
        scores.append(-10 * math.log10((colour.double() - truth).square().mean()))
        assert colour.shape == (12, 16, 3) and depth.shape == (12, 16)
    assert run.callback_metrics["val/psnr"] == pytest.approx(sum(scores) / len(scores), abs=1e-5)


def test_depth_is_that_of_the_plane(trained):
    task, data, _, _ = trained
    rays = image_rays(data.cameras.cam_to_world[4], data.cameras.intrinsics[4], 12, 16)
    scale = 1 / (3.0 * 0.75)  # LLFF: the nearest bound times bd_factor becomes 1
    assert task.render(*rays)[1].median() == pytest.approx(4.0 * scale, rel=0.25)


def test_a_checkpoint_renders_without_data(trained):
    task, data, _, folder = trained
    loaded = load_task(folder / "run.ckpt")
    rays = image_rays(data.cameras.cam_to_world[0], data.cameras.intrinsics[0], 12, 16)
    torch.testing.assert_close(loaded.render(*rays)[0], task.render(*rays)[0])
    assert loaded.cameras.near == data.cameras.near


def test_a_full_memory_halves_the_chunk(trained, monkeypatch):
    task, data, _, _ = trained
    rays = image_rays(data.cameras.cam_to_world[0], data.cameras.intrinsics[0], 12, 16)
    whole, chunk = task.render(*rays), task._render_chunk
    sizes = []

    def limited(origins, directions):
        sizes.append(len(origins))
        if len(origins) > 100:
            raise torch.OutOfMemoryError("no memory")
        return chunk(origins, directions)

    monkeypatch.setattr(task, "_render_chunk", limited)
    monkeypatch.setattr(task, "_chunk", None)
    halved = task.render(*rays)
    torch.testing.assert_close(halved[0], whole[0])
    assert max(s for s in sizes if s <= 100) == 64 and sizes[0] == 192


def test_forward_facing_rays_are_in_ndc_unless_switched_off(trained):
    task, data, _, _ = trained
    origins, directions = image_rays(data.cameras.cam_to_world[4], data.cameras.intrinsics[4], 12, 16)
    rays = task.rays(origins, directions)
    assert (rays.near, rays.far, rays.background) == (0.0, 1.0, None)
    assert torch.allclose(rays.origins[..., 2], torch.tensor(-1.0))  # NDC: the near plane is at z' = -1
    assert torch.allclose(rays.views.norm(dim=-1), torch.tensor(1.0))
    plain = small_task(ndc=False)
    plain.cameras = data.cameras
    assert plain.rays(origins, directions).near == data.cameras.near


@pytest.mark.parametrize(("mean", "reason"), [(-100.0, "passes through"), (1e4, "first interval")])
def test_a_collapsed_run_is_restarted_once(scene, tmp_path, caplog, mean, reason):
    task = small_task(ndc=False)
    task.jitter = False

    def kill():
        with torch.no_grad():
            for head in (task.renderer.field.density, task.renderer.proposal.density):
                head.weight.zero_()
                head.bias.fill_(mean)

    class Kill(L.Callback):
        times = 0

        def on_train_batch_start(self, trainer, *_):
            if trainer.global_step in (0, 4) and self.times < 2:
                self.times += 1
                kill()

    data = NeRFData(str(scene), batch_size=32, epoch_steps=8)
    run = quiet_trainer(tmp_path, max_steps=8, limit_val_batches=0, callbacks=[Kill(), RestartOnCollapse(every=2)])
    with caplog.at_level(logging.WARNING), pytest.raises(UserError, match=f"collapsed again.*{reason}"):
        run.fit(task, data)
    assert run.global_step == 6
    assert "collapsed at step 2" in caplog.text and reason in caplog.text


def test_a_batch_of_background_alone_is_no_collapse():
    task = small_task()
    task.white_background = True
    first, beyond = torch.tensor([0.0, 0.0]), torch.tensor([1.0, 1.0])
    task._last = first, beyond, torch.ones(2, 3)
    assert task.collapse() is None
    task._last = first, beyond, torch.tensor([[1.0, 1, 1], [1, 0.2, 1]])  # the second ray should meet something
    assert "passes through" in str(task.collapse())
    task._last = first, torch.tensor([1.0, 0.5]), torch.tensor([[1.0, 1, 1], [1, 0.2, 1]])
    assert task.collapse() is None
    task.white_background = False
    task._last = first, beyond, torch.zeros(2, 3)
    assert task.collapse() is None


def test_a_trained_task_can_be_copied(trained):
    copy.deepcopy(trained[0]._last)  # nothing of the last step's graph is kept


def test_the_speed_is_logged_whatever_the_length_of_an_epoch(scene, tmp_path):
    logger = CSVLogger(tmp_path)
    run = quiet_trainer(tmp_path, max_steps=12, limit_val_batches=0, log_every_n_steps=4, logger=logger)
    run.fit(small_task(), NeRFData(str(scene), batch_size=8, epoch_steps=6))
    rows = csv.DictReader((Path(logger.log_dir) / "metrics.csv").open())
    speeds = {row["step"]: row["train/rays_per_second"] for row in rows if row.get("train/rays_per_second")}
    assert set(speeds) == {"3", "7", "11"} and min(map(float, speeds.values())) > 0


def test_predictions_of_photographs_of_one_name_are_files_of_their_own(trained, tmp_path):
    task, data, _, _ = trained
    again = NeRFData(data.root)
    again._scene = replace(data.scene, names=[f"{name}/view.png" for name in data.scene.names])
    paths = quiet_trainer(tmp_path).predict(task, again)
    assert [Path(p).name for p in paths] == ["000_view.png", "001_view.png"] and all(Path(p).is_file() for p in paths)


def test_processes_with_unequal_numbers_of_views_ask_for_the_folder_equally_often(trained, tmp_path, monkeypatch):
    task, data, _, _ = trained
    asked, folder = [], L.Trainer.log_dir.fget  # a collective call
    monkeypatch.setattr(L.Trainer, "log_dir", property(lambda self: asked.append(1) or folder(self)))
    counts = []
    for views in (1, 2):
        asked.clear()
        assert len(quiet_trainer(tmp_path, limit_predict_batches=views).predict(task, data)) == views
        counts.append(len(asked))
    assert counts[0] == counts[1]


def test_a_picture_smaller_than_the_window_has_no_ssim(tmp_path):
    data = NeRFData(str(write_llff(tmp_path / "scene", height=9)), batch_size=8, epoch_steps=1)
    run = quiet_trainer(tmp_path, max_steps=1)
    run.fit(small_task(), data)
    assert "val/psnr" in run.callback_metrics and "val/ssim" not in run.callback_metrics


def test_a_restart_draws_other_weights():
    torch.manual_seed(3)
    task = small_task()
    before = task.renderer.field.trunk[0].U.clone()
    task.restart(4)
    drawn = task.renderer.field.trunk[0].U.clone()
    task.restart(4)
    assert not torch.equal(before, drawn) and torch.equal(drawn, task.renderer.field.trunk[0].U)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"skip": 1}, "skip must be the index"),  # of the last layer: nothing comes after it but the heads
        ({"coarse_samples": 2, "sampling": "hierarchical"}, "at least 3 samples"),
        ({"sampling": "uniform"}, "proposal or hierarchical"),
        ({"linear": SineLowRank(40)}, "rank 40 is not below"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises((UserError, ValueError), match=message):
        small_task(**options)

from types import SimpleNamespace

import lightning.pytorch as L
import pytest
import torch
from toy import ToyData, ToyTask

from sinelr_lightning.callbacks import AtomicCheckpointIO, Checkpoint, StopOnNaN
from sinelr_lightning.errors import UserError


def fit(folder, poison_step, guard, **options):
    L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, max_steps=30,
        default_root_dir=folder, callbacks=[guard, Checkpoint()], plugins=[AtomicCheckpointIO()], **options,
    ).fit(ToyTask(poison_step=poison_step), ToyData())  # fmt: skip


def test_a_loss_that_is_nan_stops_the_run_at_its_step(tmp_path):
    with pytest.raises(UserError, match=r"NaN or infinite at step 15.*the last good checkpoint is .*last\.ckpt"):
        fit(tmp_path, 14, StopOnNaN())
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 10
    assert all(tensor.isfinite().all() for tensor in last["state_dict"].values())


def test_without_a_checkpoint_it_says_so(tmp_path):
    with pytest.raises(UserError, match=r"step 1: .*no checkpoint was saved yet"):
        fit(tmp_path, 0, StopOnNaN())


def test_the_first_bad_step_is_named_also_where_the_look_is_rare():
    """With several processes a look is an exchange; one bad rank stops all, at the smallest step of any."""
    other_rank = 3.0
    strategy = SimpleNamespace(reduce=lambda own, reduce_op: torch.minimum(own, torch.tensor(other_rank)))
    trainer = SimpleNamespace(world_size=2, global_step=0, strategy=strategy, checkpoint_callbacks=[])
    guard = StopOnNaN(every=8)
    with pytest.raises(UserError, match="infinite at step 3:"):
        for trainer.global_step in range(1, 9):
            loss = torch.tensor(float("nan") if trainer.global_step >= 5 else 1.0)
            guard.on_train_batch_end(trainer, None, {"loss": loss}, None, 0)
    assert trainer.global_step == 8


def test_every_must_be_a_step():
    with pytest.raises(UserError, match="at least 1"):
        StopOnNaN(every=0)

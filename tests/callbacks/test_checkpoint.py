import errno
import os
import signal

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from toy import ToyData, ToyTask, Trace

from sinelr_lightning.callbacks import AtomicCheckpointIO, Checkpoint
from sinelr_lightning.errors import UserError


def fit(folder, checkpoint, *callbacks, task=None, io=None, **options):
    options = {"max_steps": 30, **options}
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, callbacks=[checkpoint, *callbacks], plugins=[io or AtomicCheckpointIO()], **options,
    )  # fmt: skip
    trainer.fit(task or ToyTask(), ToyData())
    return trainer


class Scripted(ToyTask):
    """Reports the errors that it is told to."""

    errors = (0.3, 0.5, 0.4)

    def on_validation_epoch_end(self):
        index = self.global_step // 10 - 1
        self.log("val/error", self.errors[index] if index >= 0 else 9.0)


def steps(folder):
    return {
        path.stem: torch.load(path, weights_only=True)["global_step"]
        for path in (folder / "checkpoints").glob("*.ckpt")
    }


def test_last_is_the_last_state_also_where_the_figure_did_not_improve(tmp_path):
    checkpoint = Checkpoint()
    fit(tmp_path, checkpoint, task=Scripted())
    assert steps(tmp_path) == {"best": 10, "last": 30}
    assert checkpoint.best_score == pytest.approx(0.3)
    assert checkpoint.best_model_path.endswith("best.ckpt")


def test_best_follows_the_mode(tmp_path):
    class Higher(Scripted):
        mode = "max"

    fit(tmp_path, Checkpoint(), task=Higher())
    assert steps(tmp_path) == {"best": 20, "last": 30}


def test_a_figure_that_is_no_number_is_never_best(tmp_path):
    class Broken(Scripted):
        errors = (0.5, float("nan"), 0.6)

    fit(tmp_path, Checkpoint(), task=Broken())
    assert steps(tmp_path)["best"] == 10


def test_last_is_saved_by_the_clock_between_validations(tmp_path):
    saved = []

    class Watch(Checkpoint):
        def _save(self, trainer, name):
            saved.append((name, trainer.global_step))
            return super()._save(trainer, name)

    fit(tmp_path, Watch(every_minutes=0), max_steps=12)
    # Twice at 10: before the validation, which may fail, and after it.
    assert [step for name, step in saved if name == "last"] == sorted([*range(1, 13), 10])
    saved.clear()
    fit(tmp_path / "b", Watch(every_minutes=60), max_steps=12)
    assert [step for name, step in saved if name == "last"] == [10, 12]


def test_weights_with_nan_overwrite_nothing(tmp_path, caplog):
    class Poisoned(Scripted):
        def on_train_batch_end(self, *arguments):
            super().on_train_batch_end(*arguments)
            if self.global_step == 15:
                self.network[0].bias.data[0] = float("nan")

    fit(tmp_path, Checkpoint(), task=Poisoned())
    assert steps(tmp_path) == {"best": 10, "last": 10}
    assert "the weights hold NaN or infinity at step 20: last.ckpt is kept as it was" in caplog.text


class FullDisk(AtomicCheckpointIO):
    """Writes half of the file and then finds the disk full, as the operating system would."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        self.left -= 1
        with pytest.MonkeyPatch.context() as patch:
            if self.left < 0:
                patch.setattr(torch, "save", self.half)
            super().save_checkpoint(checkpoint, path)

    @staticmethod
    def half(checkpoint, file):
        file.write(b"PK" * 1000)
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_keeps_the_earlier_checkpoint_and_says_so_at_the_end(tmp_path, caplog):
    with pytest.raises(UserError, match=r"last.ckpt was not saved: No space left on device"):
        fit(tmp_path, Checkpoint(), Trace(str(tmp_path / "trace.txt")), task=Scripted(), io=FullDisk(after=2))
    assert steps(tmp_path) == {"best": 10, "last": 10}
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    assert "train 30" in (tmp_path / "trace.txt").read_text(), "the training must go on"
    assert "the earlier checkpoint is kept and training goes on" in caplog.text


def test_a_disk_that_is_full_for_a_while_is_no_error(tmp_path):
    class Recovers(FullDisk):
        def save_checkpoint(self, checkpoint, path, storage_options=None):
            if checkpoint["global_step"] == 30:
                self.left = 9
            super().save_checkpoint(checkpoint, path)

    fit(tmp_path, Checkpoint(), task=Scripted(), io=Recovers(after=2))
    assert steps(tmp_path) == {"best": 10, "last": 30}


def test_a_really_full_device_is_recognised(tmp_path, caplog):
    """torch.save to /dev/full ends in a RuntimeError of its archive, not in an OSError."""
    writer, original = AtomicCheckpointIO(), torch.save
    with pytest.MonkeyPatch.context() as patch, open("/dev/full", "wb", buffering=0) as full:
        patch.setattr(torch, "save", lambda checkpoint, file: original(checkpoint, full))
        writer.save_checkpoint({"weights": torch.zeros(100_000)}, tmp_path / "a.ckpt")
    assert writer.error is not None and "a.ckpt was not saved" in writer.error
    assert "kept" not in caplog.text, "there was none"
    assert list(tmp_path.iterdir()) == []


def test_other_failures_while_saving_are_raised(tmp_path):
    with pytest.raises(AttributeError), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "save", lambda checkpoint, file: checkpoint.missing)
        AtomicCheckpointIO().save_checkpoint({}, tmp_path / "a.ckpt")


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    torch.save({"state_dict": torch.nn.Linear(1, 1)}, tmp_path / "a.ckpt")
    with pytest.raises(Exception, match="holds more than tensors and plain values"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "a.ckpt")


def test_a_save_in_mid_step_gives_the_taken_batch_back(tmp_path):
    class MidStep(ToyTask):
        def training_step(self, batch, batch_idx):
            if self.global_step == 4:
                self.trainer.save_checkpoint(tmp_path / "mid.ckpt")
            return super().training_step(batch, batch_idx)

    fit(tmp_path, Checkpoint(), task=MidStep(), max_steps=6)
    loops = torch.load(tmp_path / "mid.ckpt", weights_only=True)["loops"]["fit_loop"]["state_dict"]
    assert loops["combined_loader"] == [{"next": 4}]


# -- stopped while a gradient is accumulated -------------------------------------------------------------------------
class Drawing(ToyTask):
    """Draws in each batch, as a dropout does."""

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * (1 + torch.rand(()))


class StopAfter(L.Callback):
    """Sends SIGTERM at the end of a batch, or saves in the midst of it, as SLURM's signal does."""

    def __init__(self, batch: int, mid: str = "") -> None:
        self.batch, self.mid = batch, mid

    def on_train_batch_start(self, trainer, *_):
        if self.mid and trainer.fit_loop.epoch_loop.batch_progress.total.ready == self.batch:
            trainer.save_checkpoint(self.mid)

    def on_train_batch_end(self, trainer, *_):
        if trainer.fit_loop.epoch_loop.batch_progress.total.ready == self.batch:
            os.kill(os.getpid(), signal.SIGTERM)


def ended(folder, **options):
    """The weights, the counters and the order of the batches at the end."""
    stored = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    loops = stored["loops"]["fit_loop"]
    counters = {name: loops[name] for name in loops if name.endswith(("epoch_loop.state_dict", "batch_progress"))}
    return stored["state_dict"], stored["global_step"], counters, loops["state_dict"]["combined_loader"]


EVERY_THIRD = {"val_check_interval": 3, "check_val_every_n_epoch": None}


@pytest.mark.parametrize(
    ("batch", "every", "mid", "validation"),
    [
        (4, 2, False, {}),
        (5, 2, False, {}),
        (13, 2, False, EVERY_THIRD),
        (14, 3, False, EVERY_THIRD),
        (12, 3, False, EVERY_THIRD),  # a validation between two batches of one step
        (1, 2, True, {}),
        (11, 2, True, {}),  # the first of an epoch
        (5, 3, True, EVERY_THIRD),
    ],
)
def test_stopped_in_the_midst_of_an_accumulation_it_resumes_exactly(tmp_path, every, batch, mid, validation):
    options = {"max_steps": 12, "accumulate_grad_batches": every, **validation}

    def run(folder, *callbacks, **more):
        torch.manual_seed(0)
        trainer = L.Trainer(
            accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
            default_root_dir=folder, callbacks=[Checkpoint(), *callbacks], plugins=[AtomicCheckpointIO()], **options,
        )  # fmt: skip
        trainer.fit(Drawing(), ToyData(), **more)

    run(tmp_path / "whole", Trace(str(tmp_path / "whole.txt")))
    saved = tmp_path / "mid.ckpt" if mid else tmp_path / "cut" / "checkpoints" / "last.ckpt"
    with pytest.raises(SIGTERMException):
        run(tmp_path / "cut", StopAfter(batch, str(saved) if mid else ""))
    run(tmp_path / "cut", Trace(str(tmp_path / "cut.txt")), ckpt_path=saved)
    one, two = ended(tmp_path / "whole"), ended(tmp_path / "cut")
    assert all(torch.equal(one[0][name], two[0][name]) for name in one[0]) and one[1:] == two[1:]
    whole, rest = (tmp_path / "whole.txt").read_text(), (tmp_path / "cut.txt").read_text()
    assert whole.endswith(rest), "losses, rates, validations and epochs are those of the whole run"

"""The schedule of a run that time alone ends, on a clock of its own."""

from datetime import timedelta
from types import SimpleNamespace

import lightning.pytorch as L
import pytest
from toy import ToyData, ToyTask, quiet_trainer

from sinelr_lightning.tasks.schedule import Schedule


class Clock(L.Callback):
    """Each step takes a second of it; the first one takes longer, as where something is compiled."""

    def __init__(self, first: float = 1.0):
        self.first, self.now = first, 0.0
        self.rates = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        self.now += self.first if len(self.rates) == 1 else 1.0


def fit(tmp_path, monkeypatch, schedule, clock, **options):
    monkeypatch.setattr("lightning.pytorch.callbacks.timer.time", SimpleNamespace(monotonic=lambda: clock.now))
    trainer = quiet_trainer(tmp_path, callbacks=[clock], max_time=timedelta(seconds=20), **options)
    trainer.fit(ToyTask(schedule=schedule), ToyData())
    return trainer


@pytest.mark.parametrize("schedule", [Schedule("cosine", final=0.05), Schedule("exponential", warmup=3, final=0.05)])
def test_it_follows_the_share_of_the_time(tmp_path, monkeypatch, schedule):
    clock = Clock()
    trainer = fit(tmp_path, monkeypatch, schedule, clock, max_steps=-1)
    assert trainer.global_step == 20
    assert clock.rates == pytest.approx([0.01 * schedule.factor(step, lambda: 20) for step in range(20)])
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.01 * 0.05)


def test_a_slow_first_step_leaves_fewer_and_the_last_rate_is_the_same(tmp_path, monkeypatch):
    clock = Clock(first=10.0)
    trainer = fit(tmp_path, monkeypatch, Schedule("cosine", final=0.05), clock, max_steps=-1)
    assert trainer.global_step == 11
    assert clock.rates == sorted(clock.rates, reverse=True)
    assert clock.rates[1] == pytest.approx(0.01 * (0.05 + 0.95 / 2))  # half of the time is over
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.01 * 0.05)


def test_steps_decide_where_the_run_has_a_number_of_them(tmp_path, monkeypatch):
    clock, schedule = Clock(), Schedule("cosine", final=0.05)
    fit(tmp_path, monkeypatch, schedule, clock, max_steps=40)
    assert clock.rates == pytest.approx([0.01 * schedule.factor(step, lambda: 40) for step in range(20)])


def test_a_run_that_goes_on_keeps_its_share(tmp_path, monkeypatch):
    schedule, clock = Schedule("cosine", final=0.05), Clock()
    fit(tmp_path, monkeypatch, schedule, clock, max_steps=8).save_checkpoint(tmp_path / "a.ckpt")
    again = Clock()
    monkeypatch.setattr("lightning.pytorch.callbacks.timer.time", SimpleNamespace(monotonic=lambda: again.now))
    trainer = quiet_trainer(tmp_path, callbacks=[again], max_time=timedelta(seconds=20), max_steps=-1)
    trainer.fit(ToyTask(schedule=schedule), ToyData(), ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert again.rates == pytest.approx([0.01 * schedule.factor(step, lambda: 20) for step in range(8, 20)])

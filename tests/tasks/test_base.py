import math
from functools import partial

import lightning.pytorch as L
import pytest
import torch
from toy import ToyData, ToyTask

from sinelr_lightning.errors import UserError
from sinelr_lightning.layers import Dense, LowRank, SineLowRank, parameter_groups
from sinelr_lightning.tasks.arguments import plain
from sinelr_lightning.tasks.base import Task, mean_scores
from sinelr_lightning.tasks.schedule import Schedule


def trainer(folder, steps=3, **options):
    return L.Trainer(
        accelerator="cpu", max_steps=steps, logger=False, enable_progress_bar=False, enable_checkpointing=False,
        enable_model_summary=False, default_root_dir=folder, **options,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        (Schedule("constant"), {0: 1.0, 50: 1.0}),
        (Schedule("constant", warmup=4), {0: 0.25, 3: 1.0, 4: 1.0}),
        (Schedule("exponential", final=0.01), {0: 1.0, 50: 0.1, 100: 0.01, 200: 0.01}),
        (Schedule("cosine", final=0.2), {0: 1.0, 50: 0.6, 100: 0.2}),
        (Schedule("cosine", warmup=20, final=0.2), {0: 0.05, 19: 1.0, 60: 0.6, 100: 0.2}),
    ],
)
def test_schedule(schedule, factors):
    for step, factor in factors.items():
        assert schedule.factor(step, lambda: 100) == pytest.approx(factor)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "step"}, "kind must be constant, exponential or cosine"),
        ({"warmup": -1}, "warmup"),
        ({"final": 0}, "final"),
    ],
)
def test_schedule_refuses(options, message):
    with pytest.raises(UserError, match=message):
        Schedule(**options)


def test_learning_rates_follow_multiplier_and_schedule(tmp_path):
    task = ToyTask(linear=SineLowRank(rank=1, lr_multiplier=10.0), schedule=Schedule("exponential", final=0.25))
    run = trainer(tmp_path, steps=4)
    run.fit(task, ToyData())
    by_multiplier = {group["lr_multiplier"]: group["lr"] for group in run.optimizers[0].param_groups}
    assert by_multiplier == {1.0: pytest.approx(0.01 * 0.25), 10.0: pytest.approx(0.1 * 0.25)}
    initial = {group["lr_multiplier"]: group["initial_lr"] for group in run.optimizers[0].param_groups}
    assert initial == {1.0: pytest.approx(0.01), 10.0: pytest.approx(0.1)}


def test_a_schedule_without_an_end_is_refused_before_the_first_step(tmp_path):
    task = ToyTask()
    with pytest.raises(UserError, match=r"schedule.kind cosine needs an end: set trainer.max_steps"):
        trainer(tmp_path, steps=-1, max_epochs=-1).fit(task, ToyData())
    assert task.global_step == 0


def test_total_steps_by_epochs_do_not_set_the_data_up_early(tmp_path):
    """In configure_optimizers they would, before Lightning restores the loader of a resumed run."""
    asked = []

    class Watched(ToyData):
        def train_dataloader(self):
            asked.append(self.trainer.optimizers)
            return super().train_dataloader()

    trainer(tmp_path, steps=-1, max_epochs=1).fit(ToyTask(), Watched())
    assert len(asked) == 1 and asked[0], "the data must be asked for after the optimisers exist"


@pytest.mark.parametrize(
    "factory", [SineLowRank(rank=2, frequency=30.0), LowRank(rank=2), Dense(), SineLowRank(rank=1)]
)
def test_a_task_made_in_python_is_rebuilt_from_a_weights_only_checkpoint(tmp_path, factory):
    task = ToyTask(linear=factory, width=6, optimizer=partial(torch.optim.SGD, lr=0.5), weight_decay=0.1)
    run = trainer(tmp_path, steps=1)
    run.fit(task, ToyData())
    run.save_checkpoint(tmp_path / "a.ckpt")
    stored = torch.load(tmp_path / "a.ckpt", weights_only=True)["hyper_parameters"]
    assert stored["_class_path"] == "toy.ToyTask"
    assert stored["optimizer"]["class_path"] == "torch.optim.sgd.SGD"
    again = ToyTask.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert again.hparams == task.hparams
    assert [type(m) for m in again.modules()] == [type(m) for m in task.modules()]
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), task.parameters(), strict=True))
    group = again.optimizer(parameter_groups(again, again.weight_decay)).param_groups[0]
    assert group["lr"] == 0.5 and again.weight_decay == 0.1


def test_saving_the_arguments_again_in_a_subclass_keeps_them_plain():
    class Again(ToyTask):
        def __init__(self, rank: int = 1):
            super().__init__(linear=LowRank(rank))
            self.save_hyperparameters()

    assert plain(dict(Again(2).hparams), "hparams") == dict(Again(2).hparams)


def test_what_cannot_be_stored_is_named():
    with pytest.raises(TypeError, match=r"activation=.* cannot be stored in a checkpoint"):
        plain(torch.nn.functional.relu, "activation")
    with pytest.raises(TypeError, match=r"seed=.* cannot be stored"):
        plain(object(), "seed")


def test_a_checkpoint_of_another_architecture_names_what_differs():
    stored = ToyTask(linear=SineLowRank(rank=2))
    checkpoint = {"state_dict": stored.state_dict(), "hyper_parameters": dict(stored.hparams)}
    with pytest.raises(UserError) as caught:
        ToyTask(linear=SineLowRank(rank=1)).on_load_checkpoint(checkpoint)
    message = str(caught.value)
    assert "network.0.U is [8, 2] there, [8, 1] here" in message
    assert "'rank': 2" in message and "'rank': 1" in message
    # Of rank 2 the factors of a sine fit into low-rank layers, but are no weights of theirs.
    for other in (Dense(), LowRank(rank=2)):
        with pytest.raises(UserError, match=f"linear is SineLowRank there, {type(other).__name__} here"):
            ToyTask(linear=other).on_load_checkpoint(checkpoint)
    stored.on_load_checkpoint(checkpoint)


def test_means_of_scores():
    assert mean_scores({0: {"a": 1.0}, 1: {"a": 2.0, "b": 5.0}}) == {"a": 1.5, "b": 5.0}
    # In float64 and exactly: the naive sum of these is 0.
    assert mean_scores({0: {"a": 1e16}, 1: {"a": 1.0}, 2: {"a": -1e16}}) == {"a": 1 / 3}


def test_size_and_learning_rate_are_logged(tmp_path):
    run = L.Trainer(
        accelerator="cpu", max_steps=2, log_every_n_steps=1, enable_progress_bar=False, enable_checkpointing=False,
        logger=L.loggers.CSVLogger(tmp_path), enable_model_summary=False,
    )  # fmt: skip
    run.fit(ToyTask(), ToyData())
    text = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text()
    assert {"parameters", "dense_parameters", "compression", "train/loss", "train/lr"} <= set(
        text.splitlines()[0].split(",")
    )
    assert not math.isnan(float(run.callback_metrics["train/loss"]))
    assert isinstance(ToyTask(), Task)

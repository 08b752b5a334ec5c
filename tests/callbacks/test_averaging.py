import lightning.pytorch as L
import pytest
import torch
from toy import ToyData, ToyTask, quiet_trainer

from sinelr_lightning.callbacks import EMA, CachedWeights, ConvertCallback
from sinelr_lightning.errors import UserError
from sinelr_lightning.layers import Dense, FactorizedLinear, SineLowRank


def fit(folder, steps, ema, **options):
    torch.manual_seed(0)
    run = quiet_trainer(folder, max_steps=steps, callbacks=[ema], **options)
    task = ToyTask()
    run.fit(task, ToyData())
    return run, task


def test_it_is_the_exponential_average_of_the_weights(tmp_path):
    seen = []

    class Watch(EMA):
        def on_train_batch_end(self, trainer, pl_module, *rest):
            super().on_train_batch_end(trainer, pl_module, *rest)
            seen.append(torch.cat([p.detach().flatten() for p in pl_module.parameters()]).clone())

    _, task = fit(tmp_path, 6, Watch(decay=0.5), limit_val_batches=0)
    average = seen[0]
    for weights in seen[1:]:
        average = 0.5 * average + 0.5 * weights
    torch.testing.assert_close(torch.cat([p.detach().flatten() for p in task.parameters()]), average)


def test_the_module_closes_a_validation_with_the_average(tmp_path):
    class Watching(ToyTask):
        def on_validation_epoch_end(self):
            super().on_validation_epoch_end()
            closed.append(next(self.parameters()).detach().clone())

    closed = []
    task = Watching()
    quiet_trainer(
        tmp_path, max_steps=4, callbacks=[EMA(decay=0.5)], num_sanity_val_steps=0, val_check_interval=4
    ).fit(task, ToyData())
    torch.testing.assert_close(closed[-1], next(task.parameters()), rtol=0, atol=0)  # at the end it has the average


def test_before_the_first_update_validation_and_checkpoint_have_the_weights(tmp_path):
    validated = []

    class Watch(EMA):
        def on_validation_epoch_start(self, trainer, pl_module):
            super().on_validation_epoch_start(trainer, pl_module)
            validated.append(next(pl_module.parameters()).detach().clone())

    run, task = fit(tmp_path, 4, Watch(decay=0.9, start=100), num_sanity_val_steps=0, val_check_interval=2)
    torch.testing.assert_close(validated[-1], next(task.parameters()), rtol=0, atol=0)
    run.save_checkpoint(tmp_path / "run.ckpt")
    stored = torch.load(tmp_path / "run.ckpt", weights_only=True)
    for name, value in task.state_dict().items():
        torch.testing.assert_close(stored["state_dict"][name], value, rtol=0, atol=0)


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    class Save(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 5:
                trainer.save_checkpoint(tmp_path / "middle.ckpt")

    def trained(steps, extra=(), **options):
        torch.manual_seed(0)
        run = quiet_trainer(tmp_path, max_steps=steps, callbacks=[EMA(decay=0.8), *extra])
        task = ToyTask()
        run.fit(task, ToyData(), **options)
        return task.state_dict()

    whole = trained(12, [Save()])
    resumed = trained(12, ckpt_path=tmp_path / "middle.ckpt", weights_only=True)
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=1e-7)
    stored = torch.load(tmp_path / "middle.ckpt", weights_only=True)
    assert any(
        not torch.equal(stored["state_dict"][n], stored["current_model_state"][n]) for n in stored["state_dict"]
    )


@pytest.mark.parametrize("options", [{"decay": 1.0}, {"decay": -0.1}, {"start": -1}])
def test_bad_values(options):
    with pytest.raises(UserError, match="EMA"):
        EMA(**options)


def test_layers_that_a_callback_makes_are_averaged_too(tmp_path):
    task = ToyTask(linear=Dense())
    options = {"callbacks": [EMA(decay=0.5), ConvertCallback(SineLowRank(2), ["network.2"])]}
    quiet_trainer(tmp_path, max_steps=3, limit_val_batches=0, **options).fit(task, ToyData())
    assert isinstance(task.network[2], FactorizedLinear)


def test_cached_weights_are_those_of_the_average(tmp_path):
    def validated(*callbacks):
        torch.manual_seed(0)
        options = {"callbacks": list(callbacks), "num_sanity_val_steps": 0, "val_check_interval": 10}
        run = quiet_trainer(tmp_path, max_steps=10, **options)
        run.fit(ToyTask(), ToyData())
        return float(run.callback_metrics["val/error"])

    alone = validated(EMA(decay=0.9))
    assert validated(EMA(decay=0.9), CachedWeights()) == pytest.approx(alone, abs=1e-6)
    assert validated(CachedWeights(), EMA(decay=0.9)) == pytest.approx(alone, abs=1e-6)


def test_a_validation_that_is_stopped_leaves_the_weights_for_the_last_checkpoint(tmp_path):
    class Stop(L.Callback):
        def on_validation_batch_end(self, trainer, pl_module, *_):
            raise KeyboardInterrupt

        def on_exception(self, trainer, pl_module, exception):
            trainer.save_checkpoint(tmp_path / "stopped.ckpt")

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            self.weights = {name: value.clone() for name, value in pl_module.state_dict().items()}

    watch = Watch()
    options = {"callbacks": [watch, EMA(decay=0.9), Stop()], "num_sanity_val_steps": 0, "val_check_interval": 4}
    with pytest.raises(SystemExit):
        quiet_trainer(tmp_path, max_steps=8, **options).fit(ToyTask(), ToyData())
    stored = torch.load(tmp_path / "stopped.ckpt", weights_only=True)
    for name, value in watch.weights.items():
        torch.testing.assert_close(stored["current_model_state"][name], value, rtol=0, atol=0)

"""`PhaseMonitor`: its curves, its two warnings, and the steps at which it looks."""

import logging

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.loggers.logger import Logger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sinelr_lightning.analysis import phase_spread, phase_statistics, sines
from sinelr_lightning.callbacks import PhaseMonitor
from sinelr_lightning.callbacks.phases import _warnings
from sinelr_lightning.errors import UserError
from sinelr_lightning.layers import LowRank, SineLowRank


class Module(L.LightningModule):
    def __init__(self, first, dtype=torch.float32) -> None:
        super().__init__()
        self.net = nn.Sequential(first(16, 24), nn.Tanh(), nn.Linear(24, 1)).to(dtype)

    def training_step(self, batch, _):
        return self.net(batch[0].to(self.net[2].weight.dtype)).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-4)


class Curves(Logger):
    """Keeps what is logged."""

    name, version = "curves", 0

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, dict[str, float]] = {}

    def log_metrics(self, metrics, step=None):
        self.seen.setdefault(step, {}).update(metrics)

    def log_hyperparams(self, *_, **__):
        pass


def train(module: Module, steps: int, every: int, tmp_path) -> Curves:
    curves = Curves()
    trainer = L.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=curves,
        callbacks=[PhaseMonitor(every)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, DataLoader(TensorDataset(torch.randn(40, 16)), batch_size=4))
    return curves


def test_curves_at_their_steps(tmp_path):
    module = Module(SineLowRank(2, frequency=30.0))
    u, v = module.net[0].U.detach().clone(), module.net[0].V.detach().clone()
    curves = train(module, 7, 3, tmp_path)
    looks = {step: found for step, found in curves.seen.items() if any("phases" in key for key in found)}
    assert list(looks) == [0, 3, 6]
    kinds = {key.split("/")[1] for key in looks[0] if key.startswith("phases/")}
    assert kinds == {"spread", "beyond", "stable_rank", "rounding", "gradient_to_weight"}  # formed: no columns
    assert looks[0]["phases/spread/net.0"] == pytest.approx(phase_spread(u, v, 30.0))
    assert looks[0]["phases/gradient_to_weight/net.0"] > 0


def test_an_adapter_has_the_same_curves(tmp_path):
    peft = pytest.importorskip("peft")
    from sinelr_lightning import SineLoraConfig

    module = Module(nn.Linear)
    module.net = peft.get_peft_model(module.net, SineLoraConfig(r=2, target_modules=["0"], init_lora_weights=False))
    module.training_step = lambda batch, batch_idx: module.net(batch[0]).square().mean()
    looks = train(module, 3, 1, tmp_path).seen
    (name,) = {key.removeprefix("phases/spread/") for key in looks[0] if key.startswith("phases/spread/")}
    assert name.endswith(".0") and looks[1][f"phases/gradient_to_weight/{name}"] > 0


def test_warns_once_of_phases_that_do_not_bend_the_sine(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        train(Module(SineLowRank(2, frequency=0.6)), 9, 2, tmp_path)
    (line,) = [record.getMessage() for record in caplog.records if "phases spread" in record.getMessage()]
    assert line.startswith("layer net.0: phases spread 0.0")
    assert "only low rank; raise the frequency from 0.6 to about" in line


def test_warns_when_the_phases_shrink_later_and_at_the_end_of_a_short_run(tmp_path, caplog):
    class Shrinking(Module):
        def on_train_batch_start(self, batch, batch_idx):
            if batch_idx == 5:
                self.net[0].U.data *= 0.01

    for every, steps in ((2, 9), (100, 7)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            train(Shrinking(SineLowRank(2)), steps, every, tmp_path)
        (line,) = [record.getMessage() for record in caplog.records if "phases spread" in record.getMessage()]
        assert "only low rank" in line


def test_warns_of_phases_that_half_precision_blurs(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        train(Module(SineLowRank(2, frequency=3000.0), torch.bfloat16), 3, 2, tmp_path)
    (line,) = [record.getMessage() for record in caplog.records if "phases spread" in record.getMessage()]
    assert "noise in bfloat16" in line and "lower the frequency from 3e+03 to about" in line


@pytest.mark.parametrize("first", [SineLowRank(2), SineLowRank(2, frequency=3000.0), LowRank(2)])
def test_says_nothing_of_others(first, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        train(Module(first), 3, 2, tmp_path)
    assert not [record for record in caplog.records if "phases spread" in record.getMessage()]


def test_advice_leads_to_the_usual_spread():
    """Of the frequency that a warning names the spread is two radians."""
    torch.manual_seed(0)
    layer = SineLowRank(2, frequency=1.5)(64, 64)
    looks = [(name, found, phase_statistics(found)) for name, found in sines(nn.Sequential(layer))]
    line = _warnings(looks)["low rank"]
    omega = float(line.rsplit(" ", 1)[1])
    assert phase_spread(layer.U, layer.V, omega) == pytest.approx(2.0, rel=0.1)


def test_refuses_no_steps():
    with pytest.raises(UserError, match="every must be at least 1 step, got 0"):
        PhaseMonitor(0)

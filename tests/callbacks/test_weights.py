import lightning.pytorch as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sinelr_lightning.callbacks import CachedWeights, ConvertCallback
from sinelr_lightning.layers import FactorizedLinear, SineLowRank


class SomebodysModule(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))
        self.cached = []

    def training_step(self, batch, _):
        return (self.net(batch[0]) - batch[0]).square().mean()

    def validation_step(self, batch, _):
        layers = [m for m in self.modules() if isinstance(m, FactorizedLinear)]
        self.cached.append([layer.served is not None for layer in layers])
        for layer in layers:
            torch.testing.assert_close(layer(torch.ones(layer.in_features)), layer.weight.sum(1) + layer.bias)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


@pytest.fixture
def loader():
    return DataLoader(TensorDataset(torch.randn(8, 16)), batch_size=4)


def trainer(tmp_path, *callbacks):
    return L.Trainer(
        default_root_dir=tmp_path, max_steps=2, logger=False, enable_progress_bar=False, accelerator="cpu",
        enable_checkpointing=False, enable_model_summary=False, callbacks=list(callbacks),
    )  # fmt: skip


def test_a_project_is_converted_without_changing_its_code(tmp_path, loader):
    module, convert = SomebodysModule(), ConvertCallback(SineLowRank(1), include=["net.0"])
    run = trainer(tmp_path, convert, CachedWeights())
    run.fit(module, loader, loader)
    layer = module.net[0]
    assert isinstance(layer, FactorizedLinear) and type(module.net[2]) is nn.Linear
    assert convert.conversion.converted == ["net.0"]
    optimised = {id(p) for group in run.optimizers[0].param_groups for p in group["params"]}
    assert {id(layer.U), id(layer.V), id(layer.bias)} <= optimised and len(optimised) == 5
    assert module.cached and all(module.cached[0])  # each weight was formed before the evaluation began
    assert layer._served is None  # and let go after it
    run.validate(module, loader, verbose=False)
    assert convert.conversion.converted == ["net.0"]


def test_weights_are_let_go_when_an_evaluation_fails(tmp_path, loader):
    module = SomebodysModule()
    module.validation_step = lambda batch, batch_idx: 1 / 0
    with pytest.raises(ZeroDivisionError):
        trainer(tmp_path, ConvertCallback(SineLowRank(1)), CachedWeights()).validate(module, loader, verbose=False)
    assert module.net[0]._served is None

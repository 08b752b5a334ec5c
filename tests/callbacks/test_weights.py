import lightning.pytorch as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from toy import quiet_trainer

from sinelr_lightning.callbacks import CachedWeights, ConvertCallback
from sinelr_lightning.errors import UserError
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
    return quiet_trainer(tmp_path, max_steps=2, callbacks=list(callbacks))


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


# --------------------------------------------------------------------------------- ranks, budgets and calibration


class WithForward(SomebodysModule):
    def forward(self, x):
        assert not self.training and not torch.is_grad_enabled()  # called by the calibration alone
        return self.net(x)


class Data(L.LightningDataModule):
    """Batches of a mapping, a list or a tensor, with inputs that are large in three directions."""

    def __init__(self, kind="list"):
        super().__init__()
        self.kind, self.stages = kind, []

    def setup(self, stage):
        self.stages.append(stage)
        generator = torch.Generator().manual_seed(5)
        self.x = torch.randn(64, 16, generator=generator) * torch.tensor([1.0] * 3 + [0.01] * 13)

    def _loader(self, **options):
        collate = {
            "list": lambda rows: [torch.stack(rows), torch.zeros(len(rows))],
            "mapping": lambda rows: {"inputs": torch.stack(rows), "labels": torch.zeros(len(rows))},
        }[self.kind]
        return DataLoader(self.x, batch_size=8, collate_fn=collate, **options)

    def train_dataloader(self):
        return self._loader(shuffle=True)

    def val_dataloader(self):
        return self._loader()


def test_ranks_of_single_layers(tmp_path, loader):
    module, convert = SomebodysModule(), ConvertCallback(SineLowRank(1), ranks={"net.2": 3})
    trainer(tmp_path, convert).fit(module, loader)
    assert convert.conversion.ranks == {"net.0": 1, "net.2": 3}


@pytest.mark.parametrize("kind", ["list", "mapping"])
def test_a_fit_is_calibrated_by_the_first_batches_of_the_training_data(tmp_path, kind, monkeypatch):
    module, seen, forward = WithForward(), [], WithForward.forward
    monkeypatch.setattr(WithForward, "forward", lambda self, x: seen.append(x) or forward(self, x))
    convert = ConvertCallback(SineLowRank(3), init="fit", calibration_batches=3)
    trainer(tmp_path, convert).validate(module, datamodule=Data(kind), verbose=False)
    assert [x.shape for x in seen] == [(8, 16)] * 3
    fit = convert.conversion.fits["net.0"]
    assert fit.output_error < 0.02 < fit.weight_error  # the inputs are of three dimensions


def test_an_evaluation_alone_sets_the_training_data_up(tmp_path):
    data, module = Data(), WithForward()
    convert = ConvertCallback(SineLowRank(3), init="fit", calibration_batches=2)
    trainer(tmp_path, convert).validate(module, datamodule=data, verbose=False)
    assert "fit" in data.stages


def test_a_budget_is_kept_and_its_ranks_come_back_from_a_checkpoint(tmp_path):
    module, data = WithForward(), Data()
    dense = sum(p.numel() for p in module.parameters())
    convert = ConvertCallback(SineLowRank(1), budget=0.6, init="fit", calibration_batches=2)
    run = trainer(tmp_path, convert)
    run.fit(module, datamodule=data)
    assert 0.6 * dense - 48 < sum(p.numel() for p in module.parameters()) <= 0.6 * dense
    run.save_checkpoint(tmp_path / "a.ckpt")

    other, again = WithForward(), ConvertCallback(SineLowRank(1), budget=0.6)
    with torch.no_grad():  # weights from which other ranks are chosen
        other.net[0].weight.copy_(torch.ones(32, 16))
    trainer(tmp_path, again).validate(other, datamodule=data, ckpt_path=tmp_path / "a.ckpt", verbose=False)
    assert again.conversion.ranks != convert.conversion.ranks
    assert other.net[0].factorization == module.net[0].factorization
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), other.parameters(), strict=True))


def test_mistakes_are_told_in_one_line(tmp_path, loader):
    for options, message in (
        ({"include": ["nte.0"]}, r"ConvertCallback: pattern 'nte\.0' matches no linear layer"),
        ({"budget": 2.0}, r"ConvertCallback: budget must be a share of the parameters in \(0, 1\), got 2\.0"),
        ({"init": "fit", "calibration_batches": 1}, "takes them from a datamodule, and there is none"),
    ):
        with pytest.raises(UserError, match=message):
            trainer(tmp_path, ConvertCallback(SineLowRank(1), **options)).fit(SomebodysModule(), loader)
    convert = ConvertCallback(SineLowRank(1), init="fit", calibration_batches=1)
    with pytest.raises(UserError, match=r"ConvertCallback: calibration_batches needs a forward: .*SomebodysModule"):
        trainer(tmp_path, convert).fit(SomebodysModule(), datamodule=Data())

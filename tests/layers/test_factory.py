import dataclasses
import functools

import lightning.pytorch as L
import pytest
import torch
from torch import nn

from sinelr_lightning.layers import Dense, LinearFactory, LowRank, SineLowRank
from sinelr_lightning.layers.factory import families


class UsersOwn:
    def __call__(self, in_features: int, out_features: int, bias: bool = True) -> nn.Module:
        return nn.Linear(in_features, out_features, bias)


class Inherits(UsersOwn):
    pass


class OtherNames:
    def __call__(self, n: int, m: int) -> nn.Module:
        return nn.Linear(n, m)


class NotCallable:
    in_features, out_features = 2, 3


@pytest.mark.parametrize("factory", [Dense(), LowRank(1), SineLowRank(1), UsersOwn(), Inherits()])
def test_factories(factory):
    assert isinstance(factory, LinearFactory)
    assert issubclass(type(factory), LinearFactory)
    layer = factory(8, 6, bias=False)
    assert (layer.in_features, layer.out_features, layer.bias) == (8, 6, None)


@pytest.mark.parametrize(
    "other",
    [
        nn.Linear(2, 3),
        nn.Linear,
        OtherNames(),
        NotCallable(),
        functools.partial(nn.Linear),
        lambda x: x,
        "SineLowRank",
    ],
    ids=["layer", "class", "other names", "not callable", "partial", "lambda", "string"],
)
def test_not_factories(other):
    assert not isinstance(other, LinearFactory)


def test_a_users_class_is_no_factorization():
    from sinelr_lightning.layers import Factorization

    assert not isinstance(UsersOwn(), Factorization)
    with pytest.raises(TypeError, match="abstract"):
        Factorization()
    with pytest.raises(TypeError, match="abstract"):
        LinearFactory()


def test_factories_are_values():
    assert SineLowRank(3) == SineLowRank(3) != SineLowRank(4)
    assert len({LowRank(3), LowRank(3), Dense(), Dense()}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        SineLowRank(3).rank = 4
    assert type(Dense()(3, 4)) is nn.Linear


# -------------------------------------------------------------------------------------------------- in checkpoints


@dataclasses.dataclass(frozen=True)
class UsersFamily(LowRank):
    """A family that is not of the package."""


class Restored(L.LightningModule):
    def __init__(self, linear: LinearFactory) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = linear(32, 24)

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        return self.net(batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


@pytest.mark.parametrize("factory", [SineLowRank(2, frequency=7.0), UsersFamily(2)], ids=str)
def test_checkpoints_hold_factories_as_hyperparameters(factory: LinearFactory, tmp_path):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(max_steps=1, accelerator="cpu", enable_model_summary=False, **quiet)
    trainer.fit(Restored(factory), torch.utils.data.DataLoader(torch.randn(4, 32), batch_size=4))
    trainer.save_checkpoint(tmp_path / "net.ckpt")
    loaded = Restored.load_from_checkpoint(tmp_path / "net.ckpt", weights_only=True)
    assert loaded.hparams["linear"] == factory
    assert torch.equal(loaded.net.U, trainer.lightning_module.net.U)


def test_every_factory_is_a_safe_global():
    known = torch.serialization.get_safe_globals()
    assert {"Dense", "Kronecker", "SineLowRank", "UsersFamily"} <= families(LinearFactory).keys()
    assert all(family in known for family in families(LinearFactory).values())

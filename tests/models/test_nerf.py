import pytest
import torch

from sinelr_lightning.layers import Dense, LowRank, SineLowRank
from sinelr_lightning.layers.factorized import FactorizedLinear
from sinelr_lightning.models import DensityField, NeRF


def count(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("rank", "parameters"), [(1, 7_965), (5, 27_521), (10, 51_966), (60, 296_416)])
@pytest.mark.parametrize("family", [LowRank, SineLowRank])
def test_parameters_of_the_papers_network(family, rank, parameters):
    assert count(NeRF(family(rank))) == parameters


def test_parameters_of_the_dense_network():
    assert count(NeRF(Dense())) == 595_844
    assert round(7_965 / 595_844, 4) == 0.0134


def test_every_layer_but_the_heads_comes_from_the_factory():
    model = NeRF(SineLowRank(2), depth=6, width=64)
    ordinary = [n for n, m in model.named_modules() if type(m) is torch.nn.Linear]
    assert ordinary == ["density", "colour"]
    assert sum(isinstance(m, FactorizedLinear) for m in model.modules()) == 6 + 2


def test_density_does_not_depend_on_the_view_but_colour_does():
    model = NeRF(depth=3, width=32, skips=(1,))
    positions = torch.randn(5, 7, 3)
    one, other = torch.eye(3)[0].expand(5, 1, 3), torch.eye(3)[1].expand(5, 1, 3)
    (density, colour), (density2, colour2) = model(positions, one), model(positions, other)
    assert density.shape == (5, 7) and colour.shape == (5, 7, 3)
    assert torch.equal(density, density2) and not torch.allclose(colour, colour2)
    assert (density > 0).all() and (colour > 0).all() and (colour < 1).all()


def test_the_position_enters_again_after_a_skip():
    model = NeRF(depth=3, width=32, skips=(0,))
    assert model.trunk[1].in_features == 32 + 63


def test_density_field():
    assert DensityField(SineLowRank(1))(torch.randn(4, 6, 3)).shape == (4, 6)

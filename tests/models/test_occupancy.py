import math

import pytest
import torch
from torch import nn

from sinelr_lightning.layers import Dense, LowRank, SineLowRank
from sinelr_lightning.layers.factorized import FactorizedLinear
from sinelr_lightning.models.occupancy import GaborNetwork, OccupancyNetwork, occupancy_network

KINDS = ["gaussian", "siren", "wire", "relu", "gelu"]


def count(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("family", [LowRank, SineLowRank])
def test_parameters_of_the_papers_network(family):
    assert count(OccupancyNetwork()) == 132_865
    assert count(OccupancyNetwork(family(1))) == 2_817
    assert round(2_817 / 132_865, 3) == 0.021


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_layers_come_from_the_factory(kind):
    model = occupancy_network(SineLowRank(2), depth=3, width=64, activation=kind)
    ordinary = [name for name, module in model.named_modules() if type(module) is nn.Linear]
    assert ordinary == ["first", "head"]
    assert sum(isinstance(m, FactorizedLinear) for m in model.modules()) == (6 if kind == "wire" else 3)
    assert model(torch.rand(2, 5, 3)).shape == (2, 5)


def test_the_gaussian_network_by_hand():
    model = occupancy_network(Dense(), depth=1, width=8, sigma=0.3)
    x = torch.randn(4, 3)
    h = torch.exp(-((x @ model.first.weight.T + model.first.bias) ** 2) / 0.18)
    h = torch.exp(-((h @ model.hidden[0].weight.T + model.hidden[0].bias) ** 2) / 0.18)
    torch.testing.assert_close(model(x), (h @ model.head.weight.T + model.head.bias)[:, 0])


def test_the_wire_network_is_that_of_complex_weights():
    model = GaborNetwork(Dense(), depth=2, width=8).double()
    x = torch.rand(6, 3, dtype=torch.float64) * 2 - 1

    def gabor(z):
        return torch.exp(1j * 10 * z - (10 * z.abs()) ** 2)

    h = gabor((x @ model.first.weight.T + model.first.bias).to(torch.complex128))
    for a, b in zip(model.real, model.imaginary, strict=True):
        weight = torch.complex(a.weight, b.weight)
        h = gabor(h @ weight.T + torch.complex(a.bias - b.bias, a.bias + b.bias))
    torch.testing.assert_close(model(x), model.head(torch.cat([h.real, h.imag], -1))[:, 0])


def test_wire_has_about_the_parameters_of_the_others():
    wire = occupancy_network(Dense(), activation="wire")
    assert count(wire) == pytest.approx(count(OccupancyNetwork()), rel=0.01)


def test_siren_starts_with_the_spread_of_its_paper():
    # Sitzmann et al. 2020, theorem 1.8: pre-activations of the hidden layers are normal with standard deviation 1.
    model = occupancy_network(Dense(), depth=3, width=1024, activation="siren")
    assert model.first.weight.abs().max() <= 1 / 3 and model.activations[0].omega == 30
    seen = []
    for layer, activation in list(zip(model.hidden, model.activations[1:], strict=True))[1:]:
        layer.register_forward_hook(lambda _, __, y, omega=activation.omega: seen.append((omega * y).std().item()))
    model(torch.rand(500, 3) * 2 - 1)
    assert seen == pytest.approx([1, 1], abs=0.15)


def test_an_encoded_position_enters_the_first_layer():
    model = occupancy_network(Dense(), activation="relu", frequencies=5)
    assert model.first.in_features == 3 * 11
    assert isinstance(model.activations[0], nn.ReLU)
    assert math.isfinite(model(torch.zeros(1, 3)).item())

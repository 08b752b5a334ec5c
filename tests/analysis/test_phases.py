"""Statistics of phases against the whole matrix of them."""

import math

import pytest
import torch
from torch import nn

from sinelr_lightning.analysis import phase_spread, phase_statistics, sines
from sinelr_lightning.analysis.phases import Sine
from sinelr_lightning.layers import ActivatedLowRank, FactorizedConv2d, LowRank, ResidualSine, SineLowRank

OMEGA = 40.0


def factors(m: int, n: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(m, k) / k**0.5, torch.randn(n, k) / n**0.5 + 0.02


@pytest.mark.parametrize("rank", [1, 5])
@pytest.mark.parametrize(("m", "n"), [(30, 70), (300, 200)])
def test_against_the_whole_matrix(m: int, n: int, rank: int):
    u, v = factors(m, n, rank)
    phases = OMEGA * u.double() @ v.double().t()
    assert phase_spread(u, v, OMEGA) == pytest.approx(float(phases.std(correction=0)), rel=1e-9)
    found = phase_statistics(Sine(OMEGA, u, v))
    assert found.spread == phase_spread(u, v, OMEGA)
    assert found.beyond == pytest.approx(float((phases.abs() > math.pi).double().mean()), abs=0.05)
    singular = torch.linalg.svdvals(phases.sin())
    assert found.stable_rank == pytest.approx(float(singular.square().sum() / singular[0].square()), rel=0.05)
    rounded = OMEGA * u.bfloat16().double() @ v.bfloat16().double().t()
    assert found.rounding == pytest.approx(float((rounded - phases).std(correction=0)), rel=0.2)


def test_columns_are_those_of_the_thin_form():
    u, v = factors(300, 200, 1)
    assert phase_statistics(Sine(OMEGA, u, v)).columns == 16
    assert phase_statistics(Sine(OMEGA, *factors(300, 200, 5))).columns is None


def test_zero_factors():
    found = phase_statistics(Sine(OMEGA, torch.zeros(20, 2), torch.randn(10, 2)))
    assert (found.spread, found.beyond, found.stable_rank) == (0.0, 0.0, 0.0)


def test_finds_sines_and_their_kin_by_name():
    model = nn.Sequential(
        SineLowRank(2, frequency=7.0)(12, 10),
        nn.ReLU(),
        LowRank(2)(10, 10),
        ResidualSine(2)(10, 8),
        FactorizedConv2d(SineLowRank(2, frequency=9.0), 4, 8, 3),
        ActivatedLowRank(2)(8, 8),
    )
    found = dict(sines(model))
    assert [(name, sine.omega) for name, sine in found.items()][:1] == [("0", 7.0)]
    assert found["0"].u is model[0].U and found["3"].omega == pytest.approx(6 * 10**0.5)
    assert found["4"].omega == 9.0 and found["4"].v.shape == (36, 2)
    assert set(found) == {"0", "3", "4"}


def test_finds_adapters():
    peft = pytest.importorskip("peft")
    from sinelr_lightning.adapters import SineLoraConfig

    model = nn.Sequential(nn.Linear(12, 10), nn.Linear(10, 8))
    model = peft.get_peft_model(model, SineLoraConfig(r=2, frequency=11.0, target_modules=["0"]))
    ((name, sine),) = sines(model)
    assert name.endswith("model.0") and sine.adapter and sine.omega == 11.0
    assert sine.u.shape == (10, 2) and not sine.u.any() and sine.v.shape == (12, 2)

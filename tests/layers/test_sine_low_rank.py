import math

import numpy as np
import pytest
import torch

from sinelr_lightning.layers import FactorGroup, SineLowRank


def phases(sine: SineLowRank, m: int, n: int) -> torch.Tensor:
    u, v = sine.factors(m, n).values()
    return sine.omega(n) * u @ v.t()


@pytest.mark.parametrize("rank", [1, 4, 64])
def test_phase_spread_at_the_start(rank: int):
    # ω/(3√n): 2.1 rad for n = 256 and ω = 100, at any rank.
    spread = sum(phases(SineLowRank(rank, frequency=100), 512, 256).std().item() for _ in range(10)) / 10
    assert spread == pytest.approx(100 / (3 * math.sqrt(256)), rel=0.04)
    assert round(100 / (3 * math.sqrt(256)), 1) == 2.1


@pytest.mark.parametrize(("n", "target"), [(64, 2.0), (256, 2.0), (768, 4.0)])
def test_automatic_frequency_reaches_its_spread(n: int, target: float):
    sine = SineLowRank(8, phase_spread=target)
    spread = sum(phases(sine, 512, n).std().item() for _ in range(10)) / 10
    assert spread == pytest.approx(target, rel=0.05)


def test_frequency_and_gain_as_documented():
    assert SineLowRank(1).omega(256) == pytest.approx(96)
    assert SineLowRank(1, frequency=200).omega(256) == 200
    assert SineLowRank(1).divisor(256) == 16
    assert SineLowRank(1, gain=3.0).divisor(256) == 3


def test_weight_by_hand():
    # ω = 2, g = √4 = 2: the phases are 2·[[0.5, 1], …]
    u, v = torch.tensor([[0.5], [1.0]]), torch.tensor([[1.0], [0.0], [-1.0], [math.pi / 4]])
    expected = torch.tensor([[1.0, 0.0, -1.0, math.pi / 4], [2.0, 0.0, -2.0, math.pi / 2]]).sin() / 2
    torch.testing.assert_close(SineLowRank(1, frequency=2).weight(u, v), expected)
    assert expected[1, 3] == 0.5


def test_saturated_sine_has_the_spread_of_a_dense_layer():
    # 0.71/√n beside 0.58/√n
    weight = SineLowRank(64, frequency=400)(256, 512).weight
    assert weight.std().item() * 16 == pytest.approx(0.71, abs=0.02)


def test_rank_grows_with_the_frequency():
    ranks = []
    for frequency in (1, 100, 400):
        torch.manual_seed(0)
        weight = SineLowRank(2, frequency=frequency)(128, 128).weight
        ranks.append(torch.linalg.matrix_rank(weight, rtol=1e-3).item())
    assert ranks[0] == 2 < ranks[1] < ranks[2]


def test_factors_do_not_decay_and_carry_their_multiplier():
    assert SineLowRank(1, lr_multiplier=5.0).groups(48, 12) == {
        "U": FactorGroup(lr_multiplier=5.0, decays=False),
        "V": FactorGroup(lr_multiplier=5.0, decays=False),
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"rank": 2.5}, "rank must be a whole number from 1 on, got 2.5"),
        ({"rank": True}, "rank must be a whole number from 1 on, got True"),
        ({"rank": 1, "frequency": 0}, "frequency must be a positive number, got 0"),
        ({"rank": 1, "frequency": -3.0}, "frequency must be a positive number"),
        ({"rank": 1, "frequency": math.inf}, "frequency must be a positive number"),
        ({"rank": 1, "frequency": "high"}, "a positive number or \"auto\", got 'high'"),
        ({"rank": 1, "gain": 0.0}, "gain must be a positive number, got 0.0"),
        ({"rank": 1, "gain": math.nan}, "gain must be a positive number, got nan"),
        ({"rank": 1, "phase_spread": -1.0}, "phase_spread must be a positive number"),
        ({"rank": 1, "frequency": True}, 'frequency must be a positive number or "auto", got True'),
        ({"rank": 1, "gain": "x"}, "gain must be a positive number or None, got 'x'"),
        ({"rank": 1, "phase_spread": None}, "phase_spread must be a positive number, got None"),
        ({"rank": 1, "lr_multiplier": 0.0}, "lr_multiplier must be a positive number"),
    ],
)
def test_refuses(settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        SineLowRank(**settings)


def test_numbers_of_numpy_are_numbers():
    layer = SineLowRank(np.int64(2), frequency=np.float32(30))(16, 12)
    assert layer.factorization.omega(16) == 30.0 and layer.U.shape == (12, 2)


def test_rank_that_is_not_smaller():
    with pytest.raises(ValueError, match="take rank < 12, or Dense"):
        SineLowRank(12)(48, 12)


@pytest.mark.parametrize(("rank", "m", "n", "columns"), [(1, 96, 128, 8), (2, 512, 600, 86)])
def test_served_thin_while_phases_allow_it(rank: int, m: int, n: int, columns: int):
    layer = SineLowRank(rank)(n, m)
    left, right = layer.factorization.served(*layer.factors())
    assert (left.shape, right.shape) == ((m, columns), (columns, n))
    torch.testing.assert_close(left @ right, layer.weight, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        layer.U.mul_(50)
    (weight,) = layer.factorization.served(*layer.factors())
    assert torch.equal(weight, layer.weight)


def test_a_balanced_start_has_the_same_phases_from_factors_of_one_size():
    m, n, k = 60, 81, 4
    torch.manual_seed(0)
    u, v = SineLowRank(k).factors(m, n).values()
    torch.manual_seed(0)
    balanced, other = SineLowRank(k, balanced=True).factors(m, n).values()
    torch.testing.assert_close(balanced @ other.t(), u @ v.t())
    for factor in (balanced, other):
        assert 0.95 / (k * n) ** 0.25 < factor.abs().max() <= 1 / (k * n) ** 0.25
    assert not SineLowRank(k, balanced=True).factors(m, n, zero=True)["U"].any()

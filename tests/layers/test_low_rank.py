import math

import pytest
import torch
from torch import nn

from sinelr_lightning.layers import LowRank
from sinelr_lightning.layers.factorization import kaiming_factors


@pytest.mark.parametrize("rank", [1, 4, 32])
def test_starts_at_the_variance_of_nn_linear(rank: int):
    m, n = 512, 384
    expected = 1 / (3 * n)
    assert nn.Linear(n, m).weight.var().item() == pytest.approx(expected, rel=0.02)
    # The variance of one draw scatters by about √(4/(5·rank))·√(1/m + 1/n) in its factors: averaged over ten.
    variance = sum(LowRank(rank)(n, m).weight.var().item() for _ in range(10)) / 10
    assert variance == pytest.approx(expected, rel=0.06)


def test_the_paper_starts_at_a_third_of_it():
    u, v = kaiming_factors(512, 384, 8)
    assert u.abs().max() == pytest.approx(8**-0.5, rel=0.01)
    assert v.abs().max() == pytest.approx(384**-0.5, rel=0.01)
    assert (u @ v.t()).std().item() == pytest.approx(1 / (3 * math.sqrt(384)), rel=0.05)


def test_weight_by_hand():
    u, v = torch.tensor([[1.0, 2.0], [0.0, -1.0]]), torch.tensor([[3.0, 1.0], [0.5, 0.0], [0.0, 4.0]])
    assert LowRank(2).weight(u, v).tolist() == [[5.0, 0.5, 8.0], [-1.0, 0.0, -4.0]]


def test_counts():
    assert LowRank(5).count(256, 128) == 5 * (256 + 128)


def test_served_as_its_own_factors():
    layer = LowRank(3)(48, 40)
    left, right = LowRank(3).served(*layer.factors())
    assert (left.shape, right.shape) == ((40, 3), (3, 48))
    torch.testing.assert_close(left @ right, layer.weight)


def test_rank_that_is_not_smaller():
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        LowRank(0)
    with pytest.raises(ValueError) as error:
        LowRank(16)(16, 64)
    assert "rank 16 is not below min(out_features=64, in_features=16) = 16" in str(error.value)
    assert "dense layer has 1,024 parameters, the factors would have 1,280" in str(error.value)
    assert "take rank < 16, or Dense" in str(error.value)
    LowRank(15)(16, 64)


def test_fit_is_the_truncated_svd():
    target = torch.randn(30, 20)
    s = torch.linalg.svdvals(target)
    fitted, factors = LowRank(6).fit(target)
    error = (fitted.weight(**factors) - target).norm()
    assert error.item() == pytest.approx(s[6:].norm().item(), rel=1e-5)


def test_a_spectral_start_is_the_truncated_svd_of_a_fresh_weight():
    m, n, family = 24, 40, LowRank(5, spectral=True)
    torch.manual_seed(3)
    u, v = family.factors(m, n).values()
    torch.manual_seed(3)
    fresh = torch.empty(m, n).uniform_(-1, 1) / n**0.5
    left, singular, right = torch.linalg.svd(fresh)
    best = (left[:, :5] * singular[:5]) @ right[:5]
    torch.testing.assert_close(u @ v.t(), best, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(u.norm(dim=0), v.norm(dim=0))  # balanced
    assert not family.factors(m, n, zero=True)["U"].any()
    assert family.count(m, n) == LowRank(5).count(m, n)

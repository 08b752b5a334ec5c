import pytest
import torch

from sinelr_lightning.layers import SineLowRank
from sinelr_lightning.layers.fit import descend

from .families import ShuffledLowRank


@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize("kind", ["normal", "low rank", "one outlier", "huge", "tiny"])
def test_a_fitted_sine_is_never_worse_than_the_truncated_svd(rank: int, kind: str):
    target = torch.randn(40, 30)
    if kind == "low rank":
        target = torch.randn(40, rank) @ torch.randn(rank, 30)
    elif kind == "one outlier":
        target[3, 5] = 100.0
    target = target * {"huge": 1e4, "tiny": 1e-6}.get(kind, 1.0)
    u, s, vh = torch.linalg.svd(target, full_matrices=False)
    best = ((u[:, :rank] * s[:rank]) @ vh[:rank] - target).norm().item()
    fitted, factors = SineLowRank(rank).fit(target, steps=20)
    error = (fitted.weight(**factors) - target).norm().item()
    assert error <= 1.003 * best + 0.003 * target.norm().item() * (kind == "low rank")


def test_a_fitted_sine_beats_the_truncated_svd_on_a_flat_spectrum():
    torch.manual_seed(0)
    target = torch.randn(96, 64)
    best = (torch.linalg.svdvals(target)[16:].norm() / target.norm()).item()
    fitted, factors = SineLowRank(16).fit(target)
    error = ((fitted.weight(**factors) - target).norm() / target.norm()).item()
    assert best > 0.66 and error < 0.64
    assert fitted.rank == 16 and sum(f.numel() for f in factors.values()) == 16 * (96 + 64)


def test_fitting_zero_and_half_precision_targets():
    fitted, factors = SineLowRank(2).fit(torch.zeros(10, 12), steps=3)
    assert torch.count_nonzero(fitted.weight(**factors)) == 0
    target = (torch.randn(10, 2) @ torch.randn(2, 12)).bfloat16()
    fitted, factors = SineLowRank(2).fit(target, steps=3)
    assert (fitted.weight(**factors) - target).norm() < 0.01 * target.norm()


def test_descent_returns_the_best_seen_and_leaves_integers_alone():
    family, target = ShuffledLowRank(3), torch.randn(16, 12)
    start = family.factors(16, 12)

    def error(factors: dict) -> float:
        return (family.weight(**factors) - target).square().sum().item()

    same = descend(family, start, target, steps=0)
    assert error(same) == pytest.approx(error(start))
    errors = [error(descend(family, start, target, steps)) for steps in (20, 100)]
    assert errors[1] < errors[0] < error(start)
    assert torch.equal(descend(family, start, target, 5)["order"], start["order"])
    assert not any(factor.requires_grad for factor in same.values())
    with torch.no_grad():  # as in a conversion
        assert error(descend(family, start, target, 20)) == pytest.approx(errors[0])

"""Spectra against the singular value decomposition, and theory against measurement."""

import pytest
import torch

from sinelr_lightning.analysis import Sine, expected_stable_rank, phase_spread, spectrum, stable_rank
from sinelr_lightning.analysis.frequency import measure, phase_step, recommended_frequency
from sinelr_lightning.layers import SineLowRank


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (200, 200)])
def test_small_ones_exactly(shape: tuple[int, int]):
    weight = torch.randn(shape, dtype=torch.float64)
    singular = torch.linalg.svdvals(weight)
    found = spectrum(weight)
    assert found.stable_rank == pytest.approx(float(singular.square().sum() / singular[0].square()), rel=0.03)
    assert found.numerical_rank == min(shape) and found.part == shape
    torch.testing.assert_close(torch.tensor(found.values), singular.float() / singular[0].float())


def test_rank_of_a_low_rank_weight():
    weight = torch.randn(300, 7) @ torch.randn(7, 200)
    assert spectrum(weight).numerical_rank == torch.linalg.matrix_rank(weight) == 7


def test_a_large_one_by_a_part_and_the_power_method():
    torch.manual_seed(0)
    weight = torch.randn(1500, 9) @ torch.randn(9, 1300)
    found = spectrum(weight)
    assert found.part == (1024, 1024) and found.numerical_rank == 9
    singular = torch.linalg.svdvals(weight)
    assert found.stable_rank == pytest.approx(float(singular.square().sum() / singular[0].square()), rel=0.05)


def test_weights_without_a_spectrum():
    assert stable_rank(torch.zeros(5, 4)) == 0.0
    assert spectrum(torch.zeros(5, 4)).numerical_rank == 0
    with pytest.raises(ValueError, match=r"that of a matrix \[m, n\], got \[3\]"):
        spectrum(torch.ones(3))
    with pytest.raises(ValueError, match="not finite"):
        spectrum(torch.full((3, 3), torch.nan))


@pytest.mark.parametrize("rank", [2, 4, 8, 32])
def test_theory_is_within_about_twofold(rank: int):
    torch.manual_seed(0)
    u, v = SineLowRank(rank).factors(384, 768).values()
    for spread in (0.1, 1.0, 2.0, 3.0, 5.0):
        omega = spread / phase_spread(u, v, 1.0)
        measured = stable_rank(torch.sin(omega * u @ v.t()))
        assert 0.9 < expected_stable_rank(u, v, omega) / measured < 2.9, spread


def test_theory_at_its_ends():
    u, v = SineLowRank(4).factors(300, 300).values()
    assert expected_stable_rank(u, v, 1e-6) == pytest.approx(4, rel=0.06)  # low rank, less the bound of the noise
    assert expected_stable_rank(u, v, 1e6) == pytest.approx(300 / 4)  # noise


def test_the_rule_for_the_frequency():
    u, v = SineLowRank(4).factors(300, 500).values()
    sine = Sine(10.0, u, v)
    omega = recommended_frequency(sine, 1.5)
    (found,) = measure(sine, [omega])
    assert found.phases.spread == pytest.approx(1.5) and found.omega == omega
    assert omega == pytest.approx(SineLowRank(4, phase_spread=1.5).omega(500), rel=0.15)
    assert recommended_frequency(Sine(10.0, torch.zeros_like(u), v)) == float("inf")


def test_a_step_of_adam_moves_the_phases_as_far_as_said():
    torch.manual_seed(0)
    u, v = SineLowRank(8).factors(200, 300).values()
    sine = Sine(50.0, u.clone().requires_grad_(), v.clone().requires_grad_())
    loss = (torch.sin(50.0 * sine.u @ sine.v.t()) * torch.randn(200, 300)).sum()
    optimizer = torch.optim.Adam([sine.u, sine.v], lr=1e-4)
    loss.backward()
    optimizer.step()
    moved = 50.0 * (sine.u @ sine.v.t() - u @ v.t())
    assert phase_step(Sine(50.0, u, v), 1e-4) == pytest.approx(float(moved.detach().square().mean().sqrt()), rel=0.3)

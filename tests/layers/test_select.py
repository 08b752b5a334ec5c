"""The choice between thin and formed: enough nodes at every phase, none where they do not pay."""

import math

import pytest
import torch
from torch import Tensor

from sinelr_lightning.layers import select, sine_ops
from sinelr_lightning.layers.select import nodes_for_phase, thin_nodes

TYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def interpolation_error(phase: float, r: int) -> float:
    """Largest |Σ_l c_l·T_{2l+1}(t) − sin(φ·t)| over t in [−1, 1] and φ up to `phase`, c_l from samples at r nodes."""
    t = torch.linspace(-1, 1, 501, dtype=torch.float64)
    nodes, transform = sine_ops._nodes_and_transform(r, torch.float64, torch.device("cpu"))
    phases = torch.linspace(0.6, 1, 9, dtype=torch.float64)[:, None] * phase
    coefficients = (phases * nodes).sin() @ transform.t()
    return (coefficients @ sine_ops._odd_chebyshev(t, r) - (phases * t).sin()).abs().max().item()


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_nodes_suffice_at_every_phase(dtype: torch.dtype):
    tolerance = select._TOLERANCE[dtype]
    phases = [*torch.linspace(0.05, 100, 300).tolist(), 1e-9, 250.0]
    for phase in phases:
        allowed = tolerance + phase * 1e-14  # rounding of the phases themselves
        assert interpolation_error(phase, nodes_for_phase(phase, dtype)) <= allowed, phase


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_nodes_are_not_wasted(dtype: torch.dtype):
    # The bound behind the count is at most three nodes from the least number that would do.
    for phase in (0.5, 3.0, 12.0, 24.0, 48.0, 100.0):
        r = select._nodes(phase, select._TOLERANCE[dtype])
        assert r <= 3 or interpolation_error(phase, r - 3) > select._TOLERANCE[dtype], phase


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_nodes_grow_with_the_phase_in_multiples_of_eight(dtype: torch.dtype):
    counts = [nodes_for_phase(phase, dtype) for phase in torch.linspace(0, 120, 500).tolist()]
    assert counts == sorted(counts)
    assert all(count % 8 == 0 and count >= 8 for count in counts)


def test_node_counts_as_documented():
    assert [nodes_for_phase(phase, torch.float32) for phase in (6, 16, 28)] == [8, 16, 24]
    assert nodes_for_phase(1.0, torch.float64) == 8  # phases below a radian are scaled up to one


def factors(phase: float, m: int = 256, n: int = 256, rank: int = 1) -> tuple[Tensor, Tensor]:
    """Factors with max|u|·max|v| = `phase`."""
    u, v = torch.rand(m, rank) - 0.5, torch.rand(n, rank) - 0.5
    return u / u.abs().max() * phase, v / v.abs().max()


def test_thin_up_to_break_even():
    # 256²: break-even at 0.6·128 = 76.8 nodes.
    assert thin_nodes(*factors(6.0), 1.0, torch.float32) == 8
    assert thin_nodes(*factors(3.0), 2.0, torch.float32) == 8  # ω counts
    largest = max(phase for phase in range(1, 200) if nodes_for_phase(phase * 1.01, torch.float32) <= 72)
    assert thin_nodes(*factors(largest), 1.0, torch.float32) == 72
    assert thin_nodes(*factors(largest + 3), 1.0, torch.float32) is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_formed_for_phases_that_are_not_finite(bad: float):
    for broken in (0, 1):
        pair = factors(1.0)
        pair[broken][3] = bad
        assert thin_nodes(*pair, 1.0, torch.float32) is None


def test_formed_where_thin_cannot_pay():
    assert thin_nodes(*factors(1.0, rank=2), 1.0, torch.float32) is None
    assert thin_nodes(*factors(1.0, m=16, n=16), 1.0, torch.float32) is None  # 0.6·8 < 8 nodes
    assert thin_nodes(*factors(1.0, m=2, n=4096), 1.0, torch.float32) is None
    assert thin_nodes(*factors(1e30), 1e30, torch.float32) is None
    assert thin_nodes(*(f.to("meta") for f in factors(1.0)), 1.0, torch.float32) is None
    assert thin_nodes(*(f.half() for f in factors(3.0)), 1.0, torch.float16) == 8


# The host copy is for devices; its rules do not depend on one.


def ask(key: Tensor, value: float, version: int) -> float:
    return select._on_host(key, torch.tensor(value), (version,))


def test_host_copy_is_one_step_late_with_a_margin_in_training():
    key = torch.zeros(1)
    assert ask(key, 2.0, 0) == 2.0  # the first is exact
    assert ask(key, 2.1, 1) == pytest.approx(1.15 * 2.0)
    assert ask(key, 2.2, 2) == pytest.approx(1.15 * 2.1)
    # Unchanged factors get the same answer: microbatches of one step take one way.
    assert ask(key, 2.2, 2) == pytest.approx(1.15 * 2.1)
    assert ask(key, 1.0, 3) == pytest.approx(1.15 * 2.2)


def test_host_copy_is_exact_after_a_change_without_gradients():
    key = torch.zeros(1)
    assert ask(key, 2.0, 0) == 2.0
    with torch.no_grad():
        assert ask(key, 9.0, 1) == 9.0
        assert ask(key, 9.0, 1) == 9.0
        assert ask(key, 0.5, 2) == 0.5
    assert ask(key, 0.6, 3) == pytest.approx(1.15 * 0.5)


def test_host_copy_notices_growth_behind_the_version():
    key = torch.zeros(1)
    assert ask(key, 2.0, 0) == 2.0
    assert ask(key, 5.0, 0) == 2.0  # sends 5
    assert ask(key, 5.0, 0) == pytest.approx(1.15 * 5.0)


def test_host_copy_repeats_its_answer_inside_backward():
    key, answers = torch.zeros(1), []
    ask(key, 2.0, 0)
    ask(key, 4.0, 1)
    leaf = torch.ones(1, requires_grad=True)
    (leaf * 1).register_hook(lambda grad: answers.append(ask(key, 4.0, 1)))
    y = leaf * 1
    y.register_hook(lambda grad: answers.append(ask(key, 40.0, 2)))
    y.backward()
    assert answers == [pytest.approx(1.15 * 2.0)]
    assert ask(key, 4.0, 2) == pytest.approx(1.15 * 4.0)  # nothing was sent from inside


def test_host_copy_recovers_from_nan_and_forgets_dead_factors():
    key = torch.zeros(1)
    assert ask(key, 1.0, 0) == 1.0
    ask(key, math.nan, 1)
    assert math.isnan(ask(key, 1.0, 2))
    assert ask(key, 1.0, 3) == pytest.approx(1.15)
    size = len(select._host_copies)
    del key
    assert len(select._host_copies) < size

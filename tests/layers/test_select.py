"""The choice between thin and formed: enough nodes at every phase, none where they do not pay."""

import math

import pytest
import torch
from torch import Tensor

from sinelr_lightning.layers import select, thin
from sinelr_lightning.layers.select import Nodes, enough_work, nodes_for_phase, nodes_for_phases, thin_nodes

TYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def interpolation_error(phase: float, r: int) -> float:
    """Largest |Σ_l c_l·T_{2l+1}(t) − sin(φ·t)| over t in [−1, 1] and φ up to `phase`, c_l from samples at r nodes."""
    t = torch.linspace(-1, 1, 501, dtype=torch.float64)
    phases = torch.linspace(0.6, 1, 9, dtype=torch.float64) * phase
    coefficients = thin._coefficients(phases, r, 1)
    return (coefficients.t() @ thin._chebyshev(t, r, 1) - torch.outer(phases, t).sin()).abs().max().item()


def interpolation_error_at_rank_two(phase: float, share: float, nodes: Nodes) -> float:
    """Largest error of sin(α₁·t₁ + α₂·t₂) over t₁, t₂ in [−1, 1], with α₁ = share·phase and α₁ + α₂ = phase."""
    t = torch.cartesian_prod(*[torch.linspace(-1, 1, 31, dtype=torch.float64)] * 2).t()
    alpha = torch.tensor([[share], [1 - share]], dtype=torch.float64) * phase
    sine = thin._columns(thin._coefficients, alpha, nodes).t() @ thin._columns(thin._chebyshev, t, nodes)
    return (sine - (alpha.t() @ t).sin()).abs().max().item()


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_nodes_suffice_at_every_phase(dtype: torch.dtype):
    tolerance = select.TOLERANCE[dtype]
    phases = [*torch.linspace(0.05, 100, 300).tolist(), 1e-9, 250.0]
    for phase in phases:
        allowed = tolerance + phase * 1e-14  # rounding of the phases themselves
        assert interpolation_error(phase, nodes_for_phase(phase, dtype)) <= allowed, phase


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_nodes_suffice_at_rank_two(dtype: torch.dtype):
    def nodes(phase: float, share: float) -> Nodes:
        return nodes_for_phases(share * phase, phase, dtype, 2)

    tolerance = select.TOLERANCE[dtype]
    for phase in [*torch.linspace(0.05, 36, 60).tolist(), 1e-9]:
        for share in (0.5, 0.6, 0.75, 0.9, 0.99):
            error = interpolation_error_at_rank_two(phase, share, nodes(phase, share))
            assert error <= tolerance + phase * 1e-14, (phase, share)
    each, total = nodes(8.4, 0.5)
    assert interpolation_error_at_rank_two(8.4, 0.5, Nodes(each - 2, total)) > tolerance
    assert interpolation_error_at_rank_two(8.4, 0.5, Nodes(each, total - 2)) > tolerance


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_nodes_are_not_wasted(dtype: torch.dtype):
    # The bound behind the count is at most three nodes from the least number that would do.
    for phase in (0.5, 3.0, 12.0, 24.0, 48.0, 100.0):
        r = select._nodes(phase, select.TOLERANCE[dtype])
        assert r <= 3 or interpolation_error(phase, r - 3) > select.TOLERANCE[dtype], phase


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_nodes_grow_with_the_phase_in_multiples_of_eight(dtype: torch.dtype):
    counts = [nodes_for_phase(phase, dtype) for phase in torch.linspace(0, 120, 500).tolist()]
    assert counts == sorted(counts)
    assert all(count % 8 == 0 and count >= 8 for count in counts)


def test_node_counts_as_documented():
    assert [nodes_for_phase(phase, torch.float32) for phase in (6, 16, 28)] == [8, 16, 24]
    assert nodes_for_phase(1.0, torch.float64) == 8  # phases below a radian are scaled up to one
    assert nodes_for_phases(4.2, 8.4, torch.float32, rank=2) == (7, 10)
    assert nodes_for_phases(4.2, 8.4, torch.float32, rank=1) == (16, 16)
    assert Nodes(8, 8).columns(1) == 8
    for nodes, columns in [(Nodes(10, 10), 110), (Nodes(7, 10), 86), (Nodes(10, 16), 188)]:
        assert nodes.columns(2) == columns == 2 * len(thin._degree_pairs(nodes, torch.device("cpu"))[0])


def factors(phase: float, m: int = 256, n: int = 256, rank: int = 1) -> tuple[Tensor, Tensor]:
    """Factors with max_i Σ_a |u_ia|·max|v_a| = `phase`."""
    u, v = torch.rand(m, rank) - 0.5, torch.rand(n, rank) - 0.5
    return u / (u.abs() @ v.abs().amax(0)).max() * phase, v


def test_thin_up_to_break_even():
    # 256²: break-even at 0.6·128 = 76.8 nodes.
    assert thin_nodes(*factors(6.0), 1.0, torch.float32) == (8, 8)
    assert thin_nodes(*factors(3.0), 2.0, torch.float32) == (8, 8)  # ω counts
    largest = max(phase for phase in range(1, 200) if nodes_for_phase(phase * 1.01, torch.float32) <= 72)
    assert thin_nodes(*factors(largest), 1.0, torch.float32) == (72, 72)
    assert thin_nodes(*factors(largest + 3), 1.0, torch.float32) is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_formed_for_phases_that_are_not_finite(bad: float):
    for broken in (0, 1):
        pair = factors(1.0)
        pair[broken][3] = bad
        assert thin_nodes(*pair, 1.0, torch.float32) is None


def test_formed_where_thin_cannot_pay():
    assert thin_nodes(*factors(1.0, rank=3), 1.0, torch.float32) is None
    assert thin_nodes(*factors(1.0, m=16, n=16), 1.0, torch.float32) is None  # 0.6·8 < 8 nodes
    assert thin_nodes(*factors(1.0, m=2, n=4096), 1.0, torch.float32) is None
    assert thin_nodes(*factors(1e30), 1e30, torch.float32) is None
    assert thin_nodes(*(f.to("meta") for f in factors(1.0)), 1.0, torch.float32) is None
    assert thin_nodes(*(f.half() for f in factors(3.0)), 1.0, torch.float16) == (8, 8)


def test_rank_two_thin_where_its_columns_and_overhead_pay():
    def columns(phase: float, size: int, each: float = 0.5) -> int | None:
        u = torch.tensor([each, 1 - each]).repeat(size, 1) * phase
        nodes = thin_nodes(u, torch.ones(size, 2), 1.0, torch.float32)
        return None if nodes is None else nodes.columns(2)

    # 512²: (0.6·512² − 40,000)/1,024 = 114.5 columns.
    assert columns(8.4, 512) == 86
    assert columns(10.4, 512) == 108
    assert columns(12.0, 512) is None and nodes_for_phases(6, 12, torch.float32, 2).columns(2) == 132
    # 1,024²: 287.7 columns.
    assert columns(16.8, 1024) == 188
    assert columns(24.0, 1024) is None
    # One column with nearly all of the phase saves nothing: 16 and 16 nodes, 272 columns.
    assert columns(16.8, 1024, each=0.99) == 272
    # 256²: none.
    assert columns(0.1, 256) is None


def test_largest_phase_by_hand():
    u, v = torch.tensor([[1.0, -2.0], [-3.0, 0.5]]), torch.tensor([[0.5, 4.0], [-1.0, 1.0], [0.0, 0.0]])
    # b = [1, 4]; 2·(1·1 + 2·4) = 18, 2·(3·1 + 0.5·4) = 10
    assert select._largest_phases(u, v, 2.0) == (16, 18)
    assert select._largest_phases(u[:, :1], v[:, :1], 2.0) == (6, 6)
    # A column of zeros counts as a radian: b₂ = 1/(2·2), and the rows have 2·(1·1 + 2/4) = 3, 2·(3·1 + 0.5/4) = 6.25.
    assert select._largest_phases(u, v * torch.tensor([1.0, 0.0]), 2.0) == (6, 6.25)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_device_thin_needs_work_and_float32(dtype: torch.dtype):
    u, v = (f.to("meta") for f in factors(1.0, m=1000, n=1000))
    assert enough_work(u, v, 10_000, dtype) == (dtype is torch.float32)
    assert not enough_work(u, v, 9_999, dtype)
    assert enough_work(u, v, None, dtype)  # made once for many products
    assert enough_work(*factors(1.0), 1, dtype)  # the CPU

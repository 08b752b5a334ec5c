"""The hand-written sine layer: formed and thin agree with each other, with autograd and with hand-computed values."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sinelr_lightning.layers import SineLowRank, select, sine_ops
from sinelr_lightning.layers.select import Nodes, nodes_for_phases
from sinelr_lightning.layers.thin import _nodes_and_transform, thin_factors

from .families import loss_weights

M, N = 96, 80
OMEGA, GAIN = 30.0, 9.0


def reference(x: Tensor, u: Tensor, v: Tensor, bias: Tensor | None, omega=OMEGA, gain=GAIN) -> Tensor:
    return F.linear(x, torch.sin(omega * u @ v.t()) / gain, bias)


def formed(x, u, v, bias, omega=OMEGA, gain=GAIN) -> Tensor:
    return sine_ops._Formed.apply(x, u, v, bias, omega, gain)


def thin(x, u, v, bias, omega=OMEGA, gain=GAIN) -> Tensor:
    nodes = nodes_for_phases(*select._largest_phases(u, v, omega), x.dtype, rank=u.shape[1])
    return sine_ops._Thin.apply(x, u, v, bias, omega, gain, nodes)


def ways(y: Tensor) -> set[str]:
    """Names of the hand-written functions in the graph of y."""
    names, todo = set(), [y.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None:
            names.add(type(node).__name__)
            todo += [child for child, _ in node.next_functions]
    return names & {"_FormedBackward", "_ThinBackward"}


def random_factors(
    largest_phase: float, dtype=torch.float64, m: int = M, n: int = N, rank: int = 1
) -> tuple[Tensor, Tensor]:
    """Factors whose largest phase at `OMEGA` is the given one, of like size; the columns of v differ in size."""
    u, v = torch.rand(m, rank).double() * 2 - 1, torch.rand(n, rank).double() * 2 - 1
    v = v / torch.arange(1, rank + 1)
    scale = math.sqrt(largest_phase / OMEGA / (u.abs() @ v.abs().amax(0)).max())
    return (u * scale).to(dtype), (v * scale).to(dtype)


def value_and_gradients(way, x, u, v, bias) -> list[Tensor]:
    inputs = [t.detach().clone().requires_grad_() for t in (x, u, v, bias)]
    y = way(*inputs)
    return [y.detach(), *torch.autograd.grad((y * loss_weights(y)).sum(), inputs)]


@pytest.mark.parametrize("way", [formed, thin])
def test_hand_computed(way):
    # ω = π, g = 2:  phases π·[½, 1]·1, so W = sin/2 = [½, 0] and cos = [0, −1].
    u, v = torch.tensor([[0.5], [1.0]]).double(), torch.tensor([[1.0]]).double()
    x, bias = torch.tensor([[3.0]]).double(), torch.tensor([0.25, 1.0]).double()
    inputs = [t.requires_grad_() for t in (x, u, v, bias)]
    y = way(*inputs, math.pi, 2.0)
    torch.testing.assert_close(y, torch.tensor([[1.75, 1.0]]).double())
    # ∂L/∂y = [1, 1], ∂L/∂W = [3, 3]; ∂u = (π/2)·[0, −3]·v, ∂v = (π/2)·(0·½ − 3·1), ∂x = ½ + 0.
    y.sum().backward()
    torch.testing.assert_close(u.grad, torch.tensor([[0.0], [-1.5 * math.pi]]).double())
    torch.testing.assert_close(v.grad, torch.tensor([[-1.5 * math.pi]]).double())
    torch.testing.assert_close(x.grad, torch.tensor([[0.5]]).double())
    torch.testing.assert_close(bias.grad, torch.ones(2).double())


@pytest.mark.parametrize("way", [formed, thin])
def test_hand_computed_at_rank_two(way):
    # ω = π, g = 2:  phases π·[¼ + ¼, ¾ + ¼]·1, so again W = [½, 0] and cos = [0, −1].
    u, v = torch.tensor([[0.25, 0.25], [0.75, 0.25]]).double(), torch.ones(1, 2).double()
    x, bias = torch.tensor([[3.0]]).double(), torch.zeros(2).double()
    inputs = [t.requires_grad_() for t in (x, u, v, bias)]
    y = way(*inputs, math.pi, 2.0)
    torch.testing.assert_close(y, torch.tensor([[1.5, 0.0]]).double())
    # ∂L/∂W = [3, 3]; ∂u = (π/2)·[0, −3]·v in either column, ∂v = (π/2)·(−3)·[¾, ¼].
    y.sum().backward()
    torch.testing.assert_close(u.grad, torch.tensor([[0.0, 0.0], [-1.5, -1.5]]).double() * math.pi)
    torch.testing.assert_close(v.grad, torch.tensor([[-1.125, -0.375]]).double() * math.pi)


def test_thin_factors_of_a_small_weight():
    # ω·u·v = [[0.6, −0.3], [1.2, −0.6]]
    u, v = torch.tensor([[0.3], [0.6]]).double(), torch.tensor([[1.0], [-0.5]]).double()
    p, q = thin_factors(u, v, 2.0, 4.0, Nodes(8, 8), torch.float64)
    assert p.shape == q.shape == (8, 2)
    expected = torch.tensor([[0.564642, -0.295520], [0.932039, -0.564642]]).double() / 4
    torch.testing.assert_close(p.t() @ q, expected, rtol=0, atol=1e-6)


def test_thin_factors_of_a_small_weight_at_rank_two():
    # ω·u·vᵀ = 2·[[0.3 − 0.1, −0.15 + 0.2], [0.6 + 0.1, −0.3 − 0.2]] = [[0.4, 0.1], [1.4, −1.0]]
    u, v = torch.tensor([[0.3, -0.2], [0.6, 0.2]]).double(), torch.tensor([[1.0, 0.5], [-0.5, -1.0]]).double()
    p, q = thin_factors(u, v, 2.0, 4.0, Nodes(8, 8), torch.float64)
    assert p.shape == q.shape == (72, 2)
    expected = torch.tensor([[0.389418, 0.099833], [0.985450, -0.841471]]).double() / 4
    torch.testing.assert_close(p.t() @ q, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("rank", "phase"),
    [(1, phase) for phase in (0.01, 0.3, 2.0, 6.0, 12.0, 24.0, 48.0, 96.0)]
    + [(2, phase) for phase in (0.01, 0.3, 2.0, 8.5, 17.0, 34.0)],
)
@pytest.mark.parametrize(
    # Relative error (Frobenius norm) of the value and of each gradient at small phases; it grows as the nodes do,
    # most in the entries of v at ±max|v|.
    ("dtype", "limit"),
    [(torch.float64, 1e-12), (torch.float32, 2e-5), (torch.float16, 2e-3), (torch.bfloat16, 1e-2)],
    ids=str,
)
def test_thin_and_formed_equal_autograd(rank: int, phase: float, dtype: torch.dtype, limit: float):
    u, v = random_factors(phase, torch.float64 if dtype == torch.float64 else torch.float32, rank=rank)
    x, bias = torch.randn(64, N, dtype=dtype), torch.randn(M, dtype=dtype)
    exact = value_and_gradients(reference, x.double(), u.double(), v.double(), bias.double())
    for way in (formed, thin):
        for ours, expected in zip(value_and_gradients(way, x, u, v, bias), exact, strict=True):
            assert (ours.double() - expected).norm() / expected.norm() < limit * (1 + phase / 12), way.__name__


@pytest.mark.parametrize("rank", [2, 3, 8])
def test_formed_equals_autograd_at_higher_rank(rank: int):
    u, v = torch.randn(M, rank).double(), torch.randn(N, rank).double() / 9
    x, bias = torch.randn(7, N).double(), torch.randn(M).double()
    for ours, expected in zip(
        value_and_gradients(formed, x, u, v, bias), value_and_gradients(reference, x, u, v, bias), strict=True
    ):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("way", [formed, thin])
def test_gradients_by_differences(way, rank: int):
    # Once and twice: with create_graph=True backward is made of ordinary operations.
    u, v = random_factors(3.0, m=4, n=3, rank=rank)
    inputs = [t.requires_grad_() for t in (torch.randn(2, 3).double(), u, v, torch.randn(4).double())]
    # The node count is fixed here, so that it does not change between two differences.
    run = formed if way is formed else lambda x, u, v, b: sine_ops._Thin.apply(x, u, v, b, OMEGA, GAIN, Nodes(16, 16))
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


def test_chooses_thin_while_phases_allow_it_and_formed_beyond():
    x = torch.randn(3, N)
    for phase, expected in [(2.0, "_ThinBackward"), (20.0, "_ThinBackward"), (60.0, "_FormedBackward")]:
        u, v = random_factors(phase, torch.float32)
        y = sine_ops.sine_linear(x, u.requires_grad_(), v.requires_grad_(), None, OMEGA, GAIN)
        assert ways(y) == {expected}
        torch.testing.assert_close(y, reference(x, u, v, None), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("rank", "m", "n"), [(1, M, N), (2, 512, 600)])
def test_changes_to_formed_when_training_lets_the_phases_grow(rank: int, m: int, n: int):
    layer, x = SineLowRank(rank)(n, m), torch.randn(3, n)
    assert ways(layer(x)) == {"_ThinBackward"}
    with torch.no_grad():
        layer.U.mul_(20)
    assert ways(layer(x)) == {"_FormedBackward"}
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("zero", "dtype"),
    [(zero, torch.float32) for zero in ("u", "v", "both", "tiny")] + [("u", torch.float16), ("v", torch.float16)],
)
@pytest.mark.parametrize("rank", [1, 2])
def test_thin_keeps_gradients_at_zero_and_tiny_factors(zero: str, dtype: torch.dtype, rank: int):
    # At v = 0 the weight is zero and ∂L/∂v = (ω/g)·Gᵀ·u is not: phases must not be scaled by max|v| alone.
    u, v = random_factors(3.0, torch.float32, rank=rank)
    if zero == "tiny":
        u, v = u * 1e-5, v * 1e-5
    else:
        u = u * 0 if zero in ("u", "both") else u
        v = v * 0 if zero in ("v", "both") else v
    x, bias = torch.randn(5, N, dtype=dtype), torch.zeros(M, dtype=dtype)
    exact = value_and_gradients(reference, x.double(), u.double(), v.double(), bias.double())
    ours = value_and_gradients(thin, x, u, v, bias)
    for value, expected in zip(ours[2:4], exact[2:4], strict=True):  # of u and v
        assert value.isfinite().all()
        assert (value.double() - expected).norm() <= 6e-3 * expected.norm()
    if dtype == torch.float32:
        for value, expected in zip(ours, exact, strict=True):
            assert (value.double() - expected).norm() <= 1e-4 * expected.norm() + 1e-12


def test_thin_keeps_the_gradient_of_one_zero_column():
    u, v = random_factors(8.0, rank=2)
    v[:, 1] = 0
    x, bias = torch.randn(5, N).double(), torch.zeros(M).double()
    for value, expected in zip(
        value_and_gradients(thin, x, u, v, bias), value_and_gradients(reference, x, u, v, bias), strict=True
    ):
        torch.testing.assert_close(value, expected)


def test_huge_frequency():
    layer, x = SineLowRank(rank=1, frequency=1e6)(N, M), torch.randn(3, N)
    y = layer(x)
    assert ways(y) == {"_FormedBackward"}
    torch.testing.assert_close(y, F.linear(x, layer.weight, layer.bias), rtol=1e-3, atol=1e-3)
    y.sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


def test_thin_stays_in_range_in_half_precision():
    # Activations of hundreds at 4,096 inputs: x·Q would pass 65,504 without the gain on either side.
    u, v = random_factors(6.0, torch.float16, m=32, n=4096)
    x = torch.full((2, 4096), 150.0, dtype=torch.float16)
    y = thin(x * v[:, 0].sign(), u, v, torch.zeros(32, dtype=torch.float16), OMEGA, 64.0)
    expected = reference((x * v[:, 0].sign()).double(), u.double(), v.double(), None, OMEGA, 64.0)
    assert y.isfinite().all()
    assert (y.double() - expected).norm() < 1e-2 * expected.norm()


def test_repeated_by_a_checkpoint():
    layer, x = SineLowRank(rank=1)(N, M), torch.randn(3, N, requires_grad=True)
    expected = torch.autograd.grad(layer(x).square().sum(), layer.U)[0]
    for reentrant in (False, True):
        y = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=reentrant)
        layer.U.grad = None
        y.square().sum().backward()
        torch.testing.assert_close(layer.U.grad, expected)


def test_constants_of_inference_mode_serve_training():
    _nodes_and_transform.cache_clear()
    layer, x = SineLowRank(rank=1)(N, M), torch.randn(3, N)
    with torch.inference_mode():
        layer(x)
    with torch.device("meta"):  # a default device must not reach the constants
        y = layer(x)
    y.sum().backward()
    assert ways(y) == {"_ThinBackward"}
    assert layer.V.grad.abs().max() > 0

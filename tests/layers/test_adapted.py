"""A frozen weight with an update on top, against hand-computed values and ordinary autograd."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from sinelr_lightning.layers import Factorization, SineLowRank, adapted

from .families import every_family, kept, loss_weights, relative_error

M, N, OMEGA, GAIN, SCALE = 12, 10, 30.0, 3.0, 0.7

SINE = SineLowRank(2, frequency=OMEGA, gain=GAIN)


def default_linear(factorization: Factorization):
    """What a family without `adapted_linear` of its own has."""
    return lambda *a, **k: Factorization.adapted_linear(factorization, *a, **k)


both_ways = pytest.mark.parametrize("linear", [SINE.adapted_linear, default_linear(SINE)], ids=["sine", "default"])


def formula(x, base, bias, scale, u, v, magnitude=None, omega=OMEGA, gain=GAIN) -> Tensor:
    """As in the papers, by autograd; the norm counts as a constant (DoRA, section 4.3)."""
    weight = base + scale * torch.sin(omega * u @ v.t()) / gain
    if magnitude is not None:
        weight = weight * (magnitude / weight.norm(dim=1).detach())[:, None]
    return F.linear(x, weight, bias)


def example(bias: bool, magnitude: bool, dtype=torch.float64, m=M, n=N, rank=2, rows=(2, 3)) -> dict[str, Tensor]:
    made = {
        "x": torch.randn(*rows, n),
        "base": torch.randn(m, n),
        "bias": torch.randn(m) if bias else None,
        "u": torch.randn(m, rank) / 3,
        "v": torch.randn(n, rank) / 3,
        "magnitude": torch.rand(m) + 1 if magnitude else None,
    }
    return {name: None if t is None else t.to(dtype).requires_grad_() for name, t in made.items()}


def run(linear, t: dict[str, Tensor], scale=SCALE) -> Tensor:
    return linear(t["x"], t["base"], t["bias"], scale, t["u"], t["v"], magnitude=t["magnitude"])


def value_and_gradients(y: Tensor, t: dict[str, Tensor]) -> list[Tensor]:
    inputs = [value for value in t.values() if value is not None and value.requires_grad]
    return [y.detach(), *torch.autograd.grad((y * loss_weights(y)).sum(), inputs)]


def double(*rows: list[float]) -> Tensor:
    return torch.tensor(rows).double()


# W₀ = [1, 2], ω = π, g = 2, s = 3: phases π·[½, 1], so the update is 3·[1, 0]/2 and the whole weight [2½, 2], with
# cos = [0, −1]. At x = 3 and ∂L/∂y = [1, 1], ∂L/∂W = [3, 3].
@pytest.mark.parametrize("magnitude", [False, True], ids=["", "magnitude"])
@both_ways
def test_hand_computed(linear, magnitude: bool):
    factorization = SineLowRank(1, frequency=math.pi, gain=2.0)
    linear = factorization.adapted_linear if linear == SINE.adapted_linear else default_linear(factorization)
    t = {"x": double([3.0]), "base": double([1.0], [2.0]), "bias": double([0.25, 1.0])[0]}
    t |= {"u": double([0.5], [1.0]), "v": double([1.0]), "magnitude": double([5.0, 4.0])[0] if magnitude else None}
    for value in t.values():
        _ = None if value is None else value.requires_grad_()
    y = run(linear, t, scale=3.0)
    y.sum().backward()
    # The magnitudes 5 and 4 double both rows. Were the norm no constant, neither factor would have a gradient.
    twice = 2.0 if magnitude else 1.0
    torch.testing.assert_close(y, double([twice * 7.5 + 0.25, twice * 6 + 1]))
    torch.testing.assert_close(t["x"].grad, double([twice * 4.5]))
    torch.testing.assert_close(t["base"].grad, double([twice * 3], [twice * 3]))
    torch.testing.assert_close(t["bias"].grad, double([1.0, 1.0])[0])
    torch.testing.assert_close(t["u"].grad, double([0.0], [-twice * 4.5 * math.pi]))
    torch.testing.assert_close(t["v"].grad, double([-twice * 4.5 * math.pi]))
    if magnitude:
        torch.testing.assert_close(t["magnitude"].grad, double([3.0, 3.0])[0])


@both_ways
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("magnitude", [True, False], ids=["magnitude", ""])
@pytest.mark.parametrize("scale", [SCALE, torch.tensor(SCALE).double()], ids=["number", "tensor"])
def test_equals_autograd(linear, bias: bool, magnitude: bool, scale):
    t = example(bias, magnitude)
    expected = value_and_gradients(run(formula, t, scale), t)
    for ours, reference in zip(value_and_gradients(run(linear, t, scale), t), expected, strict=True):
        torch.testing.assert_close(ours, reference)


@pytest.mark.parametrize("lead", [(), (0,), (2, 0, 3)], ids=str)
def test_any_leading_shape(lead: tuple[int, ...]):
    t = example(True, True, rows=lead)
    for ours, reference in zip(
        value_and_gradients(run(SINE.adapted_linear, t), t), value_and_gradients(run(formula, t), t), strict=True
    ):
        torch.testing.assert_close(ours, reference)


@pytest.mark.parametrize("frozen", ["x", "base", "bias", "u", "v", "magnitude"])
def test_partly_frozen(frozen: str):
    t = example(True, True)
    t[frozen].requires_grad_(False)
    for ours, reference in zip(
        value_and_gradients(run(SINE.adapted_linear, t), t), value_and_gradients(run(formula, t), t), strict=True
    ):
        torch.testing.assert_close(ours, reference)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_gradients_by_differences(bias: bool):
    t = example(bias, False, m=3, n=4, rows=(2,))
    inputs = [value for value in t.values() if value is not None]

    def through(x: Tensor, base: Tensor, *rest: Tensor) -> Tensor:
        return SINE.adapted_linear(x, base, rest[0] if bias else None, SCALE, *rest[-2:])

    assert torch.autograd.gradcheck(through, inputs)
    assert torch.autograd.gradgradcheck(through, inputs)


def test_second_gradients_with_magnitude():
    # The norm counts as a constant in the first gradient, so differences cannot check it.
    t = example(True, True)
    inputs = [t["u"], t["v"], t["magnitude"], t["base"]]

    def second(linear) -> tuple[Tensor, ...]:
        first = torch.autograd.grad(run(linear, t).square().sum(), [t["x"], *inputs], create_graph=True)
        return torch.autograd.grad(sum(grad.square().sum() for grad in first), inputs)

    for ours, reference in zip(second(SINE.adapted_linear), second(formula), strict=True):
        torch.testing.assert_close(ours, reference)


@every_family
@pytest.mark.parametrize("magnitude", [True, False], ids=["magnitude", ""])
@pytest.mark.parametrize("way", ["own", "default"])
def test_every_family(family: Factorization, magnitude: bool, way: str):
    t = example(True, magnitude)
    factors = [f.double() if f.is_floating_point() else f for f in family.factors(M, N).values()]
    t = {name: value for name, value in t.items() if name not in ("u", "v")}
    t |= {f"factor {i}": f.requires_grad_() for i, f in enumerate(factors) if f.is_floating_point()}
    linear = family.adapted_linear if way == "own" else default_linear(family)
    weight = t["base"] + SCALE * family.weight(*factors)
    if magnitude:
        weight = weight * (t["magnitude"] / weight.norm(dim=1).detach())[:, None]
    torch.testing.assert_close(family.adapted(t["base"], SCALE, *factors, magnitude=t["magnitude"]), weight)
    expected = value_and_gradients(F.linear(t["x"], weight, t["bias"]), t)
    y = linear(t["x"], t["base"], t["bias"], SCALE, *factors, magnitude=t["magnitude"])
    t = {name: value for name, value in t.items() if value is not None}
    for ours, reference in zip(value_and_gradients(y, t), expected, strict=True):
        torch.testing.assert_close(ours, reference)


# ------------------------------------------------------------------------------------------------------- memory


class Watch(TorchDispatchMode):
    """Counts tensors of at least `size` elements that were made inside and are still alive, also within a graph."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.made = size, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **kwargs or {})
        for t in result if isinstance(result, tuple | list) else [result]:
            if isinstance(t, Tensor) and t.numel() >= self.size:
                self.made.append(StorageWeakRef(t.untyped_storage()))
        return result

    def alive(self, known: Tensor) -> int:
        return len({ref.cdata for ref in self.made if not ref.expired()} - {known.untyped_storage()._cdata})


@both_ways
@pytest.mark.parametrize("magnitude", [True, False], ids=["magnitude", ""])
def test_keeps_nothing_of_the_size_of_the_weight(linear, magnitude: bool):
    m, n = 96, 128
    t = example(True, magnitude, m=m, n=n, rows=(4,))
    t["base"].requires_grad_(False)

    def largest(way) -> list[int]:
        with Watch(m * n) as watch:
            y = run(way, t)
        assert y.grad_fn is not None
        return [watch.alive(t["base"]), *[size for size in kept(lambda: run(way, t)) if size >= m * n]]

    assert largest(formula)[0] > 0  # what is to be avoided, and that the count sees it
    assert largest(linear) in ([0], [0, m * n])  # the base weight lives anyway


def test_makes_no_gradient_of_a_frozen_base(monkeypatch: pytest.MonkeyPatch):
    made = []
    gradients = adapted._gradients
    monkeypatch.setattr(adapted, "_gradients", lambda *a: made.append(gradients(*a)) or made[-1])
    for frozen in (True, False):
        t = example(True, True)
        t["base"].requires_grad_(not frozen)
        run(SINE.adapted_linear, t).sum().backward()
        assert (t["base"].grad is None) is (made[-1][1] is None) is frozen


# ---------------------------------------------------------------------------------------------------- precision


def test_half_precision_factors_keep_the_phase():
    k, n = 8, 64
    sine = SineLowRank(k, frequency=200, gain=1.0)
    u, v = (f.bfloat16() for f in sine.factors(M * 4, n).values())
    u = u * 8  # trained: phases of up to 300 rad
    exact = torch.sin(200 * u.double() @ v.double().t())
    base = torch.zeros(M * 4, n)
    ours = sine.adapted_linear(torch.eye(n), base, None, 1.0, u, v).t()
    assert ours.dtype == torch.float32
    assert relative_error(ours, exact) < 1e-5
    assert relative_error(sine.adapted(base.bfloat16(), 1.0, u, v), exact) < 1e-5
    assert relative_error(torch.sin(200 * (u @ v.t())), exact) > 0.1  # with phases in half precision


@both_ways
@pytest.mark.parametrize("magnitude", [True, False], ids=["magnitude", ""])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_equals_a_weight_rounded_once(linear, magnitude: bool, dtype: torch.dtype):
    t = example(True, magnitude, dtype=dtype)
    wide = {name: None if value is None else value.detach().float() for name, value in t.items()}
    weight = SINE.adapted(wide["base"], SCALE, wide["u"], wide["v"], magnitude=wide["magnitude"]).to(dtype)
    ours = value_and_gradients(run(linear, t), t)
    torch.testing.assert_close(ours[0], F.linear(t["x"], weight, t["bias"]), rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(run(linear, t | {"x": torch.eye(N, dtype=dtype), "bias": None}), weight.t())
    assert {value.dtype for value in ours} == {dtype}


@both_ways
@pytest.mark.parametrize("magnitude", [True, False], ids=["magnitude", ""])
def test_autocast(linear, magnitude: bool):
    t = example(True, magnitude, dtype=torch.float32, m=48, n=64)
    t["u"].data.mul_(7)  # phases of up to 100 rad
    exact = {name: None if value is None else value.detach().double().requires_grad_() for name, value in t.items()}
    with torch.autocast("cpu", torch.bfloat16):
        y = run(linear, t)
        weight = run(linear, t | {"x": torch.eye(64), "bias": None}).t()
    whole = run(formula, exact | {"x": torch.eye(64).double(), "bias": None}).t()
    assert y.dtype == weight.dtype == torch.bfloat16
    assert relative_error(weight, whole) < 2**-8
    ours, reference = value_and_gradients(y, t), value_and_gradients(run(formula, exact), exact)
    for value, expected in zip(ours, reference, strict=True):
        assert relative_error(value, expected) < 1.5e-2
    assert {value.dtype for value in ours[1:]} == {torch.float32}


@pytest.mark.parametrize("magnitude", [True, False], ids=["magnitude", ""])
@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "plain"])
def test_compiled_equals(magnitude: bool, autocast: bool):
    t = example(True, magnitude, dtype=torch.float32)
    compiled = torch.compile(lambda **t: run(SINE.adapted_linear, t), fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ours, reference = compiled(**t), run(SINE.adapted_linear, t)
    assert ours.dtype == reference.dtype
    for value, expected in zip(value_and_gradients(ours, t), value_and_gradients(reference, t), strict=True):
        assert relative_error(value, expected.double()) < (1.5e-2 if autocast else 1e-5)

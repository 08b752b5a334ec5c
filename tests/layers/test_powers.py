"""Sine adapters by thin products: the polynomial of the phases, when it is taken, and that it changes nothing."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from sinelr_lightning.layers import SineLowRank, powers
from sinelr_lightning.layers.powers import enough_degree, power_columns, power_factors
from sinelr_lightning.layers.select import TOLERANCE

from .families import relative_error
from .test_adapted import Watch, formula, run, value_and_gradients

OMEGA = 60.0
degrees = pytest.mark.parametrize("degree", powers._DEGREES)
types = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


def factors(m: int, n: int, rank: int, bound: float, dtype=torch.float64) -> tuple[Tensor, Tensor]:
    """Factors whose phases are at most `bound`, by the product of their longest rows."""
    u, v = torch.randn(m, rank, dtype=dtype), torch.randn(n, rank, dtype=dtype) / n**0.5
    return u * (bound / OMEGA / u.norm(dim=1).amax() / v.norm(dim=1).amax()), v


def small(rows=(2, 3), m=320, n=256, rank=3, bound=0.2, dtype=torch.float32, base_dtype=None) -> dict[str, Tensor]:
    u, v = factors(m, n, rank, bound, dtype)
    t = {"x": torch.randn(*rows, n), "base": torch.randn(m, n) / n**0.5, "bias": torch.randn(m), "u": u, "v": v}
    t = {name: value.to(dtype).requires_grad_() for name, value in t.items()}
    t["base"] = t["base"].detach().to(base_dtype or dtype)
    return t | {"magnitude": None}


SINE = SineLowRank(3, frequency=OMEGA, gain=30.0)


def exact(t: dict[str, Tensor]) -> list[Tensor]:
    wide = {name: None if v is None else v.detach().double().requires_grad_(v.requires_grad) for name, v in t.items()}
    y = formula(*[wide[name] for name in ("x", "base", "bias")], 0.7, wide["u"], wide["v"], omega=OMEGA, gain=30.0)
    return value_and_gradients(y, wide)


# ------------------------------------------------------------------------------------------------- the polynomial


@degrees
@types
def test_within_the_tolerance_up_to_its_reach(dtype: torch.dtype, degree: int):
    reach, coefficients = powers._polynomial(degree, dtype)
    phases = torch.linspace(-reach, reach, 1001, dtype=torch.float64)
    value = sum(c * phases ** (2 * i + 1) for i, c in enumerate(coefficients))
    assert (value - phases.sin()).abs().max() <= 1.02 * TOLERANCE[dtype] * min(1, reach)
    taylor = [(-1) ** i / math.factorial(2 * i + 1) for i in range(len(coefficients))]
    torch.testing.assert_close(coefficients, taylor, rtol=0.3, atol=0.0)


@types
def test_a_higher_degree_reaches_further(dtype: torch.dtype):
    reaches = [powers._polynomial(degree, dtype)[0] for degree in powers._DEGREES]
    assert reaches == sorted(reaches) and len(set(reaches)) == len(reaches)


# By hand: (u₁v₁ + u₂v₂)³ has the monomials of u 1, 2, 4, 8 and of v 27, 45, 75, 125, with 1, 3, 3, 1 of each.
def test_monomials_by_hand():
    indices, multinomials = powers._monomials(2, 3, torch.device("cpu"))
    assert multinomials.tolist() == [1, 3, 3, 1]
    assert powers._products(torch.tensor([[1.0], [2.0]]), indices).flatten().tolist() == [1, 2, 4, 8]
    assert powers._products(torch.tensor([[3.0], [5.0]]), indices).flatten().tolist() == [27, 45, 75, 125]
    assert 27 + 3 * 2 * 45 + 3 * 4 * 75 + 8 * 125 == (1 * 3 + 2 * 5) ** 3


@degrees
@pytest.mark.parametrize("rank", [1, 2, 5])
def test_columns(rank: int, degree: int):
    p, q = power_factors(torch.randn(7, rank), torch.randn(9, rank), 1.0, degree, torch.float32)
    assert p.shape == (power_columns(rank, degree), 7) and q.shape == (power_columns(rank, degree), 9)
    products = [one for d in range(1, degree + 1, 2) for one in itertools.product(range(rank), repeat=d)]
    assert len(p) == len([one for one in products if [*one] == sorted(one)])


@degrees
@types
@pytest.mark.parametrize("rank", [1, 3, 4])
def test_product_is_the_sine(dtype: torch.dtype, degree: int, rank: int):
    u, v = factors(30, 40, rank, powers._polynomial(degree, dtype)[0])
    p, q = power_factors(u, v, OMEGA, degree, dtype)
    assert p.dtype == q.dtype == dtype
    difference = (p.double().t() @ q.double() - torch.sin(OMEGA * u @ v.t())).abs().max()
    # Columns in half precision are rounded besides: relative to the phases, which are at most their bound.
    rounding = 4 * torch.finfo(dtype).eps * float((OMEGA * u @ v.t()).abs().max()) * rank
    assert difference <= TOLERANCE[dtype] + rounding


# ------------------------------------------------------------------------------------------------------ the choice


def test_the_least_degree_that_reaches():
    for degree in (1, 3, 5):
        reach = powers._polynomial(degree, torch.float32)[0]
        assert enough_degree(*factors(600, 600, 3, 0.99 * reach), OMEGA, torch.float32, 64) == degree
    assert enough_degree(*factors(600, 600, 3, 3.0), OMEGA, torch.float32, 64) is None


def test_only_where_it_is_cheaper():
    u, v = factors(200, 100, 8, 0.1)  # 128 columns of 300 beside 20,000
    assert enough_degree(u, v, OMEGA, torch.float32, 64) is None
    assert enough_degree(u[:, :2], v[:, :2], OMEGA, torch.float32, 64) == 3
    assert enough_degree(*factors(2000, 1000, 8, 0.1), OMEGA, torch.float32, 64) == 3


def test_not_for_phases_that_are_no_numbers():
    u, v = factors(600, 600, 2, 0.1)
    u[3, 1] = math.nan
    assert enough_degree(u, v, OMEGA, torch.float32, 64) is None
    assert enough_degree(u.to("meta"), v.to("meta"), OMEGA, torch.float32, 64) is None


# ----------------------------------------------------------------------------------------------------- the product


@pytest.fixture
def thin(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The degrees that were taken."""
    taken: list[int] = []
    real = powers.power_factors
    monkeypatch.setattr(powers, "power_factors", lambda *a: taken.append(a[3]) or real(*a))
    return taken


@pytest.mark.parametrize("bound", [0.0, 0.2, 0.8])
@pytest.mark.parametrize("rows", [(), (0,), (2, 3)], ids=str)
def test_equals_the_formula(thin: list[int], bound: float, rows: tuple[int, ...]):
    t = small(rows=rows, bound=bound)
    for ours, reference in zip(value_and_gradients(run(SINE.adapted_linear, t), t), exact(t), strict=True):
        assert (ours - reference).norm() <= 1e-4 * reference.norm()
    assert thin


@pytest.mark.parametrize("bias", [True, False], ids=["bias", ""])
def test_without_a_base_too(thin: list[int], bias: bool):
    t = small(bound=0.3)
    t = {name: t[name] for name in ("x", "bias", "u", "v")} | ({} if bias else {"bias": None})
    inputs = {name: None if value is None else value.detach().double().requires_grad_() for name, value in t.items()}
    weight = torch.sin(OMEGA * inputs["u"] @ inputs["v"].t()) / 30
    expected = value_and_gradients(torch.nn.functional.linear(inputs["x"], weight, inputs["bias"]), inputs)
    ours = value_and_gradients(SINE.linear(t["x"], t["bias"], t["u"], t["v"]), t)
    for value, reference in zip(ours, expected, strict=True):
        assert (value - reference).norm() <= 1e-4 * reference.norm()
    assert thin


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(thin: list[int], dtype: torch.dtype):
    t = small(bound=0.5, dtype=dtype)
    ours = value_and_gradients(run(SINE.adapted_linear, t), t)
    assert {value.dtype for value in ours} == {dtype} and thin
    for value, reference in zip(ours, exact(t), strict=True):
        assert relative_error(value, reference) < 2e-2


def test_updates_below_the_rounding_of_a_half_precision_base_count(thin: list[int]):
    t = small(rows=(64,), bound=1e-4, dtype=torch.bfloat16)
    whole = SINE.adapted(t["base"], 0.7, t["u"], t["v"])
    assert relative_error(whole.bfloat16() - t["base"], 0.7 * SINE.weight(t["u"], t["v"])) > 0.5  # lost in the sum
    # On rows that the base maps to zero the update is all that is seen.
    blind = torch.zeros_like(t["base"])
    update = SINE.adapted_linear(t["x"], blind, None, 0.7, t["u"], t["v"])
    assert relative_error(update, t["x"].float() @ (0.7 * SINE.weight(t["u"], t["v"])).t()) < 2e-2 and thin


def test_second_gradients(thin: list[int]):
    t = small(rows=(2,), m=40, n=36, rank=1, dtype=torch.float64)
    sine = SineLowRank(1, frequency=OMEGA, gain=30.0)
    inputs = [t["x"], t["u"], t["v"]]
    through = lambda x, u, v: sine.adapted_linear(x, t["base"], None, 0.7, u, v)  # noqa: E731
    assert torch.autograd.gradcheck(through, inputs) and torch.autograd.gradgradcheck(through, inputs)
    assert thin


def test_keeps_nothing_of_the_size_of_the_weight(thin: list[int]):
    t = small(rows=(4,))
    with Watch(t["base"].numel()) as watch:
        y = run(SINE.adapted_linear, t)
    assert y.grad_fn is not None and watch.alive(t["base"]) == 0 and thin


def test_whole_weight_for_a_magnitude_and_for_another_type(thin: list[int]):
    t = small(base_dtype=torch.bfloat16)
    run(SINE.adapted_linear, t)
    t = small() | {"magnitude": torch.ones(320)}
    run(SINE.adapted_linear, t)
    with torch.autocast("cpu", torch.bfloat16):
        run(SINE.adapted_linear, small())
    assert thin == []
    with torch.autocast("cpu", torch.bfloat16):
        assert run(SINE.adapted_linear, small(base_dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert thin

"""What every family of factorizations promises; a new family is tested by existing."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sinelr_lightning.layers import Factorization, FactorizedLinear, SineLowRank, cached_weights, fold, summarize

from .families import (
    PACKAGE_FAMILIES,
    M,
    N,
    every_family,
    float_factors,
    gradients,
    kept,
    loss_weights,
    relative_error,
    strained,
)
from .test_sine_ops import ways

pytestmark = pytest.mark.usefixtures("thin_at_rank_two")


def test_discovers_the_families():
    assert {"LowRank", "SineLowRank"} <= {family.__name__ for family in PACKAGE_FAMILIES}


def test_sines_of_rank_one_and_two_run_thin_here():
    for rank in (1, 2):
        assert ways(SineLowRank(rank)(N, M)(torch.randn(3, N))) == {"_ThinBackward"}
    assert ways(SineLowRank(3)(N, M)(torch.randn(3, N))) == {"_FormedBackward"}


def plain(layer: FactorizedLinear):
    """The layer by ordinary autograd through its weight."""
    return lambda x: F.linear(x, layer.weight, layer.bias)


# ------------------------------------------------------------------------------------------- values and gradients


@every_family
@pytest.mark.parametrize("lead", [(), (3,), (2, 3), (0,), (2, 0, 3)], ids=str)
def test_any_leading_shape(family: Factorization, lead: tuple[int, ...]):
    layer = family(N, M)
    x = torch.randn(*lead, N)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias), rtol=1e-4, atol=1e-5)
    assert layer(x).shape == (*lead, M)
    for ours, reference in zip(gradients(layer, x), gradients(layer, x, plain(layer)), strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-4)


@every_family
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_non_contiguous_input(family: Factorization, bias: bool):
    layer = family(N, M, bias=bias)
    assert (layer.bias is not None) is bias
    x = torch.randn(N, 5).t()
    for ours, reference in zip(gradients(layer, x), gradients(layer, x, plain(layer)), strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-4)


@every_family
def test_gradients_by_differences(family: Factorization):
    m, n = 5, 6
    layer = family(n, m).double()
    factors = layer.factors()
    trainable = tuple(f.detach().requires_grad_() for f in factors if f.is_floating_point())

    def with_constants(values: tuple[Tensor, ...]) -> list[Tensor]:
        values = iter(values)
        return [next(values) if f.is_floating_point() else f for f in factors]

    x, bias = torch.randn(3, n).double().requires_grad_(), torch.randn(m).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda *f: family.weight(*with_constants(f)), trainable)
    assert torch.autograd.gradcheck(lambda x, b, *f: family.linear(x, b, *with_constants(f)), (x, bias, *trainable))


@every_family
def test_double_backward_is_right_or_refused(family: Factorization):
    layer = family(6, 5).double()
    x = torch.randn(3, 6).double().requires_grad_()

    def second(forward) -> Tensor:
        (grad_x,) = torch.autograd.grad(forward(x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(grad_x.square().sum(), float_factors(layer)[0])[0]

    reference = second(plain(layer))
    try:
        ours = second(layer)
    except RuntimeError as error:
        assert "differentiat" in str(error)
    else:
        torch.testing.assert_close(ours, reference)


@every_family
def test_starts_at_zero_with_a_gradient(family: Factorization):
    values = [f.requires_grad_(f.is_floating_point()) for f in family.factors(M, N, zero=True).values()]
    weight = family.weight(*values)
    assert torch.count_nonzero(weight) == 0
    gradient = torch.autograd.grad((weight * torch.randn(M, N)).sum(), [v for v in values if v.requires_grad])
    assert max(g.abs().max() for g in gradient) > 1e-3


@every_family
def test_partly_frozen(family: Factorization):
    layer, x = family(N, M), torch.randn(4, N)
    reference = gradients(layer, x)
    layer(x).backward(torch.ones(4, M))  # x needs no gradient
    assert all(p.grad is not None for p in layer.parameters())
    layer.requires_grad_(False)
    x.requires_grad_()
    layer(x).backward(loss_weights(torch.empty(4, M)))
    torch.testing.assert_close(x.grad, reference[1], rtol=1e-4, atol=1e-5)
    last = float_factors(layer)[-1].requires_grad_()
    last.grad = None
    layer(x.detach()).backward(loss_weights(torch.empty(4, M)))
    torch.testing.assert_close(last.grad, reference[2:][len(float_factors(layer)) - 1], rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------------- memory


@every_family
def test_keeps_nothing_of_the_size_of_the_weight(family: Factorization, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()  # the way that a layer of this size takes by itself
    m, n, batch = 96, 128, 8
    layer, x = family(n, m), torch.randn(batch, n, requires_grad=True)
    assert max(kept(lambda: plain(layer)(x))) >= m * n  # what is to be avoided, and that the count sees it
    ours = kept(lambda: layer(x))
    assert max(ours, default=0) < m * n / 4
    results = 2 * batch * m  # of parts that are added
    assert sum(ours) <= x.numel() + sum(f.numel() for f in layer.factors()) + results + m * n / 4


# ---------------------------------------------------------------------------------------------------- precision


@every_family
@pytest.mark.parametrize(("dtype", "limit"), [(torch.bfloat16, 1.5e-2), (torch.float16, 5e-3)], ids=str)
def test_half_precision_keeps_the_phase(family: Factorization, dtype: torch.dtype, limit: float):
    layer = strained(family)(64, M).to(dtype)
    exact = copy.deepcopy(layer).double()  # the same rounded factors
    x = torch.randn(5, 64, dtype=dtype)
    weight = layer.factorization.weight(*layer.factors())
    assert weight.dtype == torch.float32
    assert relative_error(weight, exact.weight) < 1e-4
    ours, reference = gradients(layer, x), gradients(exact, x.double(), plain(exact))
    assert ours[0].dtype == dtype
    for value, expected in zip(ours, reference, strict=True):
        assert relative_error(value, expected) < limit


@every_family
def test_autocast_keeps_the_phase(family: Factorization):
    layer = strained(family)(64, M)
    exact = copy.deepcopy(layer).double()
    x = torch.randn(5, 64)

    def under_autocast(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return layer(x)

    ours, reference = gradients(layer, x, under_autocast), gradients(exact, x.double(), plain(exact))
    assert ours[0].dtype == torch.bfloat16
    assert all(g.dtype == torch.float32 for g in ours[1:])
    for value, expected in zip(ours, reference, strict=True):
        assert relative_error(value, expected) < 1.5e-2


@every_family
@pytest.mark.parametrize("factor_dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
def test_the_input_decides_the_type(family, factor_dtype, x_dtype, autocast):
    layer = family(N, M).to(factor_dtype)
    x = torch.randn(3, N, dtype=x_dtype, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = layer(x)
    assert y.dtype == (torch.bfloat16 if autocast and x_dtype != torch.float64 else x_dtype)
    y.sum().backward()
    assert x.grad.dtype == x_dtype
    assert all(p.grad.dtype == factor_dtype and p.grad.isfinite().all() for p in layer.parameters())


@every_family
def test_refuses_what_it_cannot_multiply(family: Factorization):
    layer = family(N, M)
    with pytest.raises(TypeError, match=r"floating-point input, got torch\.int64"):
        layer(torch.ones(2, N, dtype=torch.long))
    with pytest.raises(ValueError, match=rf"\[\.\.\., {N}\], got \[2, {N - 1}\]"):
        layer(torch.ones(2, N - 1))
    with pytest.raises(ValueError, match=r"got \[\]"):
        layer(torch.ones(()))


# ------------------------------------------------------------------------------------------------------- serving


@every_family
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_folded_and_cached_equal(family: Factorization, bias: bool):
    model, x = nn.Sequential(family(N, M, bias=bias)).eval(), torch.randn(3, N)
    reference = model(x)
    with cached_weights(model):
        before = model[0]._served
        with torch.no_grad():
            torch.testing.assert_close(model(x), reference, rtol=1e-4, atol=1e-5)
            for f in float_factors(model[0]):
                f.add_(1)
            if before and all(s.data_ptr() not in {f.data_ptr() for f in model[0].factors()} for s in before):
                torch.testing.assert_close(model(x), reference, rtol=1e-4, atol=1e-5)  # constants, as asked for
            for f in float_factors(model[0]):
                f.sub_(1)
        assert model(x).grad_fn is not None  # gradients still reach the factors
    assert model[0]._served is None
    with torch.inference_mode():
        torch.testing.assert_close(model(x), reference, rtol=1e-4, atol=1e-5)
    folded = fold(model)
    assert type(folded[0]) is nn.Linear
    torch.testing.assert_close(folded(x), reference, rtol=1e-4, atol=1e-5)


@every_family
def test_counts(family: Factorization):
    layer = family(N, M)
    numel = sum(f.numel() for f in float_factors(layer))
    assert family.count(M, N) == numel
    summary = summarize(nn.ModuleDict({"a": layer}))
    assert (summary.layers[0].name, summary.layers[0].parameters) == ("a", numel)
    assert (summary.parameters, summary.dense_parameters) == (numel + M, N * M + M)


@every_family
def test_fits_a_weight_of_its_own(family: Factorization):
    target = family.weight(*family.factors(M, N).values())

    def error(steps: int) -> float:
        torch.manual_seed(1)
        fitted, factors = family.fit(target, steps=steps)
        assert type(fitted) is type(family)
        return relative_error(fitted.weight(*factors.values()), target.double())

    fresh = relative_error(family.weight(*family.factors(M, N).values()), target.double())
    start, end = error(0), error(200)
    assert end <= start < 1 + 1e-6  # no worse than a weight of zeros
    assert end < 0.8 or end < 0.8 * fresh

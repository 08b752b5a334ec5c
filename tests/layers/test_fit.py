import copy
import dataclasses
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sinelr_lightning.layers import (
    ActivatedLowRank,
    BlockTensorTrain,
    Factorization,
    FedPara,
    Fit,
    FourierLowRank,
    Kronecker,
    LowRank,
    ResidualSine,
    SineLowRank,
    SparseLowRank,
    SparseSine,
    convert,
)
from sinelr_lightning.layers.fit import best_low_rank, descend, descend_all, fit_matrices, spectrum
from sinelr_lightning.layers.sites import Matrix

from .families import ShuffledLowRank, inputs


def weights_like(kind: str, m: int = 40, n: int = 30, rank: int = 4) -> Tensor:
    if kind == "low rank":
        return torch.randn(m, rank) @ torch.randn(rank, n)
    target = torch.randn(m, n)
    if kind == "one outlier":
        target[3, 5] = 100.0
    if kind == "falling":
        u, _, vh = torch.linalg.svd(target, full_matrices=False)
        target = (u * torch.arange(1.0, min(m, n) + 1) ** -1.5) @ vh
    return target * {"huge": 1e4, "tiny": 1e-6}.get(kind, 1.0)


KINDS = ["normal", "low rank", "one outlier", "falling", "huge", "tiny"]


# ------------------------------------------------------------------------------------------------- never worse


@pytest.mark.parametrize("calibrated", [False, True], ids=["weight", "output"])
@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_a_fitted_sine_is_never_worse_than_the_truncated_svd(rank: int, kind: str, calibrated: bool):
    target, x = weights_like(kind, rank=rank), inputs(200, 30)
    root = x if calibrated else torch.eye(30)
    s = torch.linalg.svdvals(target @ root.t())
    best, whole = s[rank:].norm().item(), s.norm().item()
    moments = (x.t() @ x)[None] if calibrated else None
    for steps in (0, 20):
        ((fitted, factors),) = SineLowRank(rank).fit_all(target[None], moments, steps=steps)
        error = ((fitted.weight(**factors) - target) @ root.t()).norm().item()
        assert error <= best + 1.5e-4 * whole + 1e-6 * whole


@pytest.mark.parametrize("calibrated", [False, True], ids=["weight", "output"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", [LowRank(3), SineLowRank(3), SineLowRank(3, frequency=30.0, gain=5.0)], ids=str)
def test_reported_errors_are_those_of_the_layer(family, kind: str, calibrated: bool):
    layer, x = nn.Linear(30, 40), inputs(200, 30)
    with torch.no_grad():
        layer.weight.copy_(weights_like(kind, rank=3))
    weight, y = layer.weight.detach().clone(), F.linear(x, layer.weight).detach()
    model = nn.Sequential(layer)
    result = convert(model, family, init="fit", calibration=[x] if calibrated else None)
    fit = result.fits["0"]
    assert (fit.family, fit.rank) == (type(family).__name__, 3)

    def near(value: float | None, reference: Tensor) -> bool:
        return value == pytest.approx(reference.item(), rel=2e-2, abs=2e-4)

    s = torch.linalg.svdvals(weight)
    assert near(fit.weight_error, (model[0].weight - weight).norm() / weight.norm())
    assert near(fit.svd_weight_error, s[3:].norm() / s.norm())
    if not calibrated:
        assert fit.output_error is None and fit.svd_output_error is None
        assert fit.weight_error <= fit.svd_weight_error + 1e-4
        return
    s = torch.linalg.svdvals(y)
    assert near(fit.output_error, (F.linear(x, model[0].weight) - y).norm() / y.norm())
    assert near(fit.svd_output_error, s[3:].norm() / s.norm())
    assert fit.output_error <= fit.svd_output_error + 1e-4


def test_a_fitted_sine_beats_the_truncated_svd_on_a_flat_spectrum():
    torch.manual_seed(0)
    target = torch.randn(96, 64)
    best = (torch.linalg.svdvals(target)[16:].norm() / target.norm()).item()
    fitted, factors = SineLowRank(16).fit(target)
    error = ((fitted.weight(**factors) - target).norm() / target.norm()).item()
    assert best > 0.66 and error < 0.64
    assert fitted.rank == 16 and sum(f.numel() for f in factors.values()) == 16 * (96 + 64)


def test_a_batch_fits_each_layer_as_alone():
    targets = torch.stack([weights_like(kind) for kind in ("normal", "falling", "huge", "tiny", "one outlier")])
    together = SineLowRank(3).fit_all(targets, steps=60)
    gains = set()
    for target, (fitted, factors) in zip(targets, together, strict=True):
        alone, others = SineLowRank(3).fit(target, steps=60)
        error, reference = (
            ((f.weight(**x) - target).norm() / target.norm()).item() for f, x in ((fitted, factors), (alone, others))
        )
        assert error == pytest.approx(reference, rel=5e-3)
        gains.add(fitted.gain)
    assert len(gains) == 5  # each its own


def test_fitting_zero_and_half_precision_targets():
    fitted, factors = SineLowRank(2).fit(torch.zeros(10, 12), steps=3)
    assert torch.count_nonzero(fitted.weight(**factors)) == 0
    target = (torch.randn(10, 2) @ torch.randn(2, 12)).bfloat16()
    fitted, factors = SineLowRank(2).fit(target, steps=3)
    assert (fitted.weight(**factors) - target).norm() < 0.01 * target.norm()


# -------------------------------------------------------------------------------------------------- the SVD


@pytest.mark.parametrize(("m", "n"), [(12, 20), (20, 12), (9, 9)])
def test_spectrum_and_best_low_rank_are_those_of_the_output(m: int, n: int):
    weights, x = torch.randn(2, m, n).double(), torch.randn(50, n).double() * torch.logspace(0, -3, n)
    x[:, 0] = 0  # no input in this direction, so the moment is singular
    moments = (x.t() @ x).expand(2, n, n)
    for kwargs, root in (({}, torch.eye(n).double()), ({"moments": moments}, x)):
        s = torch.linalg.svdvals(weights @ root.t())
        energies = spectrum(weights, **kwargs).energies
        torch.testing.assert_close(energies, s[:, : min(m, n)].square(), rtol=1e-6, atol=1e-9)
        for rank in (1, 5):
            u, v = best_low_rank(weights, rank, **kwargs)
            error = ((u @ v.mT - weights) @ root.t()).norm(dim=(-2, -1))
            torch.testing.assert_close(error, s[:, rank:].norm(dim=-1), rtol=1e-5, atol=1e-7)
            torch.testing.assert_close(u.norm(dim=-2), v.norm(dim=-2))


def test_descent_returns_the_best_seen_and_leaves_integers_alone():
    family, target = ShuffledLowRank(3), torch.randn(16, 12)
    start = family.factors(16, 12)

    def error(factors: dict) -> float:
        return (family.weight(**factors) - target).square().sum().item()

    same, told = descend(family, start, target, steps=0)
    assert error(same) == pytest.approx(error(start)) == pytest.approx(told * target.square().sum().item())
    errors = [error(descend(family, start, target, steps)[0]) for steps in (20, 100)]
    assert errors[1] < errors[0] < error(start)
    assert torch.equal(descend(family, start, target, 5)[0]["order"], start["order"])
    assert not any(factor.requires_grad for factor in same.values())
    # From the best there is, every step leads away.
    (_, exact), low = LowRank(3).fit(target), LowRank(3)
    found, _ = descend(low, exact, target, steps=5)
    assert (low.weight(**found) - target).norm() <= (low.weight(**exact) - target).norm() * (1 + 1e-6)
    with torch.no_grad():  # as in a conversion
        assert error(descend(family, start, target, 20)[0]) == pytest.approx(errors[0])


@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_a_factor_that_starts_at_zero_finds_its_size(size: float):
    v = torch.randn(12, 3)
    targets = torch.stack([size * torch.randn(16, 3) @ v.t(), torch.randn(16, 3) @ v.t()])  # of two sizes
    start = [torch.zeros(2, 16, 3), v.expand(2, 12, 3)]
    _, errors = descend_all(lambda u, v: u @ v.mT, start, targets, 300)
    assert (errors < 0.15**2).all()
    start[0] = torch.stack([start[0][0], torch.randn(16, 3)])  # zero in one layer alone
    assert descend_all(lambda u, v: u @ v.mT, start, targets, 300)[1][0] == pytest.approx(errors[0].item(), rel=1e-3)


# ------------------------------------------------------------------------------------------------- every family


# Largest relative errors of the weight, and of the output where that was fitted, for the weight below. Its truncated
# SVD of rank 8 has 0.256 and 0.184, its best Kronecker products 0.778, its blocks 0.370.
BOUNDS: dict[Factorization, tuple[float, float]] = {
    ResidualSine(8): (0.257, 0.185),
    FourierLowRank(8): (0.257, 0.185),
    FedPara(8): (0.24, 0.14),
    SparseLowRank(8): (0.253, 0.18),
    SparseSine(8): (0.254, 0.181),
    Kronecker(8): (0.778, 0.65),
    BlockTensorTrain(2): (0.371, 0.17),
    ActivatedLowRank(8, activation="tanh"): (0.257, 0.185),
    ActivatedLowRank(8, activation="sigmoid"): (0.257, 0.185),
    ActivatedLowRank(8, activation="relu"): (0.73, 0.66),
    ActivatedLowRank(8, activation="gaussian"): (0.76, 0.69),
    ActivatedLowRank(8, activation="sinc"): (0.76, 0.69),
}


def name_of(family: Factorization) -> str:
    return type(family).__name__ + getattr(family, "activation", "")


@pytest.mark.parametrize("family", BOUNDS, ids=name_of)
def test_every_family_comes_near_a_falling_spectrum(family: Factorization):
    torch.manual_seed(0)
    left, right = torch.linalg.qr(torch.randn(96, 96)).Q, torch.linalg.qr(torch.randn(96, 96)).Q
    target, x = left / torch.arange(1.0, 97) @ right.t(), inputs(200, 96)
    for bound, root, moments in zip(BOUNDS[family], (torch.eye(96), x), (None, (x.t() @ x)[None]), strict=True):
        ((fitted, factors),) = family.fit_all(target[None], moments, steps=100)
        error = ((fitted.weight(**factors) - target) @ root.t()).norm() / (target @ root.t()).norm()
        assert error < bound


@pytest.mark.parametrize("family", [Kronecker(3), BlockTensorTrain(2)], ids=name_of)
def test_a_closed_form_recovers_members_of_the_family(family: Factorization):
    target, x = family.weight(*family.factors(48, 40).values()), inputs(100, 40)
    assert not torch.equal(target, torch.zeros_like(target))
    for moments in (None, (x.t() @ x)[None]):
        ((fitted, factors),) = family.fit_all(target[None], moments)
        assert (fitted.weight(**factors) - target).norm() < 1e-4 * target.norm()


@pytest.mark.parametrize("sign", [-1, 0, 1])
@pytest.mark.parametrize("family", [*BOUNDS, ShuffledLowRank(2)], ids=name_of)
def test_no_fit_is_worse_than_a_weight_of_zeros(family: Factorization, sign: int):
    target, x = sign * torch.rand(20, 28), inputs(50, 28)
    family = dataclasses.replace(family, rank=1)  # all of one sign: what relu and Gaussian may be unable to follow
    for root, moments in ((torch.eye(28), None), (x, (x.t() @ x)[None])):
        ((fitted, factors),) = family.fit_all(target[None], moments, steps=3)
        error = ((fitted.weight(**factors) - target) @ root.t()).norm()
        assert error <= (target @ root.t()).norm() * (1 + 1e-5)


# --------------------------------------------------------------------------------------------------- reporting


def test_progress_goes_by_batches_of_one_shape(monkeypatch):
    monkeypatch.setattr("sinelr_lightning.layers.fit._BATCH", 2 * 8 * 9)
    model, calls = nn.Sequential(*[nn.Linear(8, 9) for _ in range(5)], nn.Linear(20, 16)), []
    result = convert(model, LowRank(1), init="fit", progress=lambda *call: calls.append(call))
    assert calls == [("fit 9×8", 2, 6), ("fit 9×8", 4, 6), ("fit 9×8", 5, 6), ("fit 16×20", 6, 6)]
    assert list(result.fits) == [str(i) for i in range(6)]


def test_errors_of_half_precision_layers_count_their_rounding():
    target = (torch.randn(20, 3) @ torch.randn(3, 16)).bfloat16()
    matrix = Matrix("a", target, LowRank(3))
    error = fit_matrices([matrix])["a"].weight_error
    assert 1e-3 < error < 1e-2  # exact but for eight bits of mantissa
    assert all(f.dtype == torch.bfloat16 for f in matrix.fitted[1].values())


def test_a_family_of_its_own_is_fitted_and_reported():
    model, x = nn.Sequential(nn.Linear(16, 12)), inputs(50, 16)
    with torch.no_grad():
        model[0].weight.normal_()
    for calibration in (None, [x]):
        fit = convert(copy.deepcopy(model), ShuffledLowRank(3), init="fit", calibration=calibration).fits["0"]
        ours, svd = fit.weight_error, fit.svd_weight_error
        if calibration:
            ours, svd = fit.output_error, fit.svd_output_error
        assert fit.family == "ShuffledLowRank" and svd < ours < 0.95  # from a weight of zeros


def test_the_report_shows_the_errors_and_says_where_the_sine_brought_nothing():
    model = nn.ModuleDict({"flat": nn.Linear(64, 64), "falling": nn.Linear(64, 64)})
    with torch.no_grad():
        model["flat"].weight.copy_(torch.randn(64, 64))
        model["falling"].weight.copy_(weights_like("low rank", 64, 64, 8) + 1e-4 * torch.randn(64, 64))
    sine = convert(copy.deepcopy(model), SineLowRank(8), init="fit")
    assert sine.fits["flat"].improvement > 0.02 and sine.fits["falling"].improvement < 0.01
    lines = str(sine).splitlines()
    assert lines[1].split()[-2:] == ["rank", "weight"] and max(map(len, lines[:-1])) <= 118
    fit = sine.fits["flat"]
    assert lines[2].split() == ["flat", "8", f"{fit.weight_error:.4f}", f"({fit.svd_weight_error:.4f})"]
    assert lines[-1] == (
        "SineLowRank came less than 1 % nearer than the truncated SVD in 1 of 2 layers (falling): "
        "LowRank does as well there."
    )
    low = str(convert(copy.deepcopy(model), LowRank(8), init="fit"))
    assert "came less than" not in low and low.count("\n") == 3
    assert "relative errors" not in str(convert(copy.deepcopy(model), LowRank(8)))


def test_improvement_is_in_the_norm_that_was_minimised():
    assert Fit("SineLowRank", 2, 0.5, 0.4).improvement == pytest.approx(-0.25)
    assert Fit("SineLowRank", 2, 0.5, 0.4, 0.1, 0.2).improvement == pytest.approx(0.5)
    assert Fit("Other", None, 0.5, None).improvement is None
    assert Fit("SineLowRank", 2, 1e-5, 0.0).improvement == 0.0


def test_every_pair_of_kinds_can_share_a_batch():
    for a, b in itertools.combinations(KINDS, 2):
        targets = torch.stack([weights_like(a), weights_like(b)])
        for target, (fitted, factors) in zip(targets, SineLowRank(2).fit_all(targets, steps=2), strict=True):
            assert fitted.weight(**factors).isfinite().all() and fitted.gain > 0
            assert (fitted.weight(**factors) - target).norm() <= target.norm()

import pytest
import torch
from torch import nn

from sinelr_lightning.layers import FactorizedLinear, LowRank, SineLowRank, cached_weights, convert, fold
from sinelr_lightning.layers.fold import ThinLinear


def with_weight(weight: torch.Tensor) -> FactorizedLinear:
    """A factorized layer with the given weight of full rank."""
    m, n = weight.shape
    layer = LowRank(min(m, n) - 1)(n, m)
    with torch.no_grad():
        u, s, vh = torch.linalg.svd(weight, full_matrices=False)
        layer.U.copy_(u[:, :-1] * s[:-1])
        layer.V.copy_(vh[:-1].t())
    return layer


def spectrum(values: list[float], m: int = 40, n: int = 32) -> torch.Tensor:
    u, v = torch.linalg.qr(torch.randn(m, m))[0], torch.linalg.qr(torch.randn(n, n))[0]
    return (u[:, : len(values)] * torch.tensor(values)) @ v[:, : len(values)].t()


def test_is_the_inverse_of_convert():
    model = nn.Sequential(nn.Linear(32, 40), nn.ReLU(), nn.Sequential(nn.Conv1d(8, 20, 3), nn.Linear(8, 9)))
    kinds = [type(m) for m in model.modules()]
    convert(model, SineLowRank(2))
    assert fold(model) is model
    assert [type(m) for m in model.modules()] == kinds


def test_a_layer_itself():
    layer, x = SineLowRank(3)(24, 32), torch.randn(2, 24)
    folded = fold(layer)
    assert type(folded) is nn.Linear
    torch.testing.assert_close(folded(x), layer(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    # Singular values 8, 4, 2, 1, ½; truncation at r loses √(the rest squared) of ‖·‖ = 9.233.
    ("tolerance", "rank"),
    [(0.51, 1), (0.49, 2), (0.26, 2), (0.24, 3), (0.13, 3), (0.11, 4), (0.05, 5), (1e-4, 5)],
)
def test_keeps_the_smallest_rank_within_the_tolerance(tolerance: float, rank: int):
    layer, x = with_weight(spectrum([8, 4, 2, 1, 0.5])), torch.randn(3, 32)
    expected, weight = layer(x), layer.weight
    folded = fold(nn.Sequential(layer), tolerance)[0]
    assert isinstance(folded, ThinLinear)
    assert (folded.first.out_features, folded.second.in_features) == (rank, rank)
    assert (folded.weight - weight).norm() <= tolerance * weight.norm()
    assert torch.equal(folded.bias, layer.bias)
    if tolerance == 1e-4:
        torch.testing.assert_close(folded(x), expected, rtol=1e-3, atol=1e-3)


def test_stays_dense_where_two_products_cost_more():
    # 40·32/(40 + 32) = 17.8 columns break even.
    assert isinstance(fold(with_weight(spectrum([1.0] * 17)), 1e-3), ThinLinear)
    assert type(fold(with_weight(spectrum([1.0] * 18)), 1e-3)) is nn.Linear


def test_carries_type_mode_and_frozenness():
    model = nn.Sequential(SineLowRank(1)(64, 64), SineLowRank(1)(64, 64, bias=False)).half().eval()
    model[0].requires_grad_(False)
    fold(model, 1e-2)
    assert all(p.dtype == torch.float16 for p in model.parameters())
    assert not any(p.requires_grad for p in model[0].parameters())
    assert all(p.requires_grad for p in model[1].parameters())
    assert model[1].bias is None
    assert not model[0].training and not model[1].training


@pytest.mark.parametrize("tolerance", [0, -0.1])
def test_refuses_a_tolerance_that_is_not_positive(tolerance: float):
    model = nn.Sequential(LowRank(1)(8, 8))
    with pytest.raises(ValueError, match="tolerance must be positive"):
        fold(model, tolerance)
    assert isinstance(model[0], FactorizedLinear)


def test_cached_weights_form_each_weight_once(monkeypatch):
    model, x = nn.Sequential(SineLowRank(2)(32, 32), SineLowRank(2)(32, 32)).eval(), torch.randn(2, 32)
    calls = []
    form = SineLowRank.weight
    monkeypatch.setattr(SineLowRank, "weight", lambda self, *factors: calls.append(1) or form(self, *factors))
    with torch.no_grad():
        expected = model(x)
        calls.clear()
        with cached_weights(model):
            for _ in range(3):
                torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    assert len(calls) == 2


def test_cached_weights_are_dropped_also_after_an_error():
    model = nn.Sequential(SineLowRank(1)(32, 32))
    with pytest.raises(RuntimeError, match="mine"), cached_weights(model):
        assert model[0]._served is not None
        raise RuntimeError("mine")
    assert model[0]._served is None


def test_cached_weights_go_on_after_an_inner_block():
    model = nn.Sequential(SineLowRank(3)(32, 32), SineLowRank(3)(32, 32))
    with cached_weights(model):
        outer = [layer._served for layer in model]
        with cached_weights(model[0]):
            pass
        assert [layer._served for layer in model] == outer and None not in outer
    assert [layer._served for layer in model] == [None, None]


def test_cached_weights_under_autocast_and_in_other_types():
    model, x = nn.Sequential(SineLowRank(1)(64, 64), LowRank(2)(64, 64)), torch.randn(2, 64)
    with torch.inference_mode(), cached_weights(model):
        expected = model(x)
        assert (model(x.bfloat16()).float() - expected).norm() < 0.02 * expected.norm()
        with torch.autocast("cpu", torch.bfloat16):
            assert (model(x).float() - expected).norm() < 0.02 * expected.norm()

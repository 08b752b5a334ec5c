import copy
import io
import pickle

import pytest
import torch
import torchvision
from torch import Tensor, nn

from sinelr_lightning.layers import (
    FactorizedAttention,
    LowRank,
    SineLowRank,
    cached_weights,
    convert,
    fold,
    parameter_groups,
    summarize,
)

E, HEADS = 32, 4
PARTS = ("q", "k", "v")


def attention(factory=SineLowRank(2), **options) -> nn.MultiheadAttention:  # noqa: B008
    made = nn.MultiheadAttention(E, HEADS, batch_first=True, **options)
    if made.in_proj_bias is not None:
        nn.init.normal_(made.in_proj_bias)
    convert(made, factory, include=["in_proj_weight"])
    return made


def by_hand(layer: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(QKᵀ/√d)·V by heads from the factors themselves."""
    weights = [layer.in_proj[part].factorization.weight(*layer.in_proj[part].factors()) for part in PARTS]
    q, k, v = (
        (x @ w.t() + b).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        for x, w, b in zip((query, key, value), weights, layer.in_proj_bias.chunk(3), strict=True)
    )
    mixed = (q @ k.mT / (E // HEADS) ** 0.5).softmax(-1) @ v
    return mixed.transpose(1, 2).flatten(2) @ layer.out_proj.weight.t() + layer.out_proj.bias


def small_vit() -> nn.Module:
    model = torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64
    )
    nn.init.normal_(model.heads.head.weight)  # which torchvision leaves at zero
    return model


@pytest.mark.parametrize("factory", [LowRank(3), SineLowRank(1), SineLowRank(5)], ids=str)
@pytest.mark.parametrize("need_weights", [False, True])
def test_attention_by_hand(factory, need_weights: bool):
    layer, x, y = attention(factory), torch.randn(2, 5, E), torch.randn(2, 7, E)
    assert type(layer) is FactorizedAttention and "in_proj_weight" not in dict(layer.named_parameters())
    expected = by_hand(layer, x, x, x)
    torch.testing.assert_close(layer(x, x, x, need_weights=need_weights)[0], expected, rtol=1e-4, atol=1e-5)
    layer.eval()
    with torch.no_grad():
        torch.testing.assert_close(layer(x, x, x, need_weights=need_weights)[0], expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(layer(x, y, y)[0], by_hand(layer, x, y, y), rtol=1e-4, atol=1e-5)


def test_the_fused_path_takes_the_formed_weight(monkeypatch):
    layer, x = attention().eval(), torch.randn(2, 5, E)
    calls, fused = [], torch._native_multi_head_attention
    monkeypatch.setattr(torch, "_native_multi_head_attention", lambda *a, **k: calls.append(a[5]) or fused(*a, **k))
    with torch.no_grad():
        y = layer(x, x, x)[0]
        torch.testing.assert_close(y, by_hand(layer, x, x, x), rtol=1e-4, atol=1e-5)
        assert len(calls) == 1 and torch.equal(calls[0], layer.in_proj_weight)
        layer.in_proj["v"].U.zero_()  # what the factors are now, not what they were
        torch.testing.assert_close(layer(x, x, x)[0], by_hand(layer, x, x, x), rtol=1e-4, atol=1e-5)


def test_gradients_reach_the_factors_and_equal_those_of_the_weight():
    layer, x = attention(), torch.randn(2, 5, E)
    factors = [f for part in PARTS for f in layer.in_proj[part].factors()]
    ours = torch.autograd.grad(layer(x, x, x)[0].square().sum(), factors)
    reference = torch.autograd.grad(by_hand(layer, x, x, x).square().sum(), factors)
    for gradient, expected in zip(ours, reference, strict=True):
        assert expected.abs().max() > 0
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-4)


def test_the_weight_is_formed_once_a_forward_pass(monkeypatch):
    layer, x = attention(), torch.randn(2, 5, E)
    calls, form = [], SineLowRank.weight
    monkeypatch.setattr(SineLowRank, "weight", lambda self, *factors: calls.append(1) or form(self, *factors))
    layer(x, x, x)
    assert len(calls) == 3  # q, k, v
    assert layer._formed is None
    with pytest.raises((AssertionError, RuntimeError)):
        layer(x[..., :3], x, x)
    assert layer._formed is None
    layer.eval()
    with torch.no_grad(), cached_weights(layer):
        calls.clear()
        torch.testing.assert_close(layer(x, x, x)[0], by_hand(layer, x, x, x), rtol=1e-4, atol=1e-5)
        assert len(calls) == 3  # those of by_hand
    assert all(layer.in_proj[part].served is None for part in PARTS)


def test_cached_thin_factors_are_not_taken_for_the_weight():
    layer = nn.MultiheadAttention(64, 4, batch_first=True)  # large enough for rank-1 sines to run thin
    convert(layer, SineLowRank(1))
    assert len(layer.in_proj["q"].factorization.served(*layer.in_proj["q"].factors())) == 2
    x = torch.randn(2, 5, 64)
    expected = layer(x, x, x)[0]
    with torch.no_grad(), cached_weights(layer):
        torch.testing.assert_close(layer(x, x, x)[0], expected, rtol=1e-4, atol=1e-5)


def test_saves_loads_copies_and_pickles():
    layer, x = attention(), torch.randn(2, 5, E)
    expected = layer(x, x, x)[0]
    state = layer.state_dict()
    assert sorted(state) == sorted(
        ["in_proj_bias", "out_proj.weight", "out_proj.bias"] + [f"in_proj.{p}.{f}" for p in PARTS for f in "UV"]
    )
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    other = attention()
    assert not torch.equal(other(x, x, x)[0], expected)
    other.load_state_dict(torch.load(file, weights_only=True))
    for made in (other, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert type(made) is FactorizedAttention
        assert torch.equal(made(x, x, x)[0], expected)


def test_a_fit_is_near_and_travels_in_the_state():
    layer, x = nn.MultiheadAttention(E, HEADS, batch_first=True), torch.randn(2, 5, E)
    with torch.no_grad():  # projections of rank 3 each
        layer.in_proj_weight.copy_(torch.cat([torch.randn(E, 3) @ torch.randn(3, E) for _ in PARTS]) / E**0.5)
    dense, expected = layer.in_proj_weight.detach().clone(), layer(x, x, x)[0]
    convert(layer, SineLowRank(3), include=["in_proj_weight"], init="fit")
    assert (layer.in_proj_weight - dense).norm() < 3e-3 * dense.norm()
    assert (layer(x, x, x)[0] - expected).norm() < 0.02 * expected.norm()
    assert "in_proj.v.hyper.gain" in layer.state_dict()
    other = attention(SineLowRank(3))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x, x, x)[0], layer(x, x, x)[0])


def test_folds_back_to_the_same_class_and_parameters():
    dense = nn.MultiheadAttention(E, HEADS, batch_first=True)
    layer, x = attention(), torch.randn(2, 5, E)
    expected = layer(x, x, x)[0]
    layer.in_proj.requires_grad_(False)
    assert fold(layer) is layer and type(layer) is nn.MultiheadAttention
    assert set(layer.state_dict()) == set(dense.state_dict())
    assert isinstance(layer.in_proj_weight, nn.Parameter) and not layer.in_proj_weight.requires_grad
    assert set(vars(layer)) == set(vars(dense))
    torch.testing.assert_close(layer(x, x, x)[0], expected, rtol=1e-4, atol=1e-5)
    dense.load_state_dict(layer.state_dict())
    assert convert(layer, LowRank(2), include=["in_proj_weight"]).converted == ["in_proj_weight"]


def test_summary_and_groups():
    layer = attention(SineLowRank(2, lr_multiplier=3.0))
    summary = summarize(nn.ModuleDict({"a": layer}))
    assert [(s.name, s.shape, s.parameters) for s in summary.layers] == [
        (f"a.in_proj.{part}", (E, E), 2 * 2 * E) for part in PARTS
    ]
    assert summary.dense_parameters == sum(p.numel() for p in nn.MultiheadAttention(E, HEADS).parameters())
    factors = {id(p) for p in layer.in_proj.parameters()}
    (group,) = [g for g in parameter_groups(layer, 0.1) if factors & {id(p) for p in g["params"]}]
    assert {id(p) for p in group["params"]} == factors
    assert (group["lr_multiplier"], group["weight_decay"]) == (3.0, 0.0)


def test_torchvisions_vision_transformer():
    model, image = small_vit(), torch.randn(2, 3, 32, 32)
    before = sum(p.numel() for p in model.parameters())
    result = convert(model, SineLowRank(2), include=["*.self_attention.*"])
    names = [f"encoder.layers.encoder_layer_{i}.self_attention" for i in (0, 1)]
    assert result.converted == [f"{name}.{child}" for name in names for child in ("in_proj_weight", "out_proj")]
    assert before - sum(p.numel() for p in model.parameters()) == 2 * 4 * (32 * 32 - 2 * 64)
    model(image).square().sum().backward()
    assert all(p.grad.abs().max() > 0 for n, p in model.named_parameters() if ".in_proj." in n)
    expected = model(image).detach()
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(image), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(fold(copy.deepcopy(model))(image), expected, rtol=1e-4, atol=1e-5)
        plain = small_vit().eval()
        plain.load_state_dict(fold(model).state_dict())
        torch.testing.assert_close(plain(image), expected, rtol=1e-4, atol=1e-5)


def test_pytorchs_own_encoder_with_its_fused_layer():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True), 2)
    convert(encoder, SineLowRank(2), include=["*.in_proj_weight"])
    x, padded = torch.randn(2, 5, 32), torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    expected = encoder(x, src_key_padding_mask=padded).detach()
    encoder.eval()
    with torch.no_grad():
        y = encoder(x, src_key_padding_mask=padded)  # as a nested tensor
    torch.testing.assert_close(y[~padded], expected[~padded], rtol=1e-4, atol=1e-5)


def test_autocast_keeps_the_phase():
    layer, x = attention(SineLowRank(8, frequency=200)), torch.randn(2, 5, E)
    exact = layer.in_proj_weight
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer.in_proj_weight, exact)
        y = layer(x, x, x)[0]
    expected = layer(x, x, x)[0]
    assert (y - expected).norm() < 0.03 * expected.norm()


def test_what_is_left_and_why():
    class Own(nn.MultiheadAttention):
        pass

    model = nn.ModuleDict({"own": Own(E, HEADS), "wide": nn.MultiheadAttention(E, HEADS, kdim=16)})
    result = convert(model, SineLowRank(2), exclude=["*out_proj"])
    assert result.converted == []
    assert result.skipped == {
        "own.in_proj_weight": "Own may read its projection in another way than nn.MultiheadAttention",
        "wide.in_proj_weight": "its projections are bare parameters of several sizes (kdim or vdim is not embed_dim)",
    }
    layer = attention(bias=False)
    x = torch.randn(2, 5, E)
    assert layer.in_proj_bias is None and layer(x, x, x)[0].isfinite().all()
    with pytest.raises(KeyError, match="'in_proj_weight' already exists"):
        layer.in_proj_weight = nn.Parameter(torch.zeros(3 * E, E))

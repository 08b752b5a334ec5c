"""Fits that serve the output on measured inputs: the moments that are measured, and what they bring."""

import copy

import pytest
import torch
from torch import Tensor, nn

from sinelr_lightning.layers import LowRank, SineLowRank, convert
from sinelr_lightning.layers.calibrate import measure_moments
from sinelr_lightning.layers.sites import find_sites

from .families import inputs


@pytest.mark.parametrize("factory", [LowRank(4), SineLowRank(4)], ids=str)
def test_calibration_serves_the_output_on_inputs_it_has_not_seen(factory):
    torch.manual_seed(1)
    mixing = torch.linalg.qr(torch.randn(48, 48)).Q  # large directions, but along no axis
    seen, unseen = inputs(400, 48) @ mixing, inputs(400, 48) @ mixing
    dense = nn.Sequential(nn.Linear(48, 64), nn.Tanh(), nn.Linear(64, 32))
    plain, calibrated = copy.deepcopy(dense), copy.deepcopy(dense)
    convert(plain, factory, init="fit")
    fits = convert(calibrated, factory, init="fit", calibration=seen.split(100)).fits

    def error(model: nn.Module) -> float:
        return ((model[0](unseen) - dense[0](unseen)).norm() / dense[0](unseen).norm()).item()

    assert error(calibrated) < 0.75 * error(plain)
    assert fits["0"].weight_error > fits["0"].svd_weight_error  # what it costs


def moments_of(model: nn.Module, *batches, factory=LowRank(1)) -> dict[str, Tensor]:  # noqa: B008
    sites = find_sites(model, factory)
    measure_moments(model, list(sites.values()), batches)
    return {m.name: m.moment for site in sites.values() for m in site.matrices.values() if m.moment is not None}


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(3, 8, 5, stride=2, padding=2),
        nn.Conv2d(3, 8, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
        nn.Conv2d(3, 8, 4, padding="same", padding_mode="circular"),
        nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"),
        nn.Conv3d(2, 4, 2, padding=1),
    ],
    ids=str,
)
def test_the_moment_of_patches_gives_the_energy_of_the_output(layer: nn.Module, monkeypatch):
    x = torch.randn(3, layer.in_channels, *[7] * (layer.weight.ndim - 2))
    with torch.no_grad():
        layer.bias.zero_()
        y = layer(x)
    pixels = y.numel() / y.shape[1]
    for chunk in (1, 2**24):  # sample by sample, and at once
        monkeypatch.setattr("sinelr_lightning.layers.calibrate._CHUNK", chunk)
        moment = moments_of(nn.Sequential(layer), x)["0"]
        w = layer.weight.detach().flatten(1)
        # E[yyᵀ] = W·C·Wᵀ
        expected = y.movedim(1, 0).flatten(1)
        torch.testing.assert_close(w @ moment @ w.t(), expected @ expected.t() / pixels, rtol=1e-4, atol=1e-4)


def test_moments_of_an_attention():
    attention = nn.MultiheadAttention(16, 2, batch_first=True)
    nn.init.normal_(attention.in_proj_bias)
    nn.init.normal_(attention.out_proj.bias)

    class Cross(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = attention

        def forward(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
            return self.attention(x, key=y, value=z)[0]

    model, (x, y, z) = Cross(), torch.randn(3, 2, 5, 16)
    expected = model(x, y, z)
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    found = moments_of(model, (x, y, z))
    for part, value in zip("qkv", (x, y, z), strict=True):
        rows = value.flatten(0, 1)
        torch.testing.assert_close(found[f"attention.in_proj.{part}"], rows.t() @ rows / 10)
    # The input a of out_proj from its output: y = W·a + b.
    mixed = torch.linalg.solve(attention.out_proj.weight, (expected - attention.out_proj.bias).flatten(0, 1).t())
    torch.testing.assert_close(found["attention.out_proj"], mixed @ mixed.t() / 10, rtol=1e-2, atol=1e-3)
    # The model is as before: weights, hooks, mode.
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert isinstance(attention.out_proj.weight, nn.Parameter)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert [m.training for m in model.modules()] == modes
    torch.testing.assert_close(model(x, y, z), expected)


def test_an_encoder_is_measured_past_its_fused_layer():
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, dropout=0.3, batch_first=True), 2).eval()
    x, outputs = torch.randn(4, 6, 16), []
    with torch.no_grad():
        expected = encoder(x)
    handle = encoder.register_forward_hook(lambda *a: outputs.append(a[-1]))
    found = moments_of(encoder, {"src": x})
    handle.remove()
    assert len(found) == 2 * (3 + 1 + 2)
    torch.testing.assert_close(outputs[0], expected, rtol=1e-4, atol=1e-5)  # watching changes nothing
    assert torch.backends.mha.get_fastpath_enabled()
    first = x.flatten(0, 1)
    torch.testing.assert_close(found["layers.0.self_attn.in_proj.k"], first.t() @ first / 24)


def test_padded_sequences_are_measured_too():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2).eval()
    padded = torch.tensor([[False] * 6, [False] * 3 + [True] * 3])  # which would run as a nested tensor
    found = moments_of(encoder, {"src": torch.randn(2, 6, 16), "src_key_padding_mask": padded})
    assert len(found) == 2 * (3 + 1 + 2)


def test_a_calibration_that_fails_leaves_the_model_alone():
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 8)).train()
    state = copy.deepcopy(model.state_dict())
    for batches, message in (
        ([], "calibration has no batches"),
        ([torch.full((4, 8), torch.nan)], "calibration: the input of 0 is not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            convert(model, LowRank(1), init="fit", calibration=batches)
    with pytest.raises(RuntimeError):
        convert(model, LowRank(1), init="fit", calibration=[torch.randn(4, 8), torch.randn(4, 7)])
    assert type(model[0]) is nn.Linear and model.training and model[1].training
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    with pytest.raises(ValueError, match='calibration serves init="fit" or a budget'):
        convert(model, LowRank(1), calibration=[torch.randn(4, 8)])


def test_a_layer_that_no_batch_reaches_is_fitted_by_its_weight():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(8, 9), nn.Linear(8, 9)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(input=x)

    fits = convert(Model(), LowRank(2), init="fit", calibration=[torch.randn(20, 8)]).fits
    assert fits["used"].output_error is not None and fits["unused"].output_error is None
    assert fits["unused"].weight_error == pytest.approx(fits["unused"].svd_weight_error, rel=1e-4)

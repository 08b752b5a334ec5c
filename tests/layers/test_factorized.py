"""The layers as modules: saving, copying, exporting, compiling, and convolutions beside the dense ones."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sinelr_lightning.layers import Factorization, SineLowRank, cached_weights, fold
from sinelr_lightning.layers.factorized import FactorizedConv1d, FactorizedConv2d, FactorizedConv3d

from .families import (
    EXAMPLES,
    M,
    N,
    ShuffledLowRank,
    every_family,
    float_factors,
    gradients,
    kept,
    name_of,
    relative_error,
    strained,
)

pytestmark = pytest.mark.usefixtures("thin_at_rank_two")

# ------------------------------------------------------------------------------------------- saving and transforms


@every_family
def test_state_and_copies(family: Factorization):
    layer, x = family(N, M), torch.randn(2, N)
    state = layer.state_dict()
    assert list(state) == [*(n for n in family.factors(M, N) if n in layer._parameters), "bias"] + [
        n for n in family.factors(M, N) if n in layer._buffers
    ]
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded = family(N, M)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded):
        assert torch.equal(other(x), layer(x))
    half = copy.deepcopy(layer).half()
    assert all(p.dtype == torch.float16 for p in half.parameters())
    assert all(b.dtype == torch.int64 for b in half.buffers())


@every_family
def test_meta_device(family: Factorization):
    with torch.device("meta"):
        layer = family(N, M)
        assert layer(torch.ones(2, N)).shape == (2, M)
    assert all(p.is_meta for p in layer.parameters())
    assert all(p.is_meta for p in copy.deepcopy(family(N, M)).to("meta").parameters())
    layer = layer.to_empty(device="cpu")
    layer.reset_parameters()
    drawn = family(N, M)
    assert 0.5 < layer.weight.std() / drawn.weight.std() < 2
    assert layer.bias.abs().max() <= N**-0.5


@every_family
def test_functional_call(family: Factorization):
    layer, other, x = family(N, M), family(N, M), torch.randn(2, N)
    state = {**dict(other.named_parameters()), **dict(other.named_buffers())}
    assert torch.equal(torch.func.functional_call(layer, state, (x,)), other(x))
    assert not torch.equal(layer(x), other(x))


@every_family
def test_export_at_any_batch_size(family: Factorization):
    layer = family(N, M)
    shapes = ({0: torch.export.Dim("batch", min=2, max=64)},)
    program = torch.export.export(layer, (torch.randn(4, N),), dynamic_shapes=shapes)
    x = torch.randn(7, N)
    torch.testing.assert_close(program.module()(x), layer(x), rtol=1e-4, atol=1e-5)


def compiled_equals(family: Factorization, backend: str) -> None:
    torch._dynamo.reset()
    layer, x = family(N, M), torch.randn(N, 5).t()
    through = torch.compile(layer, fullgraph=True, backend=backend)
    for ours, reference in zip(gradients(layer, x, through), gradients(layer, x), strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-5)
    layer.requires_grad_(False)
    torch._dynamo.reset()
    with torch.autocast("cpu", torch.bfloat16):
        y = torch.compile(layer, fullgraph=True, backend=backend)(x)
        torch.testing.assert_close(y, layer(x), rtol=2e-2, atol=1e-2)


@every_family
def test_compiles(family: Factorization):
    compiled_equals(family, "aot_eager")


@pytest.mark.parametrize(
    "family", [e for e in EXAMPLES if name_of(e) in ("SineLowRank-1", "SineLowRank-2")], ids=name_of
)
def test_compiles_with_inductor(family: Factorization):
    compiled_equals(family, "inductor")


def test_compiles_and_exports_on_the_meta_device():
    layer, x = SineLowRank(2)(12, 10).to("meta"), torch.randn(5, 12, device="meta")
    assert torch.compile(layer, fullgraph=True, backend="aot_eager")(x).shape == (5, 10)
    assert torch.export.export(layer, (x,)).module()(x).shape == (5, 10)


# --------------------------------------------------------------------------------------------------- convolutions

CONVOLUTIONS = [
    (FactorizedConv1d, nn.Conv1d, (9,), {"kernel_size": 3, "stride": 2, "padding": 1}),
    (FactorizedConv1d, nn.Conv1d, (9,), {"kernel_size": 4, "padding": "same", "padding_mode": "reflect"}),
    (FactorizedConv2d, nn.Conv2d, (7, 8), {"kernel_size": (3, 2), "stride": (1, 2), "dilation": (2, 1)}),
    (FactorizedConv2d, nn.Conv2d, (6, 6), {"kernel_size": 3, "padding": (1, 2), "padding_mode": "circular"}),
    (FactorizedConv2d, nn.Conv2d, (6, 5), {"kernel_size": (4, 3), "padding": "same", "dilation": 2, "bias": False}),
    (FactorizedConv2d, nn.Conv2d, (6, 5), {"kernel_size": 2, "padding": "valid", "padding_mode": "replicate"}),
    (
        FactorizedConv3d,
        nn.Conv3d,
        (4, 5, 6),
        {"kernel_size": (1, 2, 3), "padding": (0, 1, 2), "padding_mode": "zeros"},
    ),
    (FactorizedConv3d, nn.Conv3d, (4, 4, 4), {"kernel_size": 3, "padding": 1, "padding_mode": "replicate"}),
]


@pytest.mark.parametrize("family", [e for e in EXAMPLES if "-3" in name_of(e)], ids=name_of)
@pytest.mark.parametrize(("ours", "theirs", "size", "settings"), CONVOLUTIONS, ids=str)
def test_convolution_equals_the_dense_one(family, ours, theirs, size, settings):
    layer = ours(family, 5, 8, **settings)
    reference = theirs(5, 8, **settings)
    with torch.no_grad():
        reference.weight.copy_(layer.weight.reshape(reference.weight.shape))
        if layer.bias is not None:
            reference.bias.copy_(layer.bias)
    x = torch.randn(2, 5, *size, requires_grad=True)
    y, expected = layer(x), reference(x)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    (grad,) = torch.autograd.grad(y.square().sum(), x, retain_graph=True)
    (grad_expected,) = torch.autograd.grad(expected.square().sum(), x)
    torch.testing.assert_close(grad, grad_expected, rtol=1e-4, atol=1e-4)
    y.sum().backward()
    reached = [bool(p.grad.abs().max() > 0) for p in layer.parameters()]
    assert sum(reached) >= len(reached) - (not layer.U.any() if hasattr(layer, "U") else 0)  # V has none while U = 0
    with torch.no_grad():
        with cached_weights(layer):
            torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
        folded = fold(layer)
        assert type(folded) is theirs
        torch.testing.assert_close(folded(x), expected, rtol=1e-4, atol=1e-5)


def test_convolution_refuses_integers_and_follows_the_input_type():
    layer = FactorizedConv1d(ShuffledLowRank(2), 3, 8, 3)
    with pytest.raises(TypeError, match="floating-point"):
        layer(torch.ones(1, 3, 5, dtype=torch.long))
    assert layer(torch.ones(1, 3, 5, dtype=torch.bfloat16)).dtype == torch.bfloat16


@every_family
def test_convolution_keeps_the_phase_under_autocast(family: Factorization):
    layer = FactorizedConv2d(strained(family), 8, 24, 3)
    exact, x = copy.deepcopy(layer).double(), torch.randn(2, 8, 5, 5)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    expected = F.conv2d(x.double(), exact.weight.reshape(24, 8, 3, 3), exact.bias)
    assert relative_error(y, expected) < 1.5e-2
    ours = torch.autograd.grad(y.square().sum(), float_factors(layer))
    reference = torch.autograd.grad(expected.square().sum(), float_factors(exact))
    for value, expected in zip(ours, reference, strict=True):
        assert relative_error(value, expected) < (1.5e-2 if value.numel() > 8 else 1e-1)  # of few they do not average


def test_convolution_keeps_no_kernel():
    layer = FactorizedConv2d(EXAMPLES[0], 16, 32, 3, padding=1)
    x = torch.randn(1, 16, 3, 3, requires_grad=True)
    assert sum(kept(lambda: layer(x))) < 32 * 16 * 9 / 4

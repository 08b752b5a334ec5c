"""Adapters on quantised layers, where the libraries that make them are installed."""

import pytest
import torch
from layers.families import relative_error
from torch import nn

from .tiny import away, sine  # without PEFT it skips this file

# isort: split
from peft import get_peft_model

both = pytest.mark.parametrize("dora", [False, True], ids=["", "dora"])
X = torch.randn(5, 128, generator=torch.Generator().manual_seed(0))


def four_bits() -> nn.Module:
    bnb = pytest.importorskip("bitsandbytes")
    layer = bnb.nn.Linear4bit(128, 64, compute_dtype=torch.float32, quant_type="nf4")
    layer.load_state_dict({"weight": torch.randn(64, 128) / 8, "bias": torch.randn(64)})
    model = nn.Sequential(layer.to("cpu"))
    model.is_loaded_in_4bit = True
    return model


def eight_bits_of_torchao() -> nn.Module:
    quantization = pytest.importorskip("torchao.quantization")
    model = nn.Sequential(nn.Linear(128, 64))
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    return model


def adapted(model: nn.Module, dora: bool):
    model = get_peft_model(model, sine(target_modules=["0"], frequency=30.0, gain=8.0, use_dora=dora))
    layer = model.base_model.model[0]
    if dora:
        with torch.no_grad():
            layer.lora_magnitude_vector["default"].weight.mul_(1.5)
    return model.train(), layer  # in evaluation on the CPU bitsandbytes repacks weights, and PEFT cannot read them


@pytest.mark.parametrize("build", [four_bits, eight_bits_of_torchao])
@both
def test_two_products_equal_the_whole_weight(build, dora: bool):
    model, layer = adapted(build(), dora)
    base = layer.base_matrix().double()
    u, v = layer.factors("default")
    whole = base + 2 * torch.sin(30 * u.double() @ v.double().t()) / 8
    if dora:
        magnitude = layer.lora_magnitude_vector["default"].weight.double()
        whole = whole * (magnitude / whole.norm(dim=1))[:, None]
    y = model(X)
    assert away(y, X.double() @ whole.t() + layer.base_layer.bias) < 1e-5
    assert away(y, layer.base_layer(X)) > 0.5
    y.sum().backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == (3 if dora else 2)
    assert all(p.grad.abs().max() > 0 for p in trained.values())


@both
def test_merged_into_four_bits(dora: bool):
    model, layer = adapted(four_bits(), dora)
    y = model(X)
    model.merge_adapter()
    assert 1e-3 < relative_error(model(X), y.double()) < 0.15  # four bits more
    assert 1e-3 < layer.merge_rounding < 0.3


def test_merged_into_torchao():
    model, layer = adapted(eight_bits_of_torchao(), False)
    layer.get_apply_tensor_subclass = pytest.importorskip("torchao.quantization").Int8WeightOnlyConfig
    y = model(X)
    model.merge_adapter()
    assert relative_error(model(X), y.double()) < 0.02
    model.unmerge_adapter()
    assert relative_error(model(X), y.double()) < 0.02


def test_dora_is_not_merged_into_torchao_without_its_magnitude():
    model, layer = adapted(eight_bits_of_torchao(), True)
    layer.get_apply_tensor_subclass = pytest.importorskip("torchao.quantization").Int8WeightOnlyConfig
    with pytest.raises(ValueError, match="adapter default with DoRA cannot be merged into weights of torchao"):
        model.merge_adapter()

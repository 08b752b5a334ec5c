"""Each kind of layer against the formula by the book, unmerged, merged and while it learns."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from .kinds import CONVOLUTIONS, LAYERS, every_kind, make, with_and_without_dora
from .tiny import away, plain, shuffled, sine  # without PEFT it skips this file

# isort: split
from peft import LoraConfig, get_peft_model

from sinelr_lightning import FactorizedLoraConfig
from sinelr_lightning.adapters.plain import as_plain_lora
from sinelr_lightning.layers import Factorization, parameter_groups

# -------------------------------------------------------------------------------------------------- the formula


@every_kind
@with_and_without_dora
def test_starts_at_the_base(kind: str, dora: bool):
    made = make(kind, use_dora=dora, init_lora_weights=True)
    y = made.model(made.x)
    assert away(y, made.base(made.x)) < 1e-6
    (y * torch.randn_like(y)).sum().backward()
    assert max(p.grad.abs().max() for p in made.trained().values()) > 1e-3  # and leaves it


@every_kind
@with_and_without_dora
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_equals_the_formula(kind: str, dora: bool, training: bool):
    made = make(kind, use_dora=dora, lora_alpha=5)
    assert away(made.expected(), made.base(made.x)) > 0.1
    assert away(made.model.train(training)(made.x), made.expected()) < 5e-6
    with torch.no_grad():
        assert away(made.model(made.x), made.expected()) < 5e-6


@every_kind
@with_and_without_dora
def test_gradients_equal_those_of_the_formula(kind: str, dora: bool):
    made = make(kind, use_dora=dora)
    x = made.x if kind == "embedding" else made.x.requires_grad_()
    inputs = [*made.trained().values()] + ([] if kind == "embedding" else [x])
    weights = torch.randn_like(made.model(x))
    ours = torch.autograd.grad((made.model(x) * weights).sum(), inputs)
    for value, expected in zip(ours, torch.autograd.grad((made.expected() * weights).sum(), inputs), strict=True):
        assert away(value, expected) < 1e-5 * max(1, expected.abs().max().item())


@every_kind
def test_options_of_scale(kind: str):
    made = make(kind, use_rslora=True, lora_alpha=2, frequency="auto", gain=None)
    assert away(made.model(made.x), made.expected()) < 5e-6


@every_kind
@with_and_without_dora
def test_the_base_gets_no_gradient(kind: str, dora: bool):
    made = make(kind, use_dora=dora)
    made.model(made.x).sum().backward()
    frozen = [p for name, p in made.model.named_parameters() if "base_layer" in name]
    assert frozen
    assert all(p.grad is None and not p.requires_grad for p in frozen)
    assert all(p.grad is not None for p in made.trained().values())


@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed")
@pytest.mark.parametrize("kind", [kind for kind in LAYERS if kind != "embedding"])
def test_a_bias_of_its_own(kind: str):
    made = make(kind, lora_bias=True, lora_alpha=6)
    own = made.layer.lora_B["default"].bias
    assert own.abs().max() > 0.1
    shape = (-1, *[1] * (made.x.dim() - 2)) if kind in CONVOLUTIONS else (-1,)
    expected = made.expected() + 2 * own.reshape(shape)
    assert away(made.model(made.x), expected) < 5e-6
    with torch.no_grad():
        assert away(made.model(made.x), expected) < 5e-6
    with pytest.raises(ValueError, match="no plain LoRA has its biases"):
        as_plain_lora(made.model, 2)
    if made.base.bias is not None:
        assert away(made.model.merge_and_unload()(made.x), expected) < 5e-6
        return
    with pytest.raises(RuntimeError, match="the base layer has no bias"):
        made.model.merge_and_unload()


@pytest.mark.parametrize("kind", ["linear", "transposed", "conv1d", "conv2d", "conv3d"])
@pytest.mark.parametrize("option", ["all", "lora_only"])
def test_the_base_s_bias_may_learn(kind: str, option: str):
    made = make(kind, bias=option)
    y = made.model(made.x)
    y.sum().backward()
    assert made.layer.base_layer.weight.grad is None
    each = made.layer.base_layer.bias.grad
    assert away(each, torch.full_like(each, y.numel() / each.numel())) < 1e-3


def test_rank_and_alpha_by_layer():
    net = nn.Sequential(nn.Linear(12, 10), nn.Linear(10, 9), nn.Linear(9, 9))
    patterns = {"rank_pattern": {"0": 2, "2": 5}, "alpha_pattern": {"1": 3}}
    model = get_peft_model(net, sine(target_modules=["0", "1", "2"], lora_alpha=6, use_rslora=True, **patterns))
    layers = model.base_model.model
    assert [layer.r["default"] for layer in layers] == [2, 4, 5]
    assert [layer.formula("default").rank for layer in layers] == [2, 4, 5]
    assert [layer.scaling["default"] for layer in layers] == [6 / 2**0.5, 3 / 2, 6 / 5**0.5]


@pytest.mark.parametrize("kind", ["linear", "transposed", "embedding", "conv2d"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@with_and_without_dora
def test_half_precision_base(kind: str, dtype: torch.dtype, dora: bool):
    made = make(kind, dtype, autocast_adapter_dtype=True, use_dora=dora)
    assert all(p.dtype == torch.float32 for p in made.trained().values())
    y = made.model(made.x)
    assert y.dtype == dtype
    assert away(y, made.expected()) < 8 * torch.finfo(dtype).eps * made.expected().abs().max()


# -------------------------------------------------------------------------------------------------------- dropout


@pytest.mark.parametrize("kind", [kind for kind in LAYERS if kind != "embedding"])
@with_and_without_dora
def test_dropout_falls_on_the_input_of_the_update_alone(kind: str, dora: bool):
    made = make(kind, use_dora=dora, lora_dropout=0.5)
    assert away(made.model(made.x), made.expected()) < 5e-6  # none in evaluation
    made.model.train()
    torch.manual_seed(5)
    y = made.model(made.x)
    torch.manual_seed(5)
    dropped = F.dropout(made.x, 0.5)
    assert (dropped == 0).any()
    # With bias once: base(x) + [whole(dropped) − base(dropped)].
    expected = made.base(made.x) + made.expected(dropped) - made.base(dropped)
    assert away(y, expected) < 1e-5


def test_no_dropout_of_token_numbers():
    made = make("embedding", lora_dropout=0.5)
    assert away(made.model.train()(made.x), made.expected()) < 5e-6


# -------------------------------------------------------------------------------------------------------- merging


@every_kind
@with_and_without_dora
@pytest.mark.parametrize("safe", [True, False], ids=["safe", "unsafe"])
def test_merged_equals_unmerged(kind: str, dora: bool, safe: bool):
    made = make(kind, use_dora=dora)
    y, before = made.model(made.x), copy.deepcopy(made.layer.base_layer.weight)
    made.model.merge_adapter(safe_merge=safe)
    assert away(made.layer.base_layer.weight, made.weight()) < 2e-6
    assert away(made.model(made.x), y) < 5e-6
    assert made.layer.merge_rounding < 1e-6
    made.model.unmerge_adapter()
    assert away(made.layer.base_layer.weight, before) < 1e-6
    assert away(made.model(made.x), y) < 5e-6
    merged = made.model.merge_and_unload(safe_merge=safe)
    assert type(merged[0]) is type(made.base)
    assert away(merged(made.x), y) < 5e-6


@every_kind
@with_and_without_dora
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_merged_weight_is_what_forward_multiplied_with(kind: str, dora: bool, dtype: torch.dtype):
    made = make(kind, dtype, autocast_adapter_dtype=True, use_dora=dora)
    exact = made.layer.as_base(made.layer.exact("default"))
    with torch.no_grad():
        y = made.model(made.x)
    made.model.merge_adapter()
    merged = made.layer.base_layer.weight
    ulp = 2.0 ** torch.floor(torch.log2(exact.abs().clamp_min(2**-14))) * torch.finfo(dtype).eps
    if dora:  # PEFT's own merging, which may round on the way
        assert ((merged.float() - exact).abs() <= ulp).all()
    else:
        assert torch.equal(merged, exact.to(dtype))  # rounded once
        assert kind == "embedding" or torch.equal(made.model(made.x), y)
    assert made.layer.merge_rounding == pytest.approx(away(merged, exact), rel=1e-5)


@every_kind
@with_and_without_dora
def test_a_safe_merge_refuses_what_is_not_finite(kind: str, dora: bool):
    made = make(kind, use_dora=dora)
    with torch.no_grad():
        made.factors()[0][0, 0] = torch.nan
    before = copy.deepcopy(made.layer.base_layer.weight)
    with pytest.raises(ValueError, match="NaNs detected in the merged weights"):
        made.model.merge_adapter(safe_merge=True)
    assert torch.equal(made.layer.base_layer.weight, before)


# ----------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("first", ["plain", "sine"])
def test_groups_are_refused_by_name(first: str):
    net = nn.Sequential(nn.Linear(3, 4), nn.Conv2d(4, 8, 3, groups=2))
    if first == "sine":
        with pytest.raises(ValueError, match="1: a convolution of 2 groups takes no factorized adapter"):
            get_peft_model(net, sine(target_modules=["0", "1"]))
        return
    model = get_peft_model(net, plain(target_modules=["1"]))
    with pytest.raises(ValueError, match="1: a convolution of 2 groups"):
        model.add_adapter("second", sine(target_modules=["1"]))


def test_other_layers_are_refused_by_name():
    net = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2)})
    with pytest.raises(ValueError, match=r"attention: a MultiheadAttention takes no factorized adapter; .*Linear"):
        get_peft_model(net, sine(target_modules=["attention"]))


# --------------------------------------------------------------------------------------------- any factorization


def formula(model, name: str = "0"):
    """Update s·W of the only layer, from what stands in its state."""
    layer = model.base_model.model.get_submodule(name)
    held = dict(layer.lora_A["default"].state_dict())
    family: Factorization = model.peft_config["default"].family(layer.r["default"])
    factors = [held[key].double() if held[key].is_floating_point() else held[key] for key in family.factors(9, 8)]
    return layer.scaling["default"] * family.weight(*factors)


@pytest.mark.parametrize("kind", [kind for kind in LAYERS if kind != "embedding"])
@with_and_without_dora
def test_a_family_other_than_two_factors(kind: str, dora: bool):
    build, _ = LAYERS[kind]
    base, x = build(), make(kind).x
    torch.manual_seed(0)
    config = shuffled(target_modules=["0"], use_dora=dora, fan_in_fan_out=kind == "transposed")
    model = get_peft_model(nn.Sequential(copy.deepcopy(base)), config)
    layer = model.base_model.model[0]
    assert {"order", "U", "V"} == set(layer.lora_A["default"].state_dict())
    whole = layer.as_base(layer.base_matrix().double() + formula(model))
    if dora:
        whole = layer.as_base(layer.exact("default").double())  # the lengths are those of the start
        assert (
            away(layer.exact("default").norm(dim=1), layer.lora_magnitude_vector["default"].weight.flatten()) < 1e-5
        )
    expected = torch.func.functional_call(base.double(), {"weight": whole}, (x.double(),))
    assert away(model(x), expected) < 5e-6
    model(x).sum().backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if "lora_" in name)
    assert away(model.merge_and_unload()(x), expected) < 5e-6


def test_a_family_other_than_two_factors_starts_at_zero():
    net = nn.Sequential(nn.Linear(8, 9))
    x = torch.randn(3, 8)
    y = net(x)
    model = get_peft_model(net, shuffled(target_modules=["0"], init_lora_weights=True))
    assert away(model(x), y) < 1e-6


@pytest.mark.parametrize(
    ("layer", "more", "message"),
    [
        (nn.Embedding(9, 8), {}, "an embedding takes factors U, V alone, which a ShuffledLowRank has not"),
        (
            nn.Linear(9, 8),
            {"lora_bias": True},
            "lora_bias needs the factors U and V, which a Shuffled",
        ),
    ],
    ids=["embedding", "lora_bias"],
)
def test_refuses_other_factors(layer: nn.Module, more, message: str):
    with pytest.raises(ValueError, match=message):
        get_peft_model(nn.Sequential(layer), shuffled(target_modules=["0"], **more))


def test_low_rank_as_a_family_equals_peft():
    net, x = nn.Sequential(nn.Linear(12, 10)), torch.randn(3, 12)
    ours = FactorizedLoraConfig(factorization="LowRank", r=3, target_modules=["0"], init_lora_weights=False)
    theirs = LoraConfig(r=3, target_modules=["0"])
    ours, theirs = (get_peft_model(copy.deepcopy(net), config) for config in (ours, theirs))
    theirs.load_state_dict(ours.state_dict())
    assert away(ours(x), theirs(x)) < 1e-6


def test_the_compiler_takes_it_whole():
    made = make("linear", lora_alpha=6)
    explained = torch._dynamo.explain(made.layer.train())(made.x)
    assert explained.graph_break_count == 0 and explained.graph_count == 1


def test_each_factor_in_its_group():
    net = nn.Sequential(nn.Linear(24, 20), nn.Embedding(30, 24))
    sizes = {"r": 2, "target_modules": ["0"], "init_lora_weights": False}
    mixed = FactorizedLoraConfig(factorization="ResidualSine", factorization_args={"lr_multiplier": 3.0}, **sizes)
    model = get_peft_model(net, mixed)
    model.add_adapter("embedded", sine(target_modules=["1"], factorization_args={"lr_multiplier": 5.0}))
    model.base_model.set_adapter(["default", "embedded"])
    names = {id(p): name.rpartition(".lora_")[2] for name, p in model.named_parameters()}
    found = {g["lr_multiplier"]: ({names[id(p)] for p in g["params"]}, g["weight_decay"]) for g in
             parameter_groups(model, 0.1)}  # fmt: skip
    assert found == {
        3.0: ({"A.default.U", "A.default.V"}, 0.0),
        1.0: ({"A.default.mix"}, 0.0),
        5.0: ({"embedding_A.embedded", "embedding_B.embedded"}, 0.0),
    }

"""Updates that are multiplied with the frozen weight: HiRA with any factorization in it."""

import copy

import pytest
import torch

from .tiny import ALL, away, gpt2, learn, llama, logits, plain, sine  # without PEFT it skips this file

# isort: split
from peft import HiraConfig, PeftModel, get_peft_model

from sinelr_lightning.adapters import FactorizedLoraConfig, SineLoraConfig


def hadamard(**changes) -> SineLoraConfig:
    return sine(**{"hadamard": True, "frequency": 6.0, "gain": 1.0} | changes)


def by_the_book(model, base):
    """The base with W₀ + s·W₀ ∘ sin(6·B·A) in the place of each weight, in float64."""
    whole = copy.deepcopy(base)
    for name, layer in model.base_model.model.named_modules():
        if hasattr(layer, "lora_A") and layer.lora_A:
            a, b = layer.lora_A["default"].weight.double(), layer.lora_B["default"].weight.double()
            weight = whole.get_submodule(name).weight
            update = layer.scaling["default"] * torch.sin(6 * b @ a)
            update = update.t() if layer.fan_in_fan_out else update
            weight.data = (weight.double() * (1 + update)).float()
    return whole


@pytest.mark.parametrize(
    ("build", "changes"),
    [(llama, {}), (gpt2, {"target_modules": ["c_attn"], "fan_in_fan_out": True})],
    ids=["llama", "gpt2"],
)
@pytest.mark.parametrize("safe", [False, True], ids=["", "safe"])
def test_by_the_book_trained_merged_and_unmerged(build, changes, safe: bool, tmp_path):
    base = build()
    model = learn(get_peft_model(build(), hadamard(**changes, lora_alpha=8)))
    adapted = logits(model)
    assert away(adapted, logits(base)) > 1e-2
    assert away(adapted, logits(by_the_book(model, base))) < 1e-4
    with torch.enable_grad():  # the way of training
        few = torch.arange(8)[None]
        assert away(model(input_ids=few).logits.detach(), logits(model, few)) < 1e-4
    model.save_pretrained(tmp_path)
    assert away(logits(PeftModel.from_pretrained(build(), tmp_path)), adapted) == 0
    model.merge_adapter(safe_merge=safe)
    assert away(logits(model), adapted) < 1e-4
    model.unmerge_adapter()
    with model.disable_adapter():
        assert away(logits(model), logits(base)) == 0  # the very weight that was there
    assert away(logits(model.merge_and_unload()), adapted) < 1e-4


def test_with_low_rank_it_is_hira():
    given = {"r": 4, "target_modules": ALL}
    theirs = get_peft_model(llama(), HiraConfig(**given, init_weights=False))
    ours = get_peft_model(
        llama(), FactorizedLoraConfig(**given, lora_alpha=4, factorization="LowRank", hadamard=True)
    )
    parameters = dict(ours.named_parameters())
    for name, value in theirs.named_parameters():
        if "hira_" in name:
            place = parameters[name.replace("hira_", "lora_") + ".weight"]
            place.data = value.detach().clone().reshape(place.shape)
    assert away(logits(ours), logits(theirs)) < 1e-4 and away(logits(ours), logits(llama())) > 1e-2


def test_gradients_reach_weights_that_stand_in_for_the_layers_own():
    # As functional_call, which puts others in the place of the parameters for a forward pass alone.
    model = get_peft_model(llama(), hadamard()).eval()
    trained = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    stand_in = {name: (p * 1.5).requires_grad_() for name, p in trained.items()}
    ids = torch.arange(8)[None]
    y = torch.func.functional_call(model, stand_in, (), {"input_ids": ids}).logits.square().sum()
    found = torch.autograd.grad(y, list(stand_in.values()))
    model.load_state_dict(stand_in, strict=False)
    parameters = [p for p in model.parameters() if p.requires_grad]
    expected = torch.autograd.grad(model(input_ids=ids).logits.square().sum(), parameters)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_merged_rounded_and_unmerged():
    model = get_peft_model(llama(), hadamard()).eval()
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    delta = layer.get_delta_weight("default")
    model.merge_adapter()
    torch.testing.assert_close(layer.get_delta_weight("default"), delta)  # of the weight that was there
    model.bfloat16().unmerge_adapter()
    assert layer.base_layer.weight.dtype == torch.bfloat16
    with model.disable_adapter():
        assert away(logits(model), logits(llama().bfloat16())) == 0


def test_dropout_mixed_batches_and_neighbours():
    model = get_peft_model(llama(), hadamard(lora_dropout=0.5)).eval()
    calm = logits(model)
    model.train()
    assert away(logits(model), calm) > 1e-3
    model.add_adapter("plain", plain())
    mixed = logits(model.eval(), adapter_names=["default", "plain", "__base__", "default"])
    assert away(mixed[[0, 3]], calm[[0, 3]]) < 1e-4
    assert away(mixed[2], logits(llama())[2]) < 1e-5
    with pytest.raises(ValueError, match="a hadamard adapter is merged alone, not with another: default, plain"):
        model.merge_adapter(["default", "plain"])


def test_ways_to_start_a_layer_are_none_of_an_adapter():
    for family, start in (("LowRank", "spectral"), ("FourierLowRank", "balanced")):
        with pytest.raises(ValueError, match=f"{start} is how a layer starts from scratch"):
            FactorizedLoraConfig(factorization=family, factorization_args={start: True})


def test_where_it_does_not_fit():
    with pytest.raises(ValueError, match="hadamard cannot be combined with use_dora"):
        hadamard(use_dora=True)
    with pytest.raises(ValueError, match="hadamard is for float linear layers, not for Embedding"):
        get_peft_model(llama(), hadamard(target_modules=["embed_tokens"]))

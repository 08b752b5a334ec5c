"""Adapters in whole models: built, switched, mixed, written, read, and refused where they cannot be right."""

import copy
import pickle

import pytest
import torch
from layers.families import relative_error
from torch import nn

from .tiny import ALL, IDS, away, bert, gpt2, learn, llama, logits, plain, shuffled, sine  # skips without PEFT

# isort: split
from peft import PeftModel, TaskType, get_peft_model, inject_adapter_in_model
from peft.tuners import lora
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils.hotswap import hotswap_adapter
from safetensors.torch import load_file

from sinelr_lightning.adapters.kinds import FactorizedLoraEmbedding, FactorizedLoraLinear
from sinelr_lightning.adapters.layers import FactorizedLoraLayer

ENTRIES = "adapter_model.safetensors"
GPT2 = {"target_modules": ["c_attn", "c_fc", "wte"], "fan_in_fan_out": True}
BERT = {"target_modules": ["query", "value", "word_embeddings"], "task_type": TaskType.SEQ_CLS}

models = pytest.mark.parametrize(
    ("build", "changes"),
    [
        (llama, {}),
        (llama, {"use_dora": True}),
        (llama, {"target_modules": "all-linear", "lora_dropout": 0.1, "use_rslora": True}),
        (lambda: llama(tied=True), {"target_modules": ["embed_tokens", "q_proj"]}),
        (gpt2, GPT2),
        (gpt2, GPT2 | {"use_dora": True}),
        (bert, BERT),
        (bert, BERT | {"use_dora": True}),
    ],
    ids=["llama", "llama dora", "llama dropout", "llama tied", "gpt2", "gpt2 dora", "bert", "bert dora"],
)
three = pytest.mark.parametrize("make", [sine, shuffled, plain], ids=["sine", "shuffled", "plain"])


# --------------------------------------------------------------------------------------------- the life of an adapter


@models
def test_starts_learns_is_switched_off_written_and_read(build, changes, tmp_path):
    base = logits(build())
    model = get_peft_model(build(), sine(**changes, init_lora_weights=True)).eval()
    assert away(logits(model), base) < 1e-5
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    learnt = logits(learn(model))
    assert away(learnt, base) > 1e-2
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, start[name])}
    assert moved == {name for name, p in model.named_parameters() if p.requires_grad}
    with model.disable_adapter():
        untrained_head = "modules_to_save" not in "".join(moved)
        assert away(logits(model), base) < 1e-5 or not untrained_head
    model.save_pretrained(tmp_path)
    for low in (False, True):
        read = PeftModel.from_pretrained(build(), tmp_path, low_cpu_mem_usage=low)
        assert away(logits(read), learnt) == 0
        assert not any(p.is_meta for p in read.parameters())


@three
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
def test_copied(make, copied):
    model = get_peft_model(llama(), make()).eval()
    expected = logits(model)
    again = copied(model)
    assert away(logits(again), expected) == 0
    learn(again)
    assert away(logits(model), expected) == 0 < away(logits(again), expected)


@three
def test_injected(make):
    model = get_peft_model(llama(), make()).eval()
    state = get_peft_model_state_dict(model)
    bare = inject_adapter_in_model(make(), llama())
    assert away(logits(bare.eval()), logits(model)) > 1e-3
    assert not set_peft_model_state_dict(bare, state).unexpected_keys
    assert away(logits(bare), logits(model)) == 0


def test_plain_adapters_are_built_of_peft_s_own_layers():
    model = get_peft_model(llama(), plain())
    layers = [m for m in model.modules() if isinstance(m, lora.LoraLayer)]
    assert {type(m) for m in layers} == {lora.Linear}
    model.add_adapter("sine", sine(target_modules=["q_proj"]))
    kinds = {name.rsplit(".", 1)[-1]: type(m) for name, m in model.named_modules() if isinstance(m, lora.LoraLayer)}
    assert kinds == dict.fromkeys(ALL, lora.Linear) | {"q_proj": FactorizedLoraLinear}
    assert FactorizedLoraEmbedding in map(type, get_peft_model(gpt2(), sine(**GPT2)).modules())


def test_modules_to_save(tmp_path):
    model = get_peft_model(llama(), sine(target_modules=["q_proj"], modules_to_save=["lm_head", "norm"]))
    learnt = logits(learn(model))
    model.save_pretrained(tmp_path)
    assert any("lm_head" in key for key in load_file(tmp_path / ENTRIES))
    assert away(logits(PeftModel.from_pretrained(llama(), tmp_path)), learnt) == 0
    assert away(logits(model.merge_and_unload()), learnt) < 2e-5


# --------------------------------------------------------------------------------------------------- several adapters

PAIRS = {
    "sine, plain": (sine, plain),
    "plain, sine": (plain, sine),
    "two sines": (sine, lambda **k: sine(r=2, frequency=15.0, **k)),
    "shuffled, sine": (shuffled, sine),
    "plain, shuffled": (plain, shuffled),
}
pairs = pytest.mark.parametrize("pair", PAIRS)


def two(pair: str, build=llama, **changes):
    """A model with adapters one and two, and its logits with each alone and with none."""
    first, second = PAIRS[pair]
    model = get_peft_model(build(), first(**changes), adapter_name="one")
    model.add_adapter("two", second(**changes))
    model.eval()
    alone = {"__base__": logits(build())}
    for name in ("two", "one"):
        model.set_adapter(name)
        alone[name] = logits(model)
    return model, alone


@pairs
def test_each_of_two_adapters_is_as_if_alone(pair: str, tmp_path):
    model, alone = two(pair)
    assert min(away(alone["one"], alone["two"]), away(alone["one"], alone["__base__"])) > 1e-2
    model.save_pretrained(tmp_path)
    for name in ("one", "two"):
        assert away(logits(PeftModel.from_pretrained(llama(), tmp_path / name)), alone[name]) < 1e-5
    model.load_adapter(tmp_path / "one", "again")
    model.set_adapter("again")
    assert away(logits(model), alone["one"]) < 1e-5


@pairs
@pytest.mark.parametrize("deleted", ["one", "two"])
def test_deleted(pair: str, deleted: str):
    model, alone = two(pair)
    model.delete_adapter(deleted)
    kept = "two" if deleted == "one" else "one"
    assert not any(f".{deleted}" in key for key in model.state_dict())
    assert all(deleted not in m.lora_variant for m in model.modules() if isinstance(m, lora.LoraLayer))
    model.set_adapter(kept)
    assert away(logits(model), alone[kept]) == 0


@pytest.mark.parametrize(
    ("pair", "build", "changes"),
    [
        *[(pair, llama, {}) for pair in PAIRS],
        *[(pair, gpt2, GPT2) for pair in PAIRS if "shuffled" not in pair],
        ("sine, plain", lambda: llama(tied=True), {"target_modules": ["embed_tokens", "v_proj"]}),
    ],
)
def test_mixed_batches(pair: str, build, changes):
    model, alone = two(pair, build, **changes)
    names = ["one", "__base__", "two", "one"]
    mixed = logits(model, adapter_names=names)
    for row, name in enumerate(names):
        assert away(mixed[row], alone[name][row]) < 1e-4
    with pytest.raises(ValueError, match="Length of `adapter_names`"):
        logits(model, adapter_names=names[:2])


def test_mixed_batches_refuse_dora_as_peft_does():
    model = get_peft_model(llama(), sine(use_dora=True)).eval()
    with pytest.raises(ValueError, match="Cannot pass `adapter_names` when DoRA is enabled"):
        logits(model, adapter_names=["default"] * 4)


def test_weighted_sums_of_factors_are_refused():
    model = get_peft_model(llama(), plain(), adapter_name="one")
    model.add_adapter("two", plain())
    model.add_weighted_adapter(["one", "two"], [1.0, 0.5], "sum", combination_type="cat")  # plain ones work
    model.add_adapter("three", sine())
    with pytest.raises(ValueError, match="three is a SineLoraConfig: its factors cannot be combined linearly"):
        model.add_weighted_adapter(["one", "three"], [1.0, 1.0], "other")
    assert "other" not in model.peft_config


# ------------------------------------------------------------------------------------------------------------ hotswap


@pytest.mark.parametrize("make", [sine, plain], ids=["sine", "plain"])
@pytest.mark.parametrize("changes", [{}, {"r": 2}, {"lora_alpha": 3}, {"r": 2, "use_rslora": True}], ids=str)
def test_hotswap(make, changes, tmp_path):
    other = get_peft_model(llama(), make(**changes)).eval()
    other.save_pretrained(tmp_path)
    model = get_peft_model(llama(), make(use_rslora=changes.get("use_rslora", False))).eval()
    assert away(logits(model), logits(other)) > 1e-3
    hotswap_adapter(model, tmp_path, "default", torch_device="cpu")
    assert away(logits(model), logits(other)) < 1e-4


@pytest.mark.parametrize("changes", [{"frequency": 50.0}, {"gain": 3.0}], ids=str)
def test_hotswap_of_another_sine_is_refused(changes, tmp_path):
    get_peft_model(llama(), sine(**changes)).save_pretrained(tmp_path)
    model = get_peft_model(llama(), sine())
    with pytest.raises(ValueError, match=f"Configs are incompatible: for {next(iter(changes))}"):
        hotswap_adapter(model, tmp_path, "default", torch_device="cpu")


# ---------------------------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize(
    "make", [sine, lambda **k: sine(use_dora=True, **k), shuffled], ids=["sine", "dora", "shuffled"]
)
def test_half_precision_and_autocast(make):
    torch.manual_seed(0)
    model = get_peft_model(llama(), make()).eval()
    exact = logits(model)
    with torch.autocast("cpu", torch.bfloat16):
        low = logits(model)
    low_model = get_peft_model(llama().bfloat16(), make()).eval()
    assert {p.dtype for p in low_model.parameters() if p.requires_grad} == {torch.float32}
    low_model.load_state_dict(model.state_dict())
    for y in (low, logits(low_model)):
        assert y.dtype == torch.bfloat16
        assert relative_error(y, exact) < 0.1
    before = logits(low_model)
    assert away(logits(learn(low_model)), before) > 0


def test_generation():
    model = get_peft_model(llama(), sine()).eval()
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    with model.disable_adapter():
        base = model.generate(input_ids=IDS[:2], **options)
    before = model.generate(input_ids=IDS[:2], **options)
    assert before.shape == (2, 17)
    assert not torch.equal(before, base)
    assert torch.equal(model.merge_and_unload().generate(input_ids=IDS[:2], **options), before)


def test_layers_wait_for_those_who_hook_the_base_layer():
    model = get_peft_model(llama(), sine()).eval()
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    assert isinstance(layer, FactorizedLoraLayer)
    expected, seen = logits(model), []
    handle = layer.base_layer.register_forward_hook(lambda *a: seen.append(1))
    assert away(logits(model), expected) < 1e-5
    assert seen == [1]
    handle.remove()
    nn.utils.parametrize.register_parametrization(layer.base_layer, "weight", nn.Identity())
    assert away(logits(model), expected) < 1e-5

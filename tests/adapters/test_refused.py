"""Entries that do not fit, targets that are not there, names that nothing could be found by: refused in one line."""

import re

import accelerate
import pytest
import torch
from torch import nn

from .tiny import away, bert, llama, logits, plain, shuffled, sine  # without PEFT it skips this file

# isort: split
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

ENTRIES = "adapter_model.safetensors"


def _without(entries):
    entries.pop(next(iter(entries)))


def _with_one_more(entries):
    entries["base_model.model.model.foo.lora_A.weight"] = torch.zeros(1)


def _of_another_shape(entries):
    key = next(iter(entries))
    entries[key] = torch.zeros(4, 31)


@pytest.mark.parametrize("make", [sine, shuffled], ids=["sine", "shuffled"])
@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (_without, r"the weights do not fit adapter default of this model: missing .*lora_A"),
        (_with_one_more, r"the weights do not fit adapter default of this model: unexpected .*foo"),
        (_of_another_shape, r"the adapter is of another base model or rank: .*\[4, 31\] in the file, \["),
    ],
)
@pytest.mark.parametrize("low", [False, True], ids=["", "low_cpu_mem_usage"])
def test_entries_must_fit(make, broken, message: str, low: bool, tmp_path):
    get_peft_model(llama(), make()).save_pretrained(tmp_path)
    entries = load_file(tmp_path / ENTRIES)
    broken(entries)
    save_file(entries, tmp_path / ENTRIES)
    with pytest.raises(ValueError, match=message):
        PeftModel.from_pretrained(llama(), tmp_path, low_cpu_mem_usage=low)


@pytest.mark.parametrize(
    ("changes", "entry", "message"),
    [
        ({"bias": "all"}, "bias", r"missing .*\.bias and"),
        ({"modules_to_save": ["classifier"]}, "classifier.weight", r"missing .*classifier\.weight"),
    ],
    ids=["biases", "a module trained whole"],
)
def test_what_is_trained_beside_the_factors_must_be_there(changes, entry: str, message: str, tmp_path):
    config = {"target_modules": ["query", "value"], **changes}
    get_peft_model(bert(), sine(**config)).save_pretrained(tmp_path)
    entries = load_file(tmp_path / ENTRIES)
    kept = {key: value for key, value in entries.items() if entry not in key}
    assert 0 < len(kept) < len(entries)
    save_file(kept, tmp_path / ENTRIES)
    with pytest.raises(ValueError, match=f"the weights do not fit adapter default of this model: {message}"):
        PeftModel.from_pretrained(bert(), tmp_path)


@pytest.mark.parametrize("low", [False, True], ids=["", "low_cpu_mem_usage"])
def test_a_refused_adapter_is_taken_out_again(low: bool, tmp_path):
    model = get_peft_model(llama(), sine()).eval()
    keys, answer = model.state_dict().keys(), logits(model)
    model.save_pretrained(tmp_path)
    entries = load_file(tmp_path / ENTRIES)
    _without(entries)
    save_file(entries, tmp_path / ENTRIES)
    with pytest.raises(ValueError, match="do not fit adapter second"):
        model.load_adapter(tmp_path, "second", low_cpu_mem_usage=low)
    assert list(model.peft_config) == ["default"]
    assert model.state_dict().keys() == keys
    assert torch.equal(logits(model), answer)


def _convolutions():
    return nn.Sequential(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 3, groups=2))


def test_a_model_that_takes_no_adapter_stays_as_it_was():
    net = _convolutions()
    keys = net.state_dict().keys()
    with pytest.raises(ValueError, match="1: a convolution of 2 groups"):
        get_peft_model(net, sine(target_modules=["0", "1"], use_dora=True))
    assert net.state_dict().keys() == keys
    model = get_peft_model(net, sine(target_modules=["0"]))
    taken = model.state_dict().keys()
    with pytest.raises(ValueError, match="1: a convolution of 2 groups"):
        model.add_adapter("second", sine(target_modules=["0", "1"]))
    assert model.state_dict().keys() == taken


FORMULAS = {
    "another frequency": (lambda: sine(frequency=3.0), sine, "has frequency 40.0, adapter default of this model 3.0"),
    "plain into sine": (sine, plain, "has factorization None, adapter default of this model 'SineLowRank'"),
    "sine into plain": (plain, sine, "has factorization 'SineLowRank', adapter default of this model None"),
    "with a magnitude": (sine, lambda: sine(use_dora=True), "has use_dora True, adapter default of this model False"),
}


@pytest.mark.parametrize("case", FORMULAS)
def test_an_adapter_of_another_formula_is_not_loaded_into_one(case: str, tmp_path):
    here, there, message = FORMULAS[case]
    get_peft_model(llama(), there()).save_pretrained(tmp_path)
    model = get_peft_model(llama(), here()).eval()
    answer = logits(model)
    with pytest.raises(ValueError, match=f"adapter_config.json: its adapter {message}: load it under another name"):
        model.load_adapter(tmp_path, "default")
    assert torch.equal(logits(model), answer)


def test_factors_that_are_offloaded_are_refused():
    model = get_peft_model(nn.Sequential(nn.Linear(8, 6)), sine(target_modules=["0"])).eval()
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    with pytest.raises(RuntimeError, match="the factors of adapter default are offloaded"):
        model(torch.randn(2, 8))


def test_a_layer_whose_forward_was_replaced_takes_no_adapter():
    model = get_peft_model(llama(), plain(target_modules=["q_proj"]))
    for layer in [m for name, m in model.named_modules() if name.endswith("q_proj")]:
        accelerate.hooks.add_hook_to_module(layer, accelerate.hooks.ModelHook())
    with pytest.raises(ValueError, match="q_proj: the forward of this layer was replaced"):
        model.add_adapter("second", sine(target_modules=["q_proj"]))


def test_plain_adapters_are_read_as_forgivingly_as_before(tmp_path):
    get_peft_model(llama(), plain()).save_pretrained(tmp_path)
    entries = load_file(tmp_path / ENTRIES)
    _without(entries)
    save_file(entries, tmp_path / ENTRIES)
    with pytest.warns(UserWarning, match="missing adapter keys"):
        PeftModel.from_pretrained(llama(), tmp_path)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["q_prj"], "no module's name ends in 'q_prj'; near it are .*q_proj"),
        (["q_proj", "nothing"], "no module's name ends in 'nothing'"),
        (["layers.0.mlp.q_proj"], "ends in 'layers.0.mlp.q_proj'; near it are .*layers.0"),
        ("q_prj", "no module's name matches 'q_prj'; near it are .*q_proj"),
        (".*(q_proj", r"target_modules: '\.\*\(q_proj' is no regular expression"),
        (["foo"], "linear layers here end in down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj"),
    ],
)
def test_a_target_that_no_module_matches(targets, message: str):
    with pytest.raises(ValueError, match=message):
        get_peft_model(llama(), sine(target_modules=targets))


@pytest.mark.parametrize("name", ["lora", "lora_", "lora_x", "my_lora_", "a.b", "o", "ra"])
def test_names_that_weights_cannot_be_found_by(name: str):
    with pytest.raises(ValueError, match=f"an adapter cannot be called '{re.escape(name)}'"):
        get_peft_model(llama(), sine(), adapter_name=name)


@pytest.mark.parametrize("name", ["weight", "base_layer", "model", "U", "order", "q_proj", "0", "test-adapter", "Ü"])
@pytest.mark.parametrize("make", [sine, shuffled, plain], ids=["sine", "shuffled", "plain"])
def test_names_that_they_can_be_found_by(name: str, make, tmp_path):
    model = get_peft_model(llama(), make(), adapter_name=name).eval()
    model.save_pretrained(tmp_path)
    read = PeftModel.from_pretrained(llama(), tmp_path / name, adapter_name=name)
    assert away(logits(read), logits(model)) == 0
    beside = get_peft_model(llama(), make())
    beside.load_adapter(tmp_path / name, name)
    beside.set_adapter(name)
    assert away(logits(beside.eval()), logits(model)) == 0


@pytest.mark.parametrize("make", [sine, shuffled], ids=["sine", "shuffled"])
def test_models_of_peft_that_do_not_know_us_refuse(make):
    # PEFT tells variants by a tag of their fields; without it a mixed model would answer with plain B·A.
    with pytest.raises(ValueError, match=r"unsupported variant combination: \('factorization',\)"):
        get_peft_model(llama(), make(), mixed=True)

"""Entries that do not fit, targets that are not there, names that nothing could be found by: refused in one line."""

import re

import pytest
import torch

from .tiny import away, llama, logits, plain, shuffled, sine  # without PEFT it skips this file

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


@pytest.mark.parametrize("make", [sine, shuffled], ids=["sine", "shuffled"])
def test_models_of_peft_that_do_not_know_us_refuse(make):
    # PEFT tells variants by a tag of their fields; without it a mixed model would answer with plain B·A.
    with pytest.raises(ValueError, match=r"unsupported variant combination: \('factorization',\)"):
        get_peft_model(llama(), make(), mixed=True)

"""Adapters merged into whole models: what is untied, what is told, and what comes out of the files."""

import logging
import re

import pytest
import torch
from torch import nn

from .tiny import away, bert, gpt2, llama, logits, plain, shuffled, sine, transformers  # skips without PEFT

# isort: split
from peft import get_peft_model

from sinelr_lightning.adapters.layers import FactorizedLoraLayer

EMBEDDED = {"target_modules": ["embed_tokens", "q_proj"]}
HEAD = {"target_modules": ["lm_head", "q_proj"]}
GPT2 = {"target_modules": ["wte", "c_attn"], "fan_in_fan_out": True}


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "sinelr_lightning.adapters")
    return caplog


@pytest.mark.parametrize(
    ("build", "changes"),
    [
        (llama, {}),
        (llama, {"use_dora": True}),
        (lambda: llama(tied=True), EMBEDDED),
        (lambda: llama(tied=True), EMBEDDED | {"use_dora": True}),
        (lambda: llama(tied=True), HEAD),
        (gpt2, GPT2),
        (gpt2, GPT2 | {"use_dora": True}),
        (bert, {"target_modules": ["query", "dense", "word_embeddings"]}),
    ],
    ids=["llama", "llama dora", "embedding", "embedding dora", "head", "gpt2", "gpt2 dora", "bert"],
)
@pytest.mark.parametrize("safe", [False, True], ids=["", "safe"])
def test_a_merged_model_in_a_file_equals_the_adapted_one(build, changes, safe: bool, tmp_path):
    model = get_peft_model(build(), sine(**changes)).eval()
    before = logits(model)
    assert away(before, logits(build())) > 1e-2
    merged = model.merge_and_unload(safe_merge=safe)
    assert not any(isinstance(m, FactorizedLoraLayer) for m in merged.modules())
    assert type(merged) is type(build())
    assert away(logits(merged), before) < 5e-5
    merged.save_pretrained(tmp_path)
    read = type(merged).from_pretrained(tmp_path)
    assert away(logits(read), logits(merged)) == 0
    assert {tuple(p.shape) for p in read.parameters()} == {tuple(p.shape) for p in merged.parameters()}


@pytest.mark.parametrize(
    ("build", "changes", "shared"),
    [
        (lambda: llama(tied=True), EMBEDDED, "lm_head"),
        (lambda: llama(tied=True), HEAD, "model.embed_tokens"),
        (gpt2, GPT2, "lm_head"),
    ],
    ids=["embedding", "head", "gpt2"],
)
def test_tied_weights_are_untied_and_told(build, changes, shared: str, told):
    model = get_peft_model(build(), sine(**changes)).eval()
    inner = model.base_model.model
    assert inner.config.tie_word_embeddings
    model.merge_adapter()
    (warning,) = [record for record in told.records if record.levelno == logging.WARNING]
    assert f"shared with {shared}: untied" in warning.getMessage()
    assert not inner.config.tie_word_embeddings
    assert not inner.config.get_text_config().tie_word_embeddings
    other = inner.get_submodule(shared)
    original = build().get_submodule(shared)
    assert away(other.weight, original.weight) == 0  # the update was for the other layer alone
    weights = {m.weight.data_ptr() for m in (inner.get_input_embeddings(), inner.get_output_embeddings())}
    assert len(weights) == 2


@pytest.mark.parametrize(
    ("build", "make"), [(llama, sine), (lambda: llama(tied=True), lambda: plain(**EMBEDDED))], ids=["no tie", "plain"]
)
def test_nothing_else_is_untied(build, make, told):
    model = get_peft_model(build(), make()).eval()
    tied = model.base_model.model.config.tie_word_embeddings
    model.merge_adapter()
    assert model.base_model.model.config.tie_word_embeddings == tied
    assert not [record for record in told.records if record.levelno == logging.WARNING]


@pytest.mark.parametrize("make", [sine, shuffled, lambda: sine(use_dora=True)], ids=["sine", "shuffled", "dora"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_merging_costs_is_printed(make, dtype: torch.dtype, capsys):
    model = get_peft_model(llama().to(dtype), make()).eval()
    before = logits(model, torch.arange(24).reshape(2, 12) * 7 % 64)
    model.merge_adapter()
    (line,) = capsys.readouterr().err.splitlines()
    number = r"(\d\.?\d*(?:e[+-]\d+)?)"
    found = re.fullmatch(
        f"merged default: weights differ by at most {number} from the exact ones; "
        f"logits, up to {number}, by at most {number}",
        line,
    )
    assert found, line
    weights, largest, logit = map(float, found.groups())
    layers = [m for m in model.modules() if isinstance(m, FactorizedLoraLayer)]
    assert weights == pytest.approx(max(layer.merge_rounding for layer in layers), rel=0.1)
    assert 0.2 < largest / before.abs().max() < 5
    low = dtype == torch.bfloat16
    assert 1e-4 < weights < 2e-2 if low else weights == 0
    assert logit < (0.5 if low else 1e-4)


def test_nothing_is_told_of_plain_adapters(told, capsys):
    get_peft_model(llama(), plain()).merge_and_unload()
    get_peft_model(llama(), sine()).unload()
    assert not told.records
    assert "merged" not in capsys.readouterr().err


ROUNDING = r"merged default: weights differ by at most \S+ from the exact ones\n"


def test_a_model_without_tokens_is_merged(capsys):
    model = get_peft_model(nn.Sequential(nn.Linear(12, 10)), sine(target_modules=["0"]))
    x = torch.randn(3, 12)
    y = model(x)
    assert away(model.merge_and_unload()(x), y) < 5e-6
    assert re.fullmatch(ROUNDING, capsys.readouterr().err)


def _without_padding():
    return transformers.LlamaForSequenceClassification(llama().config)


def _with_choices():
    return transformers.BertForMultipleChoice(bert().config)


def _of_eight_positions():
    config = transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=4, n_positions=8)
    return transformers.GPT2LMHeadModel(config)


def _without_a_vocabulary():
    model = bert()
    del model.config.vocab_size
    return model


@pytest.mark.parametrize(
    ("build", "changes"),
    [
        (_without_padding, {}),
        (_without_a_vocabulary, {"target_modules": ["query"]}),
        (_with_choices, {"target_modules": ["query"]}),
        (_of_eight_positions, {"target_modules": ["c_attn"], "fan_in_fan_out": True}),
    ],
    ids=["no padding token", "no vocabulary", "multiple choice", "few positions"],
)
def test_a_model_that_refuses_the_tokens_of_the_comparison_is_merged(build, changes, capsys):
    merged = get_peft_model(build(), sine(**changes)).merge_and_unload()
    assert not any(isinstance(m, FactorizedLoraLayer) for m in merged.modules())
    assert re.fullmatch(ROUNDING, capsys.readouterr().err)


def test_merging_leaves_each_module_in_its_mode_and_keeps_no_weight(monkeypatch: pytest.MonkeyPatch):
    # The comparison of logits must not hold a second copy of every weight.
    served, original = [], FactorizedLoraLayer._served
    monkeypatch.setattr(FactorizedLoraLayer, "_served", lambda *a: served.append(a) or original(*a))
    model = get_peft_model(llama(), sine()).train()
    frozen = model.base_model.model.model.layers[0].eval()
    with torch.no_grad():
        model.merge_adapter()
    assert not served
    assert not any(m.training for m in frozen.modules())
    assert model.base_model.model.model.layers[1].training


@pytest.mark.parametrize("names", [["one", "two"], ["two", "one"], ["two"]], ids="-".join)
@pytest.mark.parametrize("second", [sine, plain, lambda: sine(use_dora=True)], ids=["sine", "plain", "dora"])
def test_chosen_adapters_are_merged(names: list[str], second):
    model = get_peft_model(llama(), sine(), adapter_name="one")
    model.add_adapter("two", second())
    model.eval()
    model.base_model.set_adapter(names)
    expected = logits(model)
    model.base_model.set_adapter("one")
    model.merge_adapter(names)
    assert away(logits(model), expected) < 5e-5
    model.unmerge_adapter()
    model.base_model.set_adapter(names)
    assert away(logits(model), expected) < 5e-5

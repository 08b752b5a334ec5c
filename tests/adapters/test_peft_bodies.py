"""PEFT's own tests with our adapters; its sources hold them, they are fetched once and nothing of them is copied."""

import inspect
import re

import pytest
import torch

from . import tiny  # without PEFT it skips this file
from .peft_tests import cases, load

# isort: split
from transformers import AutoModelForCausalLM

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(600)]

# Answers of ours to what only fits a plain B·A.
REFUSED = re.compile(r"takes no factorized adapter|cannot be combined (with|linearly)|fits a plain B·A alone")

# ------------------------------------------------------------------------------------- table-driven: custom models

SINES = {"frequency": 40.0, "gain": 20.0}
MODELS = [
    ("MLP", {"target_modules": "lin0"}),
    ("MLP", {"target_modules": ["lin0", "lin1"], "use_rslora": True}),
    ("MLP", {"target_modules": ["lin0"], "modules_to_save": ["lin1"]}),
    ("MLP", {"target_modules": ["lin0"], "lora_alpha": 4, "lora_dropout": 0.1}),
    ("MLP", {"target_modules": ["lin0"], **SINES, "init_lora_weights": "gaussian"}),
    ("EmbConv1D", {"target_modules": ["conv1d"]}),
    ("EmbConv1D", {"target_modules": ["emb"]}),
    ("EmbConv1D", {"target_modules": ["emb", "conv1d"], **SINES}),
    ("EmbConv1D", {"target_modules": ["conv1d"], "trainable_token_indices": {"emb": [0, 10]}}),
    ("Conv1dBigger", {"target_modules": ["conv1d"]}),
    ("Conv2d", {"target_modules": ["conv2d"]}),
    ("Conv2d", {"target_modules": ["conv2d", "lin0"], **SINES}),
    ("Conv2d1x1", {"target_modules": ["conv2d"]}),
    ("Conv2d2", {"target_modules": ["conv2d"]}),
    ("Conv3d", {"target_modules": ["conv3d"]}),
]
MODELS += [(model, {**changes, "use_dora": True}) for model, changes in MODELS]
MODELS += [("MLP", {"target_modules": ["lin0", "lin1"], "lora_bias": True})]


def table_driven(tester) -> dict[str, list[str]]:
    """PEFT's tests that take a model and a configuration, with the fixtures that they want besides."""
    found = {}
    for name, test in vars(tester).items():
        wanted = list(inspect.signature(test).parameters)[1:] if name.startswith("test_") else []
        if wanted[:4] == ["test_name", "model_id", "config_cls", "config_kwargs"]:
            found[name] = wanted[4:]
    return found


@pytest.mark.parametrize(("model", "changes"), MODELS, ids=lambda value: str(value).replace("target_modules", ""))
def test_custom_models(model: str, changes, tmp_path):
    module, ran = load("test_custom_models"), []
    bodies = table_driven(module.TestPeftCustomModel)
    assert len(bodies) > 30
    for body, more in bodies.items():
        run = getattr(module.TestPeftCustomModel(), body)
        for number, given in enumerate(_besides(run, more)):
            given |= {"tmp_path": tmp_path / f"{body}{number}"} if "tmp_path" in more else {}
            torch.manual_seed(0)
            try:
                run("ours", model, tiny.SineLoraConfig, dict(changes), **given)
            except pytest.skip.Exception:
                continue
            except Exception as error:
                error.add_note(f"in PEFT's {body}{given}")
                raise
            ran.append(body)
    assert len(set(ran)) > 25


def _besides(run, more: list[str]):
    """The parameters of a table-driven test other than those of the table."""
    named = [name for name in more if name != "tmp_path"]
    if not named:
        return [{}]
    unique = {str(case): case for case in ({n: given[n] for n in named} for given in cases(run))}
    return unique.values()


# ------------------------------------------------------------------------------------------- other classes of tests

CLASSES = {
    "test_custom_models": [
        "TestMultiRankAdapter",
        "TestMultipleActiveAdapters",
        "TestRequiresGrad",
        "TestMixedAdapterBatches",
        "TestPeftCustomModel",
    ],
    "test_initialization": ["TestHotSwapping", "TestWeightTying", "TestLoraInitialization"],
}
LOADS = "it loads a model of the hub"
EXCEPTIONS = {
    "test_lora_embedding_default": "an embedding's factors are drawn as the sine wants them, not from N(0, 1)",
    "test_lora_embedding_gaussian": "an embedding's factors are drawn as the sine wants them, not from N(0, 1)",
    "test_load_resized_embedding_ignore_mismatched_sizes": "entries of our adapters must fit, asked or not",
    "test_add_adapter_rejects_duplicate_name_without_mutation": "a PeftMixedModel refuses our adapters",
    "test_multiple_adapters_same_modules_to_save_merging_adapters_raises": "refused before, with another message",
    "test_modules_to_save_targets_lora_layer_raises": "refused before, with another message",
    "test_trainable_token_indices_targets_lora_layer_raises": "refused before, with another message",
    "test_trainable_token_indices_targets_head_and_embedding": LOADS,
    "test_nemotron_h_has_defaults_and_blocks_mamba_modules": LOADS,
    "test_mixed_adapter_batches_lora_opt_timing": LOADS,
    "test_mixed_adapter_batches_mha_raises": "attention is refused before",
}


@pytest.mark.parametrize(("module", "name"), [(module, name) for module in CLASSES for name in CLASSES[module]])
def test_other_classes(module: str, name: str, tmp_path, request: pytest.FixtureRequest):
    tester, passed = getattr(load(module), name), []
    driven = table_driven(tester)
    for body, run in vars(tester).items():
        wanted = list(inspect.signature(run).parameters)[1:] if body.startswith("test_") else []
        if not body.startswith("test_") or body in driven or body in EXCEPTIONS:
            continue
        if set(wanted) - {n for given in cases(run) for n in given} - {"tmp_path", "recwarn"}:
            continue  # a fixture of the class, most of them with a model of the hub
        for number, given in enumerate(cases(run)):
            if given.get("do_compile"):
                continue  # 9 s; what is swapped is the same
            if "tmp_path" in wanted:
                given["tmp_path"] = tmp_path / f"{body}{number}"
                given["tmp_path"].mkdir()
            if "recwarn" in wanted:
                given["recwarn"] = request.getfixturevalue("recwarn")
                given["recwarn"].clear()
            torch.manual_seed(0)
            try:
                run(tester(), **given)
            except (pytest.skip.Exception, OSError):  # OSError: a model of the hub
                continue
            except Exception as error:
                if REFUSED.search(str(error)):
                    continue
                error.add_note(f"in PEFT's {name}.{body}{given}")
                raise
            passed.append(body)
    assert len(passed) > 1


# ------------------------------------------------------------------------------------------------- language models

LANGUAGE = {
    "_test_prepare_for_training": {},
    "_test_save_pretrained": {},
    "_test_save_pretrained_selected_adapters": {},
    "_test_add_adapter_no_autocast_adapter_dtype": {"dtype": torch.bfloat16},
    "_test_merge_layers": {},
    "_test_merge_layers_nan": {},
    "_test_merge_layers_multi": {},
    "_test_mixed_adapter_batches": {},
    "_test_generate_with_mixed_adapter_batches_and_beam_search": {},
    "_test_generate": {},
    "_test_generate_pos_args": {"raises_err": False},
    "_test_generate_half_prec": {},
    "_test_training": {},
    "_test_training_layer_indexing": {},
    "_test_training_gradient_checkpointing": {"use_reentrant": False},
    "_test_inference_safetensors": {},
    "_test_delete_adapter": {},
    "_test_delete_inactive_adapter": {},
    "_test_unload_adapter": {},
    "_test_disable_adapter": {},
    "_test_passing_input_embeds_works": {"test_name": "ours"},
    "_test_lora_conversion": {},
}
AWAY_FROM_THE_START = {
    "_test_merge_layers",
    "_test_merge_layers_nan",
    "_test_merge_layers_multi",
    "_test_mixed_adapter_batches",
    "_test_generate_with_mixed_adapter_batches_and_beam_search",
    "_test_unload_adapter",
    "_test_disable_adapter",
    "_test_lora_conversion",
}
NOT_RUN = {
    "_test_training_prompt_learning_tasks": "for prompts",
    "_test_weighted_combination_of_adapters": "no sum of factors is the factors of a sum: refused",
    "_test_weighted_combination_of_adapters_lora": "no sum of factors is the factors of a sum: refused",
    "_test_weighted_combination_of_adapters_ia3": "for IA³",
}
BASES = {"llama": (tiny.llama, ["q_proj", "v_proj"]), "gpt2": (tiny.gpt2, ["c_attn"])}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Tiny models in files, by name."""
    folder = tmp_path_factory.mktemp("models")
    for name, (build, _) in BASES.items():
        build().save_pretrained(folder / name)
    return folder


@pytest.mark.parametrize(
    ("body", "dora"),
    [(body, False) for body in LANGUAGE] + [(body, True) for body in LANGUAGE if "mixed" not in body],  # as in PEFT
)
@pytest.mark.parametrize("base", BASES)
def test_language_models(folders, body: str, base: str, dora: bool):
    class Tester(load("testing_common").PeftCommonTester):
        transformers_class = AutoModelForCausalLM

        def prepare_inputs_for_testing(self):
            ids = torch.tensor([[1, 1, 1], [1, 2, 1]])
            return {"input_ids": ids, "attention_mask": torch.tensor([[1, 1, 1], [1, 0, 1]])}

    changes = {"target_modules": BASES[base][1], "task_type": "CAUSAL_LM", "use_dora": dora}
    changes |= {"frequency": 40.0, "gain": 4.0}
    changes |= {"fan_in_fan_out": base == "gpt2", "init_lora_weights": body not in AWAY_FROM_THE_START}
    torch.manual_seed(0)
    given = {"model_id": str(folders / base), "config_cls": tiny.SineLoraConfig, "config_kwargs": changes}
    getattr(Tester(), body)(**given, **LANGUAGE[body])


def test_every_common_body_runs_or_does_not_for_a_reason():
    common = vars(load("testing_common").PeftCommonTester)
    tester = load("test_custom_models").TestPeftCustomModel
    called = set()
    for name in table_driven(tester):
        called |= set(re.findall(r"self\.(_test_\w+)\(", inspect.getsource(getattr(tester, name))))
    assert len(called) > 10
    assert called | LANGUAGE.keys() | NOT_RUN.keys() == {name for name in common if name.startswith("_test_")}
    assert not NOT_RUN.keys() & (called | LANGUAGE.keys())

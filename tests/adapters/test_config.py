"""Configurations: what they accept, what they refuse, and what stands in their files."""

import copy
import dataclasses
import json
import math
import pickle
import re

import pytest

from .tiny import away, llama, logits, plain, shuffled, sine  # without PEFT it skips this file

# isort: split
from peft import LoraConfig, PeftConfig, PeftModel, PeftType, get_peft_model

from sinelr_lightning import FactorizedLoraConfig, SineLoraConfig
from sinelr_lightning.adapters.config import UNSUPPORTED
from sinelr_lightning.layers import LowRank, SineLowRank


@pytest.mark.parametrize(
    "names",
    [
        {"frequency": 200.0, "gain": 5.0},
        {"freq": 200.0, "s": 5.0},
        {"use_sinelora": True, "sinelora_frequency": 200.0, "sinelora_scaling": 5.0},
        {"frequency": 200.0, "freq": 200.0, "gain": 5.0, "sinelora_scaling": 5.0},
    ],
    ids=lambda names: "-".join(names),
)
def test_names_of_the_frequency_and_the_gain(names):
    config = SineLoraConfig(r=4, **names)
    assert (config.frequency, config.gain) == (200.0, 5.0)
    assert config.family(4) == SineLowRank(4, frequency=200.0, gain=5.0)


def test_defaults():
    config = SineLoraConfig()
    assert isinstance(config, LoraConfig)
    assert (config.r, config.peft_type, config.frequency, config.gain) == (8, PeftType.LORA, "auto", None)
    assert config.family(3) == SineLowRank(3)
    assert config.family(3).omega(16) == 6 * math.sqrt(16)
    assert config.family(3).divisor(16) == math.sqrt(16)
    assert SineLoraConfig(factorization_args={"phase_spread": 1.0}).family(8).omega(16) == 12


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"frequency": 0.0}, "frequency must be a positive number, got 0.0"),
        ({"frequency": -1.0}, "frequency must be a positive number, got -1.0"),
        ({"frequency": math.inf}, "frequency must be a positive number, got inf"),
        ({"frequency": math.nan}, "frequency must be a positive number, got nan"),
        ({"frequency": "high"}, "frequency must be a positive number or \"auto\", got 'high'"),
        ({"freq": -1.0}, "frequency must be a positive number"),
        ({"gain": 0.0}, "gain must be a positive number, got 0.0"),
        ({"s": -2.0}, "gain must be a positive number"),
        ({"frequency": 4.0, "freq": 3.0}, "one value, please: frequency=4.0, freq=3.0"),
        ({"freq": 4.0, "sinelora_frequency": 3.0}, "one value, please: sinelora_frequency=3.0, freq=4.0"),
        ({"gain": 4.0, "s": 3.0}, "one value, please: gain=4.0, s=3.0"),
        ({"use_sinelora": False}, "use_sinelora=False is plain LoRA"),
        ({"factorization": "LowRank"}, "a SineLoraConfig is a sine"),
        ({"r": 0}, "rank must be at least 1, got 0"),
        ({"rank_pattern": {"q_proj": 0}}, "rank must be at least 1, got 0"),
        ({"factorization_args": {"spread": 1}}, "SineLowRank takes frequency, gain, phase_spread, lr_multiplier"),
        *[
            ({"init_lora_weights": name}, f"init_lora_weights='{name}' fits a plain B·A alone")
            for name in ("pissa", "olora", "orthogonal", "eva", "corda", "pissa_niter_4")
        ],
        ({"factorization_args": {"gain": 2.0}}, "factorization_args: gain is a field of SineLoraConfig's own"),
        ({"factorization_args": None}, "factorization_args must be a dictionary, got None"),
        ({"frequency": None}, 'frequency must be a positive number or "auto", got None'),
        ({"frequency": True}, 'frequency must be a positive number or "auto", got True'),
        ({"gain": "x"}, "gain must be a positive number or None, got 'x'"),
        ({"r": 2.5}, "a rank must be a whole number from 1 on, got 2.5 for r"),
        ({"rank_pattern": {"q_proj": "3"}}, "a rank must be a whole number from 1 on, got '3' for q_proj"),
        ({"target_parameters": ["weight"]}, "target_parameters cannot be combined with SineLoraConfig"),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens cannot be combined"),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore::UserWarning:peft")
def test_refuses(given, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        SineLoraConfig(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "factorization None is none of ours: take .*LowRank"),
        ({"factorization": "LowRnk"}, "factorization 'LowRnk' is none of ours: take LowRank"),
        ({"factorization": "LowRank", "factorization_args": {"foo": 1}}, "foo.*LowRank takes"),
        ({"factorization": "SineLowRank", "factorization_args": {"gain": -1.0}}, "gain must be a positive number"),
        ({"factorization": "LowRank", "init_lora_weights": "pissa"}, "fits a plain B·A alone"),
    ],
    ids=str,
)
def test_factorized_refuses(given, message):
    with pytest.raises(ValueError, match=message):
        FactorizedLoraConfig(**given)


def test_every_part_of_peft_that_means_another_update_is_refused():
    # PEFT tags what changes the formula; of that DoRA alone is ours as well.
    tagged = {f.name for f in dataclasses.fields(LoraConfig) if f.metadata.get("is_lora_variant")}
    assert tagged - {"use_dora"} <= UNSUPPORTED.keys()


def test_factorized_families():
    assert FactorizedLoraConfig(factorization="LowRank", r=5).family(5) == LowRank(5)
    config = FactorizedLoraConfig(factorization="SineLowRank", factorization_args={"frequency": 30.0})
    assert config.family(2) == SineLowRank(2, frequency=30.0)
    assert shuffled().family(3).rank == 3


CONFIGS = {
    "SINELORA": lambda: sine(use_dora=True, rank_pattern={"q_proj": 2}, lora_alpha=3, modules_to_save=["lm_head"]),
    "FACTORIZEDLORA": lambda: FactorizedLoraConfig(
        factorization="SineLowRank", factorization_args={"phase_spread": 1.5}, r=3, use_rslora=True
    ),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_written_and_read(kind: str, tmp_path):
    config = CONFIGS[kind]()
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert written["peft_type"] == kind  # only this package can load it
    assert written["alpha"] == config.lora_alpha
    assert "lora_alpha" not in written  # what servers that do not look at the type ask for
    assert not {"freq", "s", "use_sinelora", "sinelora_frequency", "sinelora_scaling"} & written.keys()
    for reader in (type(config), LoraConfig, PeftConfig):
        read = reader.from_pretrained(tmp_path)
        assert type(read) is type(config)
        assert read.peft_type == PeftType.LORA
        assert dataclasses.asdict(read) == dataclasses.asdict(config)
        assert read.family(5) == config.family(5)


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, dataclasses.replace, lambda c: pickle.loads(pickle.dumps(c))]
)
def test_copied(kind: str, copied):
    config = CONFIGS[kind]()
    again = copied(config)
    assert (type(again), again) == (type(config), config)
    assert again.to_dict() == config.to_dict()


def test_replaced_in_part():
    assert dataclasses.replace(sine(), frequency=7.0).frequency == 7.0


def test_files_of_a_later_peft_load_as_what_they_are(tmp_path):
    config = sine()
    config.save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"not_invented_yet": 1}))
    with pytest.warns(UserWarning, match="not_invented_yet"):
        read = PeftConfig.from_pretrained(tmp_path)
    assert (type(read), read.frequency, read.gain) == (SineLoraConfig, config.frequency, config.gain)


# ----------------------------------------------------------------------------------------------- files of others

FOREIGN = {
    "the authors": {"freq": 40.0, "s": 20.0},
    "the proposal": {"use_sinelora": True, "sinelora_frequency": 40.0, "sinelora_scaling": 20.0},
}


def rewritten(folder, fields) -> None:
    """The folder's adapter under the type LORA, with these fields in the place of ours."""
    path = folder / "adapter_config.json"
    ours = ("frequency", "gain", "factorization", "factorization_args")
    config = {key: value for key, value in json.loads(path.read_text()).items() if key not in ours}
    path.write_text(json.dumps(config | {"peft_type": "LORA"} | fields))


@pytest.mark.parametrize("origin", FOREIGN)
def test_sines_in_files_of_others_load_as_sines(origin: str, tmp_path):
    model = get_peft_model(llama(), sine()).eval()
    expected = logits(model)
    model.save_pretrained(tmp_path)
    rewritten(tmp_path, FOREIGN[origin])
    for reader in (PeftConfig, LoraConfig, SineLoraConfig):
        read = reader.from_pretrained(tmp_path)
        assert (type(read), read.frequency, read.gain) == (SineLoraConfig, 40.0, 20.0)
    assert away(logits(PeftModel.from_pretrained(llama(), tmp_path)), expected) == 0
    through_transformers = llama()
    through_transformers.load_adapter(str(tmp_path))
    assert away(logits(through_transformers.eval()), expected) == 0


@pytest.mark.filterwarnings("ignore:Unexpected keyword arguments")
@pytest.mark.parametrize("fields", [{}, {"use_sinelora": False}, {"freq": None}], ids=str)
def test_plain_files_stay_plain(fields, tmp_path):
    model = get_peft_model(llama(), plain()).eval()
    model.save_pretrained(tmp_path)
    rewritten(tmp_path, fields)
    assert type(PeftConfig.from_pretrained(tmp_path)) is LoraConfig
    assert away(logits(PeftModel.from_pretrained(llama(), tmp_path)), logits(model)) == 0

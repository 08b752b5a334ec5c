"""Which adapter is written where; what a run's own export gives is in tests/tasks/test_language_cli.py."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from bases import write_llama

pytest.importorskip("peft")

from sinelr_lightning.commands.export_adapter import export_adapter
from sinelr_lightning.errors import UserError
from sinelr_lightning.layers import LowRank
from sinelr_lightning.tasks import LanguageTask


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_llama(tmp_path_factory.mktemp("bases") / "base")


def task(base, **options):
    """One that changes something."""
    made = LanguageTask(base=base, adapter=LowRank(rank=2), targets=["q_proj"], **options).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return made


@pytest.mark.parametrize(
    ("options", "rank", "written"),
    [({}, None, 2), ({"hadamard": True}, 32, 32)],
    ids=["as it stands", "from an update that is none"],
)
def test_a_plain_lora_is_written(base, tmp_path, options, rank, written):
    export_adapter(task(base, **options), tmp_path / "lora", "lora", rank, 0.9)
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["use_dora"]) == ("LORA", written, False)


@pytest.mark.parametrize(
    ("options", "rank", "message"),
    [
        ({}, 3, "is a plain LoRA of rank 2 as it stands: leave --rank 3 out"),
        ({"dora": True}, None, "is PEFT's own DoRA and no plain LoRA: take --format adapter"),
        ({"hadamard": True}, 1, "a plain LoRA of rank 1 keeps"),
    ],
)
def test_what_is_no_plain_lora_is_not_called_one(base, tmp_path, options, rank, message):
    with pytest.raises(UserError, match=message):
        export_adapter(task(base, **options), tmp_path / "lora", "lora", rank, 0.9999)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("out", [".", "..", "adapter"])
def test_the_base_is_left_alone(base, tmp_path, out, monkeypatch):
    monkeypatch.chdir(base)
    before = sorted(Path(base).rglob("*"))
    with pytest.raises(UserError, match=r"is the base model .*, holds it or lies in it: name another"):
        export_adapter(task(base), Path(out), "adapter", None, 0.9)
    assert sorted(Path(base).rglob("*")) == before


def test_a_message_names_the_folder_that_was_asked_for(base, tmp_path, monkeypatch):
    def fail(command, **_):
        folder = torch.load(command[3], weights_only=True)["folder"]
        return subprocess.CompletedProcess(command, 1, "", f"Traceback\nOSError: {folder}/config.json is odd\n")

    monkeypatch.setattr(subprocess, "run", fail)
    out = tmp_path / "new" / "adapter"
    with pytest.raises(UserError) as error:
        export_adapter(task(base), out, "adapter", None, 0.9)
    assert str(error.value) == (
        f"{out} is not written: it cannot be loaded in a process of its own: OSError: {out}/config.json is odd"
    )
    assert not list(tmp_path.iterdir())

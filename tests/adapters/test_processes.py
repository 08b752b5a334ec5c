"""An adapter in another interpreter: the same answers with this package, none at all without it."""

import json
import subprocess
import sys

import pytest
import torch

from .tiny import away, llama, logits, plain, shuffled, sine  # without PEFT it skips this file

# isort: split
from peft import get_peft_model

WITH_PACKAGE = {
    "package first": "import sinelr_lightning; from peft import PeftModel",
    "peft first": "from peft import PeftModel; import sinelr_lightning",
    "transformers first": "import transformers; import sinelr_lightning; from peft import PeftModel",
    "a layer first": "import sinelr_lightning.layers; from peft import PeftModel",
    "asked for first": (
        "import sinelr_lightning, importlib.util as u; assert u.find_spec('peft'); assert u.find_spec('peft');"
        "import sys; assert 'peft' not in sys.modules; from peft import PeftModel"
    ),
    "a part of peft first": "import sinelr_lightning; import peft.utils; from peft import PeftModel",
    "imported twice": "import sinelr_lightning, peft; from peft import PeftModel; import sinelr_lightning.adapters",
}
WITHOUT_PACKAGE = "import sys; sys.modules['sinelr_lightning'] = None; from peft import PeftModel"
BY_PEFT = "model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained('base'), {adapter!r})"
BY_TRANSFORMERS = "model = LlamaForCausalLM.from_pretrained('base'); model.load_adapter({adapter!r})"
ANSWER = """
torch.save(model.eval()(input_ids=torch.arange(36).reshape(4, 9) * 11 % 64).logits.detach(), {answer!r})
"""

# Runs each program in a fork of an interpreter that has loaded what takes long, and neither PEFT nor this package.
FORKS = """
import json, os, sys, traceback
import torch, transformers
from transformers import LlamaForCausalLM
torch.set_num_threads(1)
assert not {"peft", "sinelr_lightning"} & {name.partition(".")[0] for name in sys.modules}
errors = {}
for name, program in json.load(sys.stdin).items():
    read, write = os.pipe()
    if not os.fork():
        with os.fdopen(write, "w") as pipe:
            try:
                exec(program)
            except BaseException:
                pipe.write(traceback.format_exc())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        errors[name] = pipe.read()
    os.wait()
print(json.dumps(errors))
"""

PROGRAMS = {
    **{imports: (line, BY_PEFT, "sine") for imports, line in WITH_PACKAGE.items()},
    "dora": (WITH_PACKAGE["package first"], BY_PEFT, "dora"),
    "by transformers": (WITH_PACKAGE["package first"], BY_TRANSFORMERS, "sine"),
    "without: sine": (WITHOUT_PACKAGE, BY_PEFT, "sine"),
    "without: shuffled": (WITHOUT_PACKAGE, BY_PEFT, "shuffled"),
    "without: sine by transformers": (WITHOUT_PACKAGE, BY_TRANSFORMERS, "sine"),
    "without: plain": (WITHOUT_PACKAGE, BY_PEFT, "plain"),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """By program: what it raised, what it answered if it did, and what its adapter answers here."""
    folder = tmp_path_factory.mktemp("adapters")
    llama().save_pretrained(folder / "base")
    here = {}
    for adapter, config in [
        ("sine", sine()),
        ("dora", sine(use_dora=True)),
        ("shuffled", shuffled()),
        ("plain", plain()),
    ]:
        model = get_peft_model(llama(), config).eval()
        model.save_pretrained(folder / adapter)
        here[adapter] = logits(model)
    programs = {
        name: "\n".join([imports, load.format(adapter=adapter), ANSWER.format(answer=f"{name}.pt")])
        for name, (imports, load, adapter) in PROGRAMS.items()
    }
    command = [sys.executable, "-c", FORKS]
    result = subprocess.run(
        command, input=json.dumps(programs), capture_output=True, text=True, timeout=240, cwd=folder, check=False
    )
    assert result.returncode == 0, result.stderr
    errors = json.loads(result.stdout.splitlines()[-1])

    def found(name: str) -> tuple[str, torch.Tensor | None, torch.Tensor]:
        path = folder / f"{name}.pt"
        return errors[name], torch.load(path) if path.exists() else None, here[PROGRAMS[name][2]]

    return found


@pytest.mark.parametrize("name", [*WITH_PACKAGE, "dora", "by transformers"])
def test_answers_the_same_with_this_package(run, name: str):
    error, there, here = run(name)
    assert not error
    assert away(there, here) < 1e-5


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("without: sine", "SINELORA"),
        ("without: shuffled", "FACTORIZEDLORA"),
        ("without: sine by transformers", "SINELORA"),
    ],
)
def test_never_answers_without_this_package(run, name: str, kind: str):
    error, there, _ = run(name)
    assert there is None
    assert kind in error.splitlines()[-1]


def test_plain_adapters_answer_without_this_package(run):
    # That the others fail for want of our types and for no other reason.
    error, there, here = run("without: plain")
    assert not error
    assert away(there, here) < 1e-5


def test_importing_the_package_imports_no_library():
    code = """
import sys, sinelr_lightning
print(sorted({"torch", "peft", "transformers", "accelerate", "numpy"} & set(sys.modules)))
sys.modules["sinelr_lightning.adapters.model"] = None  # an extension that fails leaves PEFT alone
import peft
print(peft.LoraConfig().r)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["[]", "8"]
    assert "sinelr_lightning.adapters does not extend peft" in result.stderr

"""PEFT's own tests, fetched with its sources and imported with our configuration in the place of `LoraConfig`."""

import functools
import importlib
import importlib.metadata
import inspect
import itertools
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest

from .tiny import SineLoraConfig  # without PEFT it skips the file that imports this

# isort: split
import peft

VERSION = importlib.metadata.version("peft")
PACKAGE = "peft_own_tests"


@functools.cache
def _folder() -> Path | str:
    """The folder with PEFT's tests, kept from run to run; or why there is none."""
    cache = Path(tempfile.gettempdir()) / f"sinelr-peft-{os.getuid()}"
    cache.mkdir(mode=0o700, exist_ok=True)
    if cache.stat().st_uid != os.getuid():
        return f"{cache} belongs to another user"
    folder = cache / VERSION
    if folder.is_dir():
        return folder
    with tempfile.TemporaryDirectory(dir=cache) as new:
        command = ["download", "--no-deps", "--no-binary", ":all:", "--no-build-isolation", "-qq", "-d", new]
        pip = [sys.executable, "-m", "pip", *command, f"peft=={VERSION}"]
        try:
            result = subprocess.run(pip, capture_output=True, text=True, timeout=120, check=False)
        except subprocess.TimeoutExpired:
            return f"pip could not download the sources of peft {VERSION} in two minutes"
        if result.returncode:
            return f"pip cannot download the sources of peft {VERSION}: {result.stderr.strip().splitlines()[-1:]}"
        with tarfile.open(next(Path(new).glob("*.tar.gz"))) as archive:
            archive.extractall(new, filter="data")
        tests = next(Path(new).glob("*/tests"), None)
        if tests is None:
            return f"the sources of peft {VERSION} hold no tests"
        try:
            tests.rename(folder)
        except OSError:  # another process was faster
            assert folder.is_dir()
    return folder


def load(name: str) -> ModuleType:
    """A module of PEFT's tests in which `LoraConfig` is a sine's configuration."""
    folder = _folder()
    if isinstance(folder, str):
        pytest.skip(folder)
    if PACKAGE not in sys.modules:
        package = ModuleType(PACKAGE)
        package.__path__ = [str(folder)]
        sys.modules[PACKAGE] = package
    # What the modules import and the bodies that run here never call.
    absent = {}
    for library, wanted in {"diffusers": "StableDiffusionPipeline", "datasets": "load_dataset"}.items():
        if importlib.util.find_spec(library) is None:
            absent[library] = ModuleType(library)
            setattr(absent[library], wanted, type(wanted, (), {}))
    with mock.patch.dict(sys.modules, absent), mock.patch.object(peft, "LoraConfig", SineLoraConfig):
        module = importlib.import_module(f"{PACKAGE}.{name}")
    sys.modules[module.__name__] = module
    return module


def cases(test: Any) -> Iterator[dict[str, Any]]:
    """The parameters that PEFT gives to a test of its own, where every configuration among them is ours."""
    axes = []
    for mark in getattr(test, "pytestmark", []):
        if mark.name == "parametrize":
            names, values = mark.args
            names = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
            values = [getattr(value, "values", value) if hasattr(value, "marks") else value for value in values]
            axes.append([dict(zip(names, value if len(names) > 1 else [value], strict=True)) for value in values])
    for chosen in itertools.product(*axes):
        given = {name: value for part in chosen for name, value in part.items()}
        kinds = [value if inspect.isclass(value) else type(value) for value in given.values()]
        if all(issubclass(kind, SineLoraConfig) for kind in kinds if issubclass(kind, peft.PeftConfig)):
            yield given

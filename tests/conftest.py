"""Every test starts from the same small, quiet world: one thread, one seed, no process group left behind."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from toy_runs import TOY

torch.set_num_threads(1)


LONGEST = ("test_its_commands_run", "test_equal_parameters", "test_killed_and_gone_on_it_gives_the_same_table")


def pytest_collection_modifyitems(items):
    """Begin with the tests of minutes: a worker that comes to one last lets the other wait."""
    items.sort(key=lambda item: item.originalname not in LONGEST)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory):
    """Samples are not read from, nor written to, the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def clean_global_state():
    dtype = torch.get_default_dtype()
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(dtype)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty folder with toy.yaml in it, as the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.yaml").write_text(TOY)
    return tmp_path

import inspect
import subprocess
import sys

import pytest

from sinelr_lightning import rendering


def test_importing_needs_torch_alone():
    code = (
        "import sys; import sinelr_lightning.rendering;"
        "print([m for m in ('lightning', 'PIL', 'av', 'matplotlib', 'torchvision') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("name", [n for n in rendering.__all__ if n not in ("Field", "Rendered")])
def test_every_public_function_has_a_contract(name):
    function = getattr(rendering, name)
    assert inspect.getdoc(function)
    assert all(p.annotation is not p.empty for p in inspect.signature(function).parameters.values())


@pytest.mark.parametrize("name", ["rays", "ndc", "sampling", "volume", "paths", "image", "video"])
def test_everything_public_is_reexported(name):
    module = __import__(f"sinelr_lightning.rendering.{name}", fromlist=["__all__"])
    assert set(module.__all__) <= set(rendering.__all__)

"""Training scripts of other people's kind, in which one line makes the layers sine low-rank."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

STRANGERS = Path(__file__).parent / "strangers"


DENSE = {"plain_loop": 85_002, "lightning_project": 3_594, "vision_recipe": 26_314}  # parameters without the line


@pytest.mark.parametrize("script", DENSE)
def test_it_trains_by_one_line(script, tmp_path):
    source = (STRANGERS / f"{script}.py").read_text()
    assert source.count("convert(") == 1 and source.count("sinelr") == 1
    done = subprocess.run(
        [sys.executable, STRANGERS / f"{script}.py", tmp_path], capture_output=True, text=True, timeout=200,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    words = done.stdout.split()
    assert float(words[words.index("accuracy") + 1]) >= 0.8
    assert int(words[words.index("parameters") + 1]) < DENSE[script]

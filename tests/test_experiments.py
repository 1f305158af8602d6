"""Studies and benchmarks start from any folder."""

import subprocess
import sys
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
SCRIPTS = sorted([*EXPERIMENTS.glob("*.py"), *EXPERIMENTS.glob("real/*.py")])
SCRIPTS = [path for path in SCRIPTS if "__main__" in path.read_text()]

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_starts_and_says_what_it_does(script, tmp_path):
    said = subprocess.run(
        [sys.executable, script, "--help"], cwd=tmp_path, capture_output=True, text=True
    )
    assert said.returncode == 0, said.stderr
    assert script.read_text().split('"""')[1].splitlines()[0][:40] in " ".join(said.stdout.split())

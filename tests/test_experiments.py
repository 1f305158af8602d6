"""Studies and benchmarks start from any folder."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
SCRIPTS = sorted([*EXPERIMENTS.glob("*.py"), *EXPERIMENTS.glob("real/*.py")])
SCRIPTS = [path for path in SCRIPTS if "__main__" in path.read_text()]
# Starts each script as `python SCRIPT --help` does, all of them in one process: what they import
# takes seconds. What they import of their own folder is forgotten after each.
PROGRAM = """
import contextlib, io, json, os, runpy, sys, traceback

folder, *scripts = sys.argv[1:]
path, said = sys.path[1:], {}
for script in scripts:
    sys.argv[:], sys.path[:] = [script, "--help"], [os.path.dirname(script), *path]
    out, code = io.StringIO(), "it went on"
    with contextlib.redirect_stdout(out):
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as end:
            code = end.code
        except BaseException:
            code = traceback.format_exc()
    said[script] = [code, out.getvalue()]
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(folder):
            del sys.modules[name]
print(json.dumps(said))
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def said(tmp_path_factory) -> dict[str, list]:
    """Of each script, its exit code and what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(EXPERIMENTS), *map(str, SCRIPTS)],
        cwd=tmp_path_factory.mktemp("elsewhere"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_starts_and_says_what_it_does(script, said):
    code, text = said[str(script)]
    assert code == 0, code
    assert script.read_text().split('"""')[1].splitlines()[0][:40] in " ".join(text.split())

"""load_hf never holds a second copy of the model: peak memory of a process of its own."""

import json
import subprocess
import sys

import pytest

from taskpgm.models import DecoderConfig

SCRIPT = """
import json, resource, sys, threading
import jax
from taskpgm.models import load_hf
path, dtype, sharded = sys.argv[1], sys.argv[2], sys.argv[3] == "True"
options = {}
if sharded:
    jax.config.update("jax_num_cpu_devices", 4)
    from taskpgm.training.mesh import ShardingRules, make_mesh
    options = dict(mesh=make_mesh({"fsdp": 4}), rules=ShardingRules())
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
tiny = load_hf(path + "/tiny", dtype=dtype, **options)  # the compiler's own memory, same programs
before = peak()
config, params = load_hf(path + "/big", dtype=dtype, **options)
size = sum(x.nbytes for x in jax.tree.leaves(params))
print(json.dumps({"peak": peak() - before, "size": size}))
"""


def write(folder, config: DecoderConfig):
    """Zeros, without making the model: tensors are written one after another."""
    import numpy as np

    from taskpgm.models.names import sources
    from taskpgm.models.safetensors_file import write_file

    folder.mkdir()
    shapes = {s.name: (shape, np.dtype(np.float32)) for _, _, s, shape in sources(config)}
    tensor = lambda name: np.ones(*shapes[name])  # noqa: E731
    write_file(folder / "model.safetensors", shapes, tensor, {})
    (folder / "config.json").write_text(json.dumps(config.to_hf()))


@pytest.mark.parametrize(("dtype", "sharded"), [("float32", False), ("bfloat16", True)])
def test_peak_memory_is_the_model_and_two_tensors(tiny, tmp_path, dtype, sharded):
    write(tmp_path / "tiny", tiny())
    big = tiny(
        hidden_size=1024, intermediate_size=4096, head_dim=256, num_layers=8, vocab_size=2048
    )
    write(tmp_path / "big", big)
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), dtype, str(sharded)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    measured = json.loads(done.stdout)
    tensor = 4 * 1024 * 4096  # the largest in the file, bytes
    assert measured["size"] > 12 * tensor / (1 if dtype == "float32" else 2)
    assert measured["peak"] < measured["size"] + 2 * tensor

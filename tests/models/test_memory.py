"""load_hf never holds a second copy of the model: peak memory of a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from taskpgm.models import DecoderConfig

SCRIPT = """
import ctypes, gc, json, sys
import jax
jax.config.update("jax_num_cpu_devices", 4)
from taskpgm.models import load_hf
from taskpgm.training.mesh import make_mesh
def memory(of):  # bytes resident: VmRSS now, VmHWM at most since it was set back
    line = next(line for line in open("/proc/self/status") if line.startswith(of))
    return int(line.split()[1]) * 1024
def measure(**options):
    load_hf(sys.argv[1], **options)  # the compiler's own memory: the very same programs
    gc.collect()
    jax.device_put(0.0).block_until_ready()  # when jax lets go of what Python let go of
    ctypes.CDLL(None).malloc_trim(0)  # nothing freed is kept, to be used again unseen
    open("/proc/self/clear_refs", "w").write("5")  # sets VmHWM back
    before = memory("VmRSS")
    config, params = load_hf(sys.argv[1], **options)
    size = sum(x.nbytes for x in jax.tree.leaves(params))
    return {"peak": memory("VmHWM") - before, "size": size}
plain = measure(dtype="float32")
sharded = measure(dtype="bfloat16", mesh=make_mesh({"fsdp": 4}))
print(json.dumps([plain, sharded]))
"""


def write(folder, config: DecoderConfig):
    """Ones, without making the model: tensors are written one after another."""
    import numpy as np

    from taskpgm.models.hf_names import tensor_names
    from taskpgm.models.safetensors_file import write_file

    folder.mkdir()
    shapes = {s.name: (shape, np.dtype(np.float32)) for _, _, s, shape in tensor_names(config)}
    tensor = lambda name: np.ones(*shapes[name])  # noqa: E731
    write_file(folder / "model.safetensors", shapes, tensor, {})
    (folder / "config.json").write_text(json.dumps(config.to_hf()))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells the peak")
def test_peak_memory_is_the_model_and_two_tensors(tiny, tmp_path):
    """As it is, and rounded into shards."""
    big = tiny(
        hidden_size=1024, intermediate_size=4096, head_dim=256, num_layers=4, vocab_size=2048
    )
    write(tmp_path / "model", big)
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "model")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    tensor = 4 * 1024 * 4096  # the largest in the file, bytes
    for measured, divisor in zip(json.loads(done.stdout), (1, 2), strict=True):
        assert measured["size"] > 12 * tensor / divisor
        assert measured["size"] < measured["peak"] < measured["size"] + 2 * tensor

import subprocess
import sys

HEAVY = ["flax", "optax", "orbax", "transformers", "datasets", "grain", "matplotlib", "torch"]


def test_the_mixture_package_needs_jax_and_numpy_alone():
    code = (
        "import sys, taskpgm.mixture, taskpgm.mixture.baselines\n"
        f"print([name for name in {HEAVY} if name in sys.modules])\n"
        "import jax; print(jax.config.jax_enable_x64)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "False"]

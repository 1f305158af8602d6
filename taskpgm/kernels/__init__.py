"""Kernels written by hand, each off unless a config value asks for it.

The default path is XLA everywhere, and on NVIDIA's GPUs cuDNN's attention through `jax.nn`; that
has run on an H100 (experiments/results/bench_gpu.md). The kernels here are for a TPU, and neither
has run on one: each is tested in interpret mode. Pallas is slow to import, so a kernel's file is
imported only where the kernel is used.
"""

"""Kernels written by hand, each off unless a config value asks for it.

The default path is plain XLA everywhere. Nothing here has run on its hardware: each kernel is
tested in interpret mode, and by a test with the marker `gpu` where its hardware is at hand. Pallas
is slow to import, so a kernel's file is imported only where the kernel is used.
"""

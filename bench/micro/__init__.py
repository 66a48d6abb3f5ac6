"""Micro-benchmarks: kernels and layers, one file each."""

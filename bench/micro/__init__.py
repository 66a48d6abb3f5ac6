"""Micro-benchmarks of single operations under pytest-benchmark: `pytest bench/micro`. Not part of the test suite."""

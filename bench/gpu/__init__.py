"""Speed of single operations and of a training step on a GPU, with the ceilings of that GPU measured in the same run.

`python -m bench.gpu` does all of it under a time budget; `pytest bench/micro` runs the same cells one by one.
"""

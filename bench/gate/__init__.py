"""Has a change made the code slower? Two versions of `kernels` and `quant` side by side in one process, taking turns.

`python -m bench.gate REF` compares the working tree with a commit; `python -m bench.gate check` compares it with the
committed record of this device. `bench.gate.verdict` says what the verdicts mean and how sure they are.
"""

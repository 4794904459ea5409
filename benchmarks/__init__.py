"""The measuring stick: ours beside a bare loop and beside plain Flower, in one run, as ratios.

`python -m benchmarks` measures everything; `python -m benchmarks --help` says how to shrink it.
"""

"""Benchmarks: each makes its load in code, measures its peers in the same run and prints ratios.

`python -m benchmarks` runs all and writes ``benchmarks/results/NAME.json``; `python -m benchmarks.NAME --help` tells
what one takes. Figures hold for the machine and the moment: compare ratios, and repeat a run before believing it.
"""

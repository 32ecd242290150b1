"""Benchmarks beside other solvers: one run, one machine, error beside time."""

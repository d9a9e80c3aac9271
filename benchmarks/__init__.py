"""Benchmarks: each asks one question and keeps its raw records in ``results/``; see ``README.md``."""

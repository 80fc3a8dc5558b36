"""Benchmarks: ours beside others, interleaved in one process, as ratios."""

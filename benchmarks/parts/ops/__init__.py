"""Parts of the benchmarks."""

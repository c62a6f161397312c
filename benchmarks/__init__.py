"""Side-by-side measurements; `benchmarks/README.md` says what was measured and what did not help."""

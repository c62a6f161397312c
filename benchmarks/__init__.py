"""Side-by-side measurements; `benchmarks/README.md` says how to run them, what was measured and what did not help."""

"""One module an engine, each run as a process of its own, with that engine's Python.

They import the standard library, their engine and what it brings, and of this package nothing but `protocol`.
"""

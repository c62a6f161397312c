"""Mending other people's decoder files: what can be changed in the graph with certainty, and a new export where not."""

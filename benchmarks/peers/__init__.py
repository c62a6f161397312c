"""Environments of the engines to compare with."""

"""Mending other people's decoder files: what a file says of its graph is mended where that is certain; else the model is
exported anew behind the same interface. What is wrong, before and after, the doctor says.
"""

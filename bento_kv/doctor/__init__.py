"""The doctor: is a decoder's export wrong, or the loop that drives it, and what is to be done first?

`diagnose.diagnose` judges both, `diagnose.check_export` a graph alone. The answers are `records`; every fault that they
may name is a row of `faults`. `export` and `loop` judge, `advice` says what follows, `show` writes it for people.
"""

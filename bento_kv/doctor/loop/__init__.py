"""The loop: does a program feed each step what the one before returned? `judge.judge_loop` answers, from a trace.

A trace (`trace`) is read from what the program printed (`reading`), or made by a right loop (`golden`). Its lengths and
tokens are followed (`walk`) and judged (`structure`), then its other fields (`fields`). Where all that is right, its
tokens are fed again (`replay`), by a right loop and by faulty ones (`faulty`), and the numbers compared (`values`).
"""

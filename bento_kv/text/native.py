"""Calls into the Rust tokenizer, whose failures are of every kind.

A regular expression that backtracks too far makes it panic, and pyo3 raises that as a BaseException, past every `except
Exception` of those who have to answer: https://pyo3.rs/main/doc/pyo3/panic/struct.PanicException.html.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from bento_kv.errors import TokenizerError, first_line

P = ParamSpec("P")
T = TypeVar("T")


def native(call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """What a call gives.

    Raises:
        TokenizerError: whatever it raised.
    """
    try:
        return call(*args, **kwargs)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise TokenizerError(f"the model's tokenizer fails: {first_line(error)}") from error

"""JSON in pieces is the same JSON, and no piece is long enough to hold anybody up."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bento_kv.server import jsontext

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
documents = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=40) | st.dictionaries(st.text(), inner, max_size=5), max_leaves=60
)


@given(documents)
def test_pieces_make_the_whole(document: Any) -> None:
    assert jsontext.dumps_in_pieces(document) == jsontext.dumps(document)


def tokens_with_logprobs(count: int) -> list[dict[str, Any]]:
    top = [{"token": "x", "logprob": -1.5, "bytes": [120]}] * 20
    return [{"token": "x", "logprob": -1.5, "bytes": [120], "top_logprobs": top}] * count


@pytest.mark.parametrize(
    "document",
    [
        {"tokens": list(range(300_000)), "count": 300_000},
        {"choices": [{"index": 0, "logprobs": {"content": tokens_with_logprobs(2000)}}] * 3},
        {"choices": [{"index": 0, "logprobs": {"top_logprobs": [{"x": -1.5, "y": -2.5}] * 20_000}}]},
    ],
    ids=["token ids", "chat", "completions"],
)
def test_no_piece_is_long(document: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, pieces, write = jsontext.dumps(document), list[int](), jsontext.dumps

    def noting(value: Any) -> str:
        pieces.append(len(write(value)))
        return write(value)

    monkeypatch.setattr(jsontext, "dumps", noting)
    assert jsontext.dumps_in_pieces(document) == whole
    assert max(pieces) < 64 * 1024

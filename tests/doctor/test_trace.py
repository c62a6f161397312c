"""Traces are read strictly: what is wrong is named by line, field and remedy."""

from __future__ import annotations

import io
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bento_kv.doctor.loop import reading
from bento_kv.doctor.loop.golden import golden_trace
from bento_kv.doctor.loop.reading import read_trace
from bento_kv.doctor.loop.trace import Trace
from bento_kv.errors import TraceError
from tests.doctor.toy import ToyDecoder

ZERO = {"step": 0, "input_ids": [[5, 6]], "past_length": 0}
ONE = {"step": 1, "input_ids": [[7]], "past_length": 2}


def read(*lines: dict[str, Any] | str) -> Trace:
    return read_trace(io.StringIO("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)))


def test_required_fields_suffice() -> None:
    trace = read(ZERO, "", ONE)
    assert [(step.rows, step.width, step.past_length) for step in trace.steps] == [(1, 2, 0), (1, 1, 2)]
    assert trace.notes == ()


def test_all_fields_of_one_row() -> None:
    more = {
        "position_ids": [[0, 1]],
        "attention_mask_length": 2,
        "present_length": 2,
        "next_token": 7,
        "logits_top": [[7, 1.5], [3, 1]],
        "past_sum": [0, 0],
        "present_sum": [1.25, -2],
    }
    step = read(ZERO | more).steps[0]
    assert step.next_token == (7,)
    assert step.logits_top == (((7, 1.5), (3, 1.0)),)
    assert step.present_sum == (1.25, -2.0)
    assert json.loads(step.to_json()) == ZERO | more


def test_several_rows_give_lists_and_may_share_positions() -> None:
    line = {"step": 0, "input_ids": [[5, 6], [7, 8]], "past_length": 0, "position_ids": [[0, 1]]}
    line |= {"next_token": [1, 2], "logits_top": [[[1, 0.5]], [[2, 0.5]]]}
    step = read(line).steps[0]
    assert step.position_ids == ((0, 1), (0, 1))
    assert step.logits_top == (((1, 0.5),), ((2, 0.5),))


def test_null_is_left_out() -> None:
    assert read(ZERO | {"present_length": None, "next_token": None}) == read(ZERO)


def test_an_unknown_field_is_named_in_a_note() -> None:
    trace = read(ZERO, ONE | {"pastLength": 2})
    assert trace.notes == ("field `pastLength` is not part of the format, ignored (line 2)",)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([{k: v for k, v in ZERO.items() if k != "past_length"}], ("line 1", "`past_length` is missing")),
        ([ZERO | {"past_length": None}], ("line 1", "`past_length` is missing")),
        ([ZERO | {"past_length": -1}], ("`past_length` has -1", "whole number")),
        ([ZERO | {"past_length": "0"}], ('`past_length` has "0"', "without quotes")),
        ([ZERO | {"past_length": True}], ("`past_length` has true",)),
        ([ZERO | {"past_length": 2**40}], ("`past_length` has",)),
        ([ZERO | {"input_ids": [5, 6]}], ("`input_ids`", "[[5, 6, 7]]")),
        ([ZERO | {"input_ids": [[]]}], ("`input_ids`", "empty")),
        ([ZERO | {"input_ids": [[1.5]]}], ("`input_ids` has 1.5",)),
        ([ZERO | {"input_ids": [[5, 6], [7]]}], ("`input_ids`", "padding included")),
        ([ZERO, ONE | {"input_ids": [[7], [8]]}], ("line 2", "2 rows, step 0 has 1")),
        ([ZERO | {"position_ids": [[0]]}], ("`position_ids` is not [1, 2]",)),
        ([ZERO | {"next_token": [1, 2]}], ("`next_token` has 2 for 1 rows",)),
        ([ZERO | {"logits_top": [[1, 2, 3]]}], ("`logits_top` is not made of pairs",)),
        ([ZERO | {"logits_top": [1, 0.5]}], ("`logits_top` is not a list",)),
        ([ZERO | {"logits_top": []}], ("`logits_top` is not a list, or is empty",)),
        ([ZERO | {"past_sum": [float("nan")]}], ("`past_sum` has NaN", "finite")),
        ([ONE], ("line 1", "`step` is 1, expected 0", "begin with step 0")),
        ([ZERO, ZERO], ("line 2", "one run a file")),
        ([ZERO, ONE | {"step": 2}], ("line 2", "`step` is 2, expected 1", "in order")),
        ([ZERO, "loading model ..."], ("line 2 is not JSON", "file of its own")),
        ([ZERO, '{"step": 1, "input_'], ("line 2 is not JSON", "cut off")),
        (["[1, 2]"], ("line 1 is not a JSON object",)),
        (["[" * 100_000], ("line 1 is not JSON",)),
        ([" "], ("is empty", "one JSON object a line")),
    ],
)
def test_what_is_wrong_is_named(lines: list[dict[str, Any] | str], words: tuple[str, ...]) -> None:
    with pytest.raises(TraceError) as caught:
        read(*lines)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"\x08\x03\x12\x00model", "binary"),
        (b"", "is empty"),
        ("{}".encode("utf-16"), "UTF-16"),
        (b'{"step": 0, "\xff', "not UTF-8"),
    ],
)
def test_a_file_that_is_no_trace(content: bytes, word: str, tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_bytes(content)
    with pytest.raises(TraceError, match=word):
        read_trace(file)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="cannot be read"):
        read_trace(tmp_path / "none")
    with pytest.raises(TraceError, match="cannot be read"):
        read_trace(tmp_path)


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_text(json.dumps(ZERO), encoding="utf-8-sig")
    assert len(read_trace(str(file)).steps) == 1


def test_a_file_without_an_end_is_not_read_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_LINE", 1000)
    with pytest.raises(TraceError, match="line 2: too long"):
        read(ZERO, "x" * 2000)
    monkeypatch.setattr(reading, "MAX_STEPS", 2)
    with pytest.raises(TraceError, match="more than 2 steps"):
        read(ZERO, ONE, ONE | {"step": 2, "past_length": 3})


def test_the_golden_trace_has_every_field_and_is_the_loop_as_it_should_be() -> None:
    graph = ToyDecoder()
    steps = list(golden_trace(graph, [5, 9, 3], 4))
    assert [step.past_length for step in steps] == [0, 3, 4, 5]
    assert [step.width for step in steps] == [3, 1, 1, 1]
    for step, following in pairwise(steps):
        assert None not in (step.position_ids, step.logits_top, step.past_sum)
        assert following.input_ids == (step.next_token,)
        assert following.past_sum == step.present_sum
        assert step.present_length == step.attention_mask_length == step.past_length + step.width
    # Against the whole sequence in one step.
    text = [token for step in steps for token in step.input_ids[0]]
    logits = graph.run(np.array([text]), graph.empty_cache(1)).logits[0]
    assert [step.next_token for step in steps] == [(int(row.argmax()),) for row in logits[2:]]
    assert steps[0].present_sum is not None
    assert len(steps[0].present_sum) == 2 * len(graph.empty_cache(1))


def test_what_no_encoding_can_write_is_spelled_out_and_what_no_float_holds_is_refused() -> None:
    lines = '{"step": 0, "input_ids": [[1]], "past_length": 0, "\\ud800x": 1}\n'
    assert read_trace(io.StringIO(lines)).notes[0].encode("utf-8").startswith(b"field `\\ud800x`")
    huge = '{"step": 0, "input_ids": [[1]], "past_length": 0, "past_sum": [' + "1" + "0" * 400 + "]}\n"
    with pytest.raises(TraceError, match=r"line 1.*past_sum"):
        read_trace(io.StringIO(huge))


def test_a_byte_order_mark_is_no_part_of_a_trace() -> None:
    assert read_trace(io.StringIO('\ufeff{"step": 0, "input_ids": [[1]], "past_length": 0}\n')).rows == 1

"""Numbers before lengths: however a loop pads or places, it is right if its tokens and logits are; and only then."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bento_kv.doctor.loop.judge import LoopJudgement, judge_loop
from bento_kv.doctor.loop.reading import read_trace
from bento_kv.runtime.graph import Cache, GraphOutput, cache_length
from tests.doctor.toy import ToyDecoder
from tests.mutants.loops import LOOPS

Line = dict[str, Any]
Ids = NDArray[np.int64]
PAD = 49
PROMPTS = ([5, 9, 3, 17, 22, 8, 31], [11, 2, 11, 45])
TOY = ToyDecoder()
STEPS = 7


def printed(lines: list[Line], ids: Ids, past: int, logits: NDArray[np.float32], **more: Any) -> Ids:
    """Adds a line; `logits` are `[rows, vocab]`. The tokens chosen."""
    token: Ids = logits.argmax(axis=-1)
    top = [[[int(t), float(row[t])] for t in np.argsort(-row)[:3]] for row in logits]
    one = len(ids) == 1
    lines.append(
        {
            "step": len(lines),
            "input_ids": ids.tolist(),
            "past_length": past,
            "next_token": int(token[0]) if one else token.tolist(),
            "logits_top": top[0] if one else top,
            **more,
        }
    )
    return token[:, None]


def padded(prompts: Sequence[Sequence[int]], width: int, *, left: bool) -> tuple[Ids, Ids]:
    """Ids and mask, `[rows, width]`."""
    rows = [[PAD] * (width - len(p)) + list(p) if left else list(p) + [PAD] * (width - len(p)) for p in prompts]
    masks = [[0] * (width - len(p)) + [1] * len(p) if left else [1] * len(p) + [0] * (width - len(p)) for p in prompts]
    return np.array(rows), np.array(masks)


def batch(
    prompts: Sequence[Sequence[int]],
    *,
    left: bool = False,
    width: int = 0,
    masked: bool = True,
    own_last: bool = True,
    counted: bool = False,
    graph: ToyDecoder = TOY,
) -> list[Line]:
    """Rows padded to a width.

    Args:
        masked: the mask hides the padding.
        own_last: each row goes on from its own last token, not from the last column.
        counted: positions are columns, padding among them.
    """
    ids, mask = padded(prompts, width or max(map(len, prompts)), left=left)
    lines: list[Line] = []
    past = graph.empty_cache(len(prompts))
    for number in range(STEPS):
        seen = mask if masked else np.ones_like(mask)
        positions = np.maximum(mask.cumsum(axis=1) - 1, 0)[:, -ids.shape[1] :]
        if counted:
            positions = np.broadcast_to(np.arange(mask.shape[1])[-ids.shape[1] :], ids.shape)
        output = graph.run(ids, past, mask=seen, positions=positions)
        at = mask.sum(axis=1) - 1 if number == 0 and own_last and not left else np.full(len(ids), -1)
        ids = printed(
            lines, ids, cache_length(past), output.logits[np.arange(len(ids)), at], position_ids=positions.tolist()
        )
        past = output.present
        mask = np.concatenate((mask, np.ones((len(prompts), 1), np.int64)), axis=1)
    return lines


def placeholder(length: int, *, seen: bool, counted: bool, graph: ToyDecoder = TOY) -> list[Line]:
    """Step 0 gets a past of zeros, since an empty tensor cannot be made."""
    zeros = np.zeros(
        (1, *graph.empty_cache(1)[0][0].shape[1:2], length, graph.empty_cache(1)[0][0].shape[3]), np.float32
    )
    past: Cache = [(zeros, zeros) for _ in graph.empty_cache(1)]
    ids, lines = np.array([PROMPTS[0]]), list[Line]()
    for _ in range(STEPS):
        held = cache_length(past)
        mask = np.ones((1, held + ids.shape[1]), np.int64)
        mask[:, :length] = seen
        first = held if counted else held - length
        positions = np.arange(first, first + ids.shape[1])[None]
        output = graph.run(ids, past, mask=mask, positions=positions)
        more = {"position_ids": positions.tolist(), "attention_mask_length": mask.shape[1]}
        ids, past = (
            printed(lines, ids, held, output.logits[:, -1], present_length=mask.shape[1], **more),
            output.present,
        )
    return lines


def chunks(size: int) -> list[Line]:
    """A prompt in chunks of one size, of which the last one is filled up; its padding is masked from then on."""
    prompt, lines, past, mask = PROMPTS[0], list[Line](), TOY.empty_cache(1), np.zeros((1, 0), np.int64)
    token: Ids = np.zeros((1, 1), np.int64)
    pieces = [prompt[at : at + size] for at in range(0, len(prompt), size)]
    for number in range(len(pieces) + STEPS):
        own = len(pieces[number]) if number < len(pieces) else 1
        ids = np.array([[*pieces[number], *[PAD] * (size - own)]]) if number < len(pieces) else token
        mask = np.concatenate((mask, (np.arange(ids.shape[1]) < own).astype(np.int64)[None]), axis=1)
        positions = (mask.cumsum(axis=1) - 1)[:, -ids.shape[1] :]
        output = TOY.run(ids, past, mask=mask, positions=positions)
        token = printed(lines, ids, cache_length(past), output.logits[:, own - 1], position_ids=positions.tolist())
        if number + 1 < len(pieces):
            del lines[-1]["next_token"], lines[-1]["logits_top"]
        past = output.present
    return lines


def static(capacity: int, *, empty_first: bool, late: bool = False) -> list[Line]:
    """A buffer of fixed length whose unused part is masked; `late`: what a step computed is written one step later."""
    buffers = [(np.zeros((1, 2, capacity, 8), np.float32),) * 2 for _ in TOY.empty_cache(1)]
    ids, lines, used = np.array([PROMPTS[0]]), list[Line](), 0
    waiting: GraphOutput | None = None
    for number in range(STEPS):
        past: Cache = TOY.empty_cache(1) if empty_first and number == 0 else [(k, v) for k, v in buffers]
        held, width = cache_length(past), ids.shape[1]
        mask = (np.arange(held + width) < used).astype(np.int64)[None]
        mask[:, held:] = 1
        positions = np.arange(used, used + width)[None]
        output = TOY.run(ids, past, mask=mask, positions=positions)
        told = {"attention_mask_length": held + width, "position_ids": positions.tolist()}
        ids = printed(lines, ids, held, output.logits[:, -1], **told)
        written = waiting if late else output
        if written is not None:
            at = used if written is output else used - 1
            for layer, sides in enumerate(written.present):
                buffers[layer] = tuple(_written(old, new, at) for old, new in zip(buffers[layer], sides, strict=True))
        waiting = output if number else None
        if late and number == 0:
            for layer, sides in enumerate(output.present):
                buffers[layer] = tuple(
                    _written(old, new, 0, width) for old, new in zip(buffers[layer], sides, strict=True)
                )
        used += width
    return lines


def _written(buffer: NDArray[Any], present: NDArray[Any], at: int, width: int = 0) -> NDArray[Any]:
    new = (
        present[:, :, -width:]
        if width
        else present[:, :, buffer.shape[2] if present.shape[2] > buffer.shape[2] else 0 :]
    )
    copy = buffer.copy()
    copy[:, :, at : at + new.shape[2]] = new
    return copy


def without(lines: list[Line], *fields: str) -> list[Line]:
    return [{name: value for name, value in line.items() if name not in fields} for line in lines]


def judged(lines: list[Line], graph: ToyDecoder = TOY, pad: int | None = None) -> LoopJudgement:
    trace = read_trace(io.StringIO("\n".join(map(json.dumps, lines))))
    return judge_loop(trace, graph, pad_token_id=pad)


Lines = Callable[[], list[Line]]
RIGHT: dict[str, Lines] = {
    "a masked placeholder of 1": lambda: placeholder(1, seen=False, counted=False),
    "a masked placeholder of 3": lambda: placeholder(3, seen=False, counted=False),
    "padding on the right": lambda: batch(PROMPTS),
    "padding on the right of all rows": lambda: batch(PROMPTS, width=12),
    "one row padded to a bucket": lambda: batch(PROMPTS[:1], width=16),
    "one row padded by one": lambda: batch(PROMPTS[:1], width=8),
    "padding on the left": lambda: batch(PROMPTS, left=True),
    "padding on the left of all rows": lambda: batch(PROMPTS, left=True, width=12),
    "one row padded on the left": lambda: batch(PROMPTS[:1], left=True, width=12),
    "chunks, the last one padded": lambda: chunks(4),
    "two rows as long, one of which ends in a token twice": lambda: batch(
        ([5, 9, 3, 17, 22, 8], [11, 2, 11, 45, 33, 33])
    ),
    "a static buffer": lambda: static(32, empty_first=False),
    "a static buffer behind step 0": lambda: static(32, empty_first=True),
}
WRONG: dict[str, tuple[Lines, str, int]] = {
    "a placeholder that is seen": (lambda: placeholder(1, seen=True, counted=True), "past-stale", 0),
    "a placeholder that is seen, not counted": (lambda: placeholder(1, seen=True, counted=False), "past-stale", 0),
    "a masked placeholder that is counted": (lambda: placeholder(1, seen=False, counted=True), "past-stale", 0),
    "the last column": (lambda: batch(PROMPTS, own_last=False), "tokens-diverge", 0),
    "the last column, seen": (lambda: batch(PROMPTS, own_last=False, masked=False, counted=True), "tokens-diverge", 0),
    "the last column, counted": (lambda: batch(PROMPTS, own_last=False, counted=True), "tokens-diverge", 0),
    "its own last token, padding seen later": (lambda: batch(PROMPTS, masked=False), "tokens-diverge", 1),
    "its own last token, padding counted": (lambda: batch(PROMPTS, counted=True), "tokens-diverge", 1),
    "one row in a bucket, padding seen": (lambda: batch(PROMPTS[:1], width=12, masked=False), "tokens-diverge", 1),
    "a buffer that is written late": (lambda: static(32, empty_first=True, late=True), "past-stale", 1),
}


@pytest.mark.parametrize("fields", [(), ("position_ids",)], ids=["all fields", "without positions"])
@pytest.mark.parametrize("pad", [None, PAD])
@pytest.mark.parametrize("name", RIGHT)
def test_a_loop_whose_numbers_are_right_is_right(name: str, pad: int | None, fields: tuple[str, ...]) -> None:
    verdict = judged(without(RIGHT[name](), *fields), pad=pad)
    assert verdict.diagnosis.verdict == "right", verdict.findings
    assert verdict.compared


@pytest.mark.parametrize("fields", [(), ("position_ids",)], ids=["all fields", "without positions"])
@pytest.mark.parametrize("pad", [None, PAD])
@pytest.mark.parametrize("name", WRONG)
def test_a_loop_whose_numbers_are_wrong_is_wrong(name: str, pad: int | None, fields: tuple[str, ...]) -> None:
    make, id, step = WRONG[name]
    verdict = judged(without(make(), *fields), pad=pad)
    assert verdict.diagnosis.verdict == "wrong"
    told = [(finding.id, finding.where) for finding in verdict.findings]
    assert told[0] == (id, f"step {step}"), verdict.findings


@pytest.mark.parametrize("name", ["a masked placeholder of 1", "a static buffer"])
def test_without_logits_lengths_decide_and_say_so(name: str) -> None:
    verdict = judged(without(RIGHT[name](), "logits_top"))
    assert verdict.findings[0].id == "past-stale"
    assert "no `logits_top`" in verdict.findings[0].explain


def test_a_row_alone_that_ends_in_what_others_are_padded_with_is_right() -> None:
    verdict = judged(batch(([11, 2, 11, 45, PAD],)), pad=PAD)
    assert verdict.diagnosis.verdict == "right", verdict.findings


def test_numbers_that_would_be_right_with_the_fault_do_not_speak_against_it() -> None:
    """A decoder that hardly looks back gives the same logits for any past."""
    blind = ToyDecoder()
    for layer in blind.layers:
        layer[3] *= 0
    verdict = judged(placeholder(1, seen=True, counted=False, graph=blind), blind)
    assert [finding.id for finding in verdict.findings][:1] == ["past-stale"]
    assert "the same" in verdict.findings[0].explain


def test_a_row_that_has_ended_may_print_its_padding_as_chosen() -> None:
    """As transformers does: a row that has ended gives padding, whatever its logits are."""
    lines = without(batch(PROMPTS, left=True), "logits_top")
    eos = lines[2]["next_token"][1]
    for line in lines[3:]:
        line["input_ids"][1] = [eos if line is lines[3] else PAD]
        line["next_token"][1] = PAD
    assert judged(lines).diagnosis.verdict == "right"
    assert judged(lines, pad=PAD).diagnosis.verdict == "right"


@pytest.mark.parametrize("name", WRONG)
def test_no_sentence_contradicts_itself(name: str) -> None:
    for finding in judged(WRONG[name][0]()).findings:
        for text in (finding.explain, finding.fix):
            words = text.replace(",", "").replace(".", "").split(" not after token ")
            assert len(words) == 1 or not words[0].endswith(words[1].split()[0])
            assert "?." not in text


@pytest.mark.parametrize("told", [True, False])
def test_a_branch_that_is_never_turned_on_is_named_where_it_shows(told: bool) -> None:
    """A merged decoder without `use_cache_branch` returns what it was fed alone; step 1 is the first that lacks a past."""
    ids, past, present = [[5, 9, 3], [7], [8], [6]], [0, 3, 1, 1], [3, 1, 1, 1]
    lines = [{"step": at, "input_ids": [row], "past_length": past[at]} for at, row in enumerate(ids)]
    if told:
        lines = [{**line, "present_length": present[at]} for at, line in enumerate(lines)]
    (finding,) = judge_loop(read_trace(io.StringIO("\n".join(map(json.dumps, lines)))), None).findings
    assert (finding.id, finding.where) == ("past-not-fed", "step 1")
    assert "use_cache_branch" in finding.fix


def test_a_branch_that_is_never_turned_on_is_named_by_numbers_too() -> None:
    """The loop counts lengths itself, so that only its tokens show it."""
    merged = ToyDecoder()
    merged.one_token_steps = True
    ids, lines = np.array([PROMPTS[0]]), list[Line]()
    for number in range(STEPS):
        held = len(PROMPTS[0]) + number - 1 if number else 0
        output = merged.run(ids, merged.empty_cache(1), positions=np.arange(held, held + ids.shape[1])[None])
        ids = printed(lines, ids, held, output.logits[:, -1])
    (finding,) = judged(lines, merged).findings
    assert (finding.id, finding.where) == ("past-not-fed", "step 1")
    assert "use_cache_branch" in finding.fix


def test_a_fix_does_not_ask_for_what_the_trace_shows() -> None:
    """A mask that is as long as it should be, and hides the past."""
    loop = next(loop for loop in LOOPS if loop.name == "past masked, mask long enough")
    (finding,) = judged(loop.make(TOY, PROMPTS[0], STEPS, "all")).findings
    assert finding.id == "mask-too-short"
    assert "ones" in finding.fix
    assert "past length + tokens" not in finding.fix

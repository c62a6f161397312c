"""What a trace says of its logits: the token that each step went on with, and the likeliest ones."""

from __future__ import annotations

from bento_kv.doctor.loop.replay import Chosen
from bento_kv.doctor.loop.structure import Structure
from bento_kv.doctor.loop.trace import Trace
from bento_kv.doctor.loop.walk import Kind


def choices_of(trace: Trace, structure: Structure) -> dict[int, list[Chosen]]:
    """By step, what there is to compare with the logits of each row."""
    told = any(step.next_token is not None for step in trace.steps)
    decoding = first_decoded(structure)
    choices: dict[int, list[Chosen]] = {}
    for number, step in enumerate(trace.steps):
        following = structure.walked[number + 1] if number + 1 < len(trace.steps) else None
        at, after = step.width - 1, None
        if following is not None:
            column = following.sequence.shape[1] - following.step.past_length
            if following.kind is Kind.ROLLBACK:
                at, column = following.step.past_length - step.past_length - 1, 0
            if 0 <= column < following.step.width:
                after = following.step.ids[:, column]
        elif number and step.width > 1:
            continue  # drafts, whose check the trace does not show
        for row in range(trace.rows):
            token = None if step.next_token is None else step.next_token[row]
            rolled_back = following is not None and following.kind is Kind.ROLLBACK
            if after is not None and (rolled_back or (not told and number >= decoding)):
                token = int(after[row])
            top = () if step.logits_top is None else step.logits_top[row]
            choices.setdefault(number, []).append(Chosen(row, at, token, top))
    return choices


def first_decoded(structure: Structure) -> int:
    """The last step that may be a chunk of the prompt: what follows the steps before it need not be chosen."""
    walked = structure.walked
    last = next((at for at, w in enumerate(walked) if w.step.width == 1), len(walked)) - 1
    check = next((at for at, w in enumerate(walked) if w.kind is Kind.ROLLBACK), None)
    return max(0, last if check is None else min(last, check - 2))

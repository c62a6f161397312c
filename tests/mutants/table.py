"""The table of mutants: every fault, what was said of it, and whether that was right."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.mutants import graphs, loops
from tests.mutants.outcomes import Outcome

DOCUMENT = Path(__file__).parents[2] / "docs" / "reference" / "mutants.md"

_HEAD = """# Mutants

A proof that finds nothing proves nothing. So healthy decoders are made faulty on purpose, one fault
at a time, and so are healthy loops. Then the doctor is asked, by the same function that
`bento-kv doctor` calls.

Each fault has to be found, blamed on the right part, export or loop, and named by the right id
**first**. Right decoders and loops, odd ones among them, have to be left in peace.

The decoders are tiny random models, exported by bento_kv:
{architectures}.
One is made by hand in the form that onnxruntime-genai's builder writes. Their layouts are made by
surgery. No reference model is given but where the table says so.

This page is written by `python -m tests.mutants --write`. The tests run the same, and fail if the
page says anything else.
"""


_TAIL = """## What it does not see

- A size that is baked beyond those tried: 1, 2, 3 and 7 of each axis, 12 tokens in all. A mask made
  for 64 positions looks right.
- A decoder that is wrong alike with its cache and without, unless `--reference` is given.
- An error below the limits: 1e-4 of the largest logit in fp32, 2e-2 in halves, 1e-1 where
  activations have 8 bits.
- Rows padded on the left of a graph that takes no `position_ids` and counts columns: with learned
  positions they are misplaced. Such graphs are right for rows of one length, and are left in peace.
- Which of two faults in one graph came first: one is named, and the next shows when it is mended.
"""


@dataclass(frozen=True)
class Totals:
    """Of all outcomes."""

    faults: int
    found: int
    layer: int
    id: int
    right: int
    alarms: int

    def __str__(self) -> str:
        return (
            f"{self.faults} faults: {self.found} found, {self.layer} blamed on the right layer, {self.id} named rightly.\n"
            f"{self.right} right decoders and loops: {self.alarms} false alarms."
        )


def totals(outcomes: Sequence[Outcome], expected: Sequence[Outcome]) -> Totals:
    """Counted over outcomes and what was expected of them, in the same order."""
    faulty = [(o, e) for o, e in zip(outcomes, expected, strict=True) if e.found]
    right = [o for o, e in zip(outcomes, expected, strict=True) if not e.found]
    return Totals(
        faults=len(faulty),
        found=sum(bool(o.found) for o, _ in faulty),
        layer=sum(_layer(o) == _layer(e) for o, e in faulty),
        id=sum(o.found[:1] == e.found[:1] for o, e in faulty),
        right=len(right),
        alarms=sum(bool(o.found) for o in right),
    )


def _layer(outcome: Outcome) -> str:
    return outcome.scenario.partition(":")[0]


def document(outcomes: Sequence[Outcome], expected: Sequence[Outcome]) -> str:
    """The page."""
    bases = sorted({m.base for m in graphs.MUTANTS} | {o.decoder.partition(", ")[0] for o in outcomes})
    architectures = ", ".join(base for base in bases if base not in ("packed", "genai"))
    parts = [_HEAD.format(architectures=architectures), f"**{totals(outcomes, expected)}**\n"]
    pairs = list(zip(outcomes, expected, strict=True))
    for title, kind, rows in (
        ("Faults in graphs", "graph", _graph_rows),
        ("Faults in loops", "loop", _loop_rows),
        ("Right decoders", "right decoder", _right_rows),
        ("Right loops", "right loop", _right_rows),
    ):
        parts.append(f"## {title}\n")
        parts.append("\n".join(rows([pair for pair in pairs if pair[1].kind == kind])) + "\n")
    return "\n".join([*parts, _TAIL])


Pairs = Sequence[tuple[Outcome, Outcome]]


def _graph_rows(pairs: Pairs) -> Iterator[str]:
    yield "| fault | decoder | what was done | who ran into it | expected | found | layer | id |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    notes = []
    for mutant, (outcome, expected) in zip(graphs.MUTANTS, pairs, strict=True):
        mark = ""
        if mutant.note:
            notes.append(mutant.note)
            mark = f" [{len(notes)}]"
        what = mutant.what + ("; compared with torch" if mutant.reference else "")
        yield _row(
            mutant.name, outcome.decoder, what, mutant.origin, f"`{mutant.ids[0]}`{mark}", *_verdict(outcome, expected)
        )
    yield ""
    yield "Where another id could be defended, or another follows:\n"
    yield from (f"{number}. {note[0].upper()}{note[1:]}." for number, note in enumerate(notes, start=1))


def _loop_rows(pairs: Pairs) -> Iterator[str]:
    yield "| loop | run on | first wrong step | expected | found | layer | id |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for loop, (outcome, expected) in zip(loops.FAULTY, pairs, strict=True):
        step = "by its numbers" if loop.first is None else str(loop.first)
        yield _row(loop.name, outcome.decoder, step, _ids(loop.ids), *_verdict(outcome, expected))


def _right_rows(pairs: Pairs) -> Iterator[str]:
    yield "| name | decoder | said |"
    yield "| --- | --- | --- |"
    for outcome, _ in pairs:
        yield _row(outcome.name, outcome.decoder, _ids(outcome.found) or f"nothing ({outcome.scenario[0]})")


def _verdict(outcome: Outcome, expected: Outcome) -> tuple[str, str, str]:
    layer = "right" if _layer(outcome) == _layer(expected) else "**wrong**"
    id = "right" if outcome.found[:1] == expected.found[:1] else "**wrong**"
    return _ids(outcome.found) or "nothing", layer, id


def _ids(found: Sequence[str]) -> str:
    return ", ".join(f"`{id}`" for id in found)


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"

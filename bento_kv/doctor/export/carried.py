"""The export where nobody can look into the cache: a decoder against itself by what its steps give, and nothing else.

States of convolutions and recurrences, static caches, caches that slide: of none of them can a position be taken out or
compared. But every sequence can be cut into steps in several ways, and a right decoder gives the same for all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from bento_kv.doctor.export.driven import nan_finding
from bento_kv.doctor.export.probe import LENGTH, REEXPORT, made_up, noise, relative_error
from bento_kv.doctor.faults import ExportFaultId
from bento_kv.doctor.records import Finding, StepError
from bento_kv.errors import DecoderError
from bento_kv.runtime.carried import Carried, CarriedGraph, Link, replaced

PROMPT, FEWEST = 5, 8  # tokens of step 0, and of all steps together
ROWS = 3
_SAME = 1e-6  # of another order of summation
_KEYS_AND_VALUES = 5  # what rounding shows more in them than in logits


class Steps:
    """A graph, tokens to run it on, and the same tokens cut into steps.

    Args:
        graph: to drive, its mask being laid out in one way.
        vocab_size: token ids are below it.
        limit: what an error may be, relative to the largest value.

    Attributes:
        one_token: several tokens do not go in at once, so there is nothing to compare a step with.

    Raises:
        DecoderError: no step runs.
    """

    def __init__(self, graph: CarriedGraph, vocab_size: int, limit: float) -> None:
        self.graph = graph
        self.limit = limit
        self.vocab_size = vocab_size
        self.rows = graph.rows or 1
        length = min(LENGTH, graph.capacity or LENGTH)
        if length < FEWEST:
            raise DecoderError(f"a cache of {length} places is too short to be judged")
        self.ids = made_up(0, vocab_size, self.rows, length)
        self.one_token = False
        try:
            self.full, self.after = graph.run(self.ids, graph.empty(self.rows))
        except DecoderError:
            self.one_token = True
            self.full, self.after = self.chain(self.ids, [1] * length)

    def chain(self, ids: NDArray[np.int64], sizes: Sequence[int]) -> tuple[NDArray[np.float32], Carried]:
        """The tokens in steps of these sizes: the last logits of each step, `[rows, steps, vocab_size]`, and what is left."""
        carried, at, logits = self.graph.empty(len(ids)), 0, []
        for size in sizes:
            got, carried = self.graph.run(ids[:, at : at + size], carried)
            logits.append(got[:, -1:])
            at += size
        return np.concatenate(logits, axis=1), carried

    def at_once(self, end: int) -> tuple[NDArray[np.float32], Carried]:
        """The first tokens in one step."""
        return self.graph.run(self.ids[:, :end], self.graph.empty(self.rows))

    def error(self, got: NDArray[np.generic], expected: NDArray[np.generic]) -> float:
        """As `Probe.error`."""
        return relative_error(np.asarray(got, np.float32), np.asarray(expected, np.float32))

    def expected(self, end: int) -> NDArray[np.float32]:
        """Logits after so many tokens, `[rows, vocab_size]`, from one step where it gives them."""
        return self.full[:, end - 1] if self.full.shape[1] == self.ids.shape[1] else self.at_once(end)[0][:, -1]


def check_carried(steps: Steps) -> list[Finding]:
    """What is wrong, the first that explains the rest."""
    if not np.isfinite(steps.full).any() or np.isnan(steps.full).any():
        return [nan_finding("logits", "step 0")]
    if steps.error(steps.chain(steps.ids, [steps.ids.shape[1]])[0][:, -1], steps.full[:, -1]) > steps.limit:
        return [
            _finding("numeric-mismatch", "logits, step 0 run twice", "The same tokens run twice give other logits.")
        ]
    # Each rests on what those before have shown.
    found = next((f for check in (_kept_as_fed, _unwritten, _causal, _cached) for f in check(steps)), None)
    return [found] if found else _rows(steps)


def _kept_as_fed(steps: Steps) -> Iterator[Finding]:
    """States that no token changes, whatever stands in them."""
    _, before = steps.at_once(PROMPT)
    states = {link.past.name: link.present.name for link in steps.graph.links if link.state}
    arrays = {name: noise(before.arrays[name], at) for at, name in enumerate(states)}
    _, after = steps.graph.run(steps.ids[:, PROMPT : PROMPT + 1], replaced(before, arrays))
    for name, present in states.items():
        if np.array_equal(after.arrays[name], arrays[name]):
            yield _not_moved_on(
                present, "a step returns it as it was fed, so that the next one does not know of its token"
            )


def _causal(steps: Steps) -> Iterator[Finding]:
    """What a token gives does not depend on those behind it."""
    fewer, _ = steps.at_once(PROMPT)
    error = steps.error(fewer[:, -1], steps.full[:, PROMPT - 1]) if steps.full.shape[1] > 1 else 0.0
    if not error <= steps.limit:
        text = f"Without a past, logits depend on the tokens that come after: by {error:.2g} of the largest."
        yield _finding("numeric-mismatch", "step 0, the order of tokens", text)


def _cached(steps: Steps) -> list[Finding]:
    """A prompt and single tokens behind it against all of it at once, and what each step leaves for the next."""
    length = steps.ids.shape[1]
    sizes = [PROMPT, *[1] * (length - PROMPT)]
    got, _ = steps.chain(steps.ids, sizes)
    errors = [steps.error(got[:, at], steps.expected(PROMPT + at)) for at in range(len(sizes))]
    wrong = next((at for at, error in enumerate(errors) if not error <= steps.limit), None)
    if wrong is None:
        return []  # however it is stored: nothing is read out of what is carried
    left = next(_left_wrong(steps), None)
    if left is not None:
        return [left]
    held = PROMPT + wrong - 1
    ignored = steps.error(_blurred(steps, held), got[:, wrong]) <= _SAME
    what = (
        f"The logits of 1 token behind {held} others differ from those of the same tokens at once, by "
        f"{max(errors):.2g} of the largest, limit {steps.limit:.0e}"
    )
    if ignored:
        return [
            _finding("past-ignored", "logits", f"{what}: they are the same whatever is carried from the step before.")
        ]
    text = f"{what}. What is carried is the same both ways, so it is read, masked or placed otherwise."
    return [_finding("numeric-mismatch", f"1 token behind {held} others", text)]


def _blurred(steps: Steps, held: int) -> NDArray[np.float32]:
    """The logits of a token behind noise."""
    _, carried = steps.at_once(held)
    arrays = {name: noise(array, at) for at, (name, array) in enumerate(carried.arrays.items())}
    return steps.graph.run(steps.ids[:, held : held + 1], replaced(carried, arrays))[0][:, -1]


def _left_wrong(steps: Steps) -> Iterator[Finding]:
    """What one step leaves behind a prompt, against what the same tokens leave at once: the lowest layer first."""
    _, before = steps.at_once(PROMPT)
    _, got = steps.graph.run(steps.ids[:, PROMPT : PROMPT + 1], before)
    _, wanted = steps.at_once(PROMPT + 1)
    for link in sorted(steps.graph.links, key=lambda link: _layer(link.past.name)):
        name = link.past.name
        mine, other, old = got.arrays[name], wanted.arrays[name], before.arrays[name]
        if mine.shape == other.shape and steps.error(mine, other) <= _KEYS_AND_VALUES * steps.limit:
            continue
        if np.array_equal(mine, old):
            what = f"a step behind {PROMPT} tokens returns it as it was fed"
        elif mine.shape != other.shape:
            what = f"{PROMPT} tokens and 1 leave {list(mine.shape)}, and the same 6 at once {list(other.shape)}"
        else:
            what = f"what it holds after {PROMPT} tokens and 1 is not what it holds after the same {PROMPT + 1} at once"
            what += _where(steps, link, mine, other)
        yield _not_moved_on(link.present.name, what)


def _not_moved_on(present: str, what: str) -> Finding:
    return Finding(
        id="present-not-appended",
        where=present,
        explain=f"{present}: {what}. A loop that feeds it back loses what came before.",
        fix="Return what the next step needs: a state moved on by every new token, keys and values at their own places. "
        + REEXPORT,
    )


def misplaced(steps: Steps) -> list[Finding]:
    """Static keys and values that are written to another place than the one that the write position names."""
    _, before = steps.at_once(PROMPT)
    _, after = steps.graph.run(steps.ids[:, PROMPT : PROMPT + 1], before)
    for link in steps.graph.links:
        old, new = before.arrays[link.past.name], after.arrays[link.past.name]
        places = _places(steps, link, old, new)
        if len(places) == 1 and places[0] != PROMPT:
            what = f"the token at position {PROMPT} is written to place {places[0]}, so that the last ones do not fit"
            return [_not_moved_on(link.present.name, what)]
    return []


def _where(steps: Steps, link: Link, mine: NDArray[np.generic], other: NDArray[np.generic]) -> str:
    places = _places(steps, link, mine, other)
    return f", at its places {', '.join(map(str, places[:4]))}; the new one is {PROMPT}" if places else ""


def _places(steps: Steps, link: Link, one: NDArray[np.generic], other: NDArray[np.generic]) -> list[int]:
    """Where two contents of a static cache differ along its time axis; nowhere of anything else."""
    if link.state or link.grows is not None:
        return []
    axis = next(pair for pair in steps.graph.interface.caches if pair.past is link.past).axes.index("time")
    beside = tuple(at for at in range(one.ndim) if at != axis)
    apart = np.abs(one.astype(np.float32) - other.astype(np.float32)).max(beside)
    return [int(place) for place in np.flatnonzero(apart > 0)]


def _unwritten(steps: Steps) -> Iterator[Finding]:
    """Places of a static cache that nothing was written to yet: whatever is left there by others must not matter."""
    graph = steps.graph
    if not graph.interface.static:
        return
    _, before = steps.at_once(PROMPT)
    arrays = {}
    for pair in graph.interface.caches:
        if pair.past is None:
            continue
        array = before.arrays[pair.past.name].copy()
        behind = [slice(None)] * array.ndim
        behind[pair.axes.index("time")] = slice(PROMPT + 1, None)
        array[tuple(behind)] = noise(array[tuple(behind)], pair.layer)
        arrays[pair.past.name] = array
    ids = steps.ids[:, PROMPT : PROMPT + 1]
    clean, dirty = (graph.run(ids, carried)[0][:, -1] for carried in (before, replaced(before, arrays)))
    if not steps.error(dirty, clean) <= steps.limit:
        text = (
            f"Behind {PROMPT} tokens the logits depend on places of the cache that nothing was written to yet. What another "
            "sequence left there becomes part of the answer, and zeros there take their share of attention."
        )
        yield _finding("mask-ignores-past", f"the cache behind position {PROMPT}", text)


def _rows(steps: Steps) -> list[Finding]:
    """Rows of different tokens in one step against each alone, where the graph takes several."""
    graph = steps.graph
    if graph.rows is not None:
        return []
    ids = made_up(2, steps.vocab_size, ROWS, PROMPT + 1)
    try:
        together, _ = steps.chain(ids, [PROMPT, 1])
    except DecoderError as error:
        text = f"One row of tokens runs, and {ROWS} do not, though the rows are declared to vary: {error}."
        return [_finding("dynamic-axis-baked", f"{ROWS} rows", text).model_copy(update={"axis": "batch"})]
    for row in range(ROWS):
        alone, _ = steps.chain(ids[row : row + 1], [PROMPT, 1])
        if not steps.error(together[row], alone[0]) <= steps.limit:
            text = (
                f"Row {row} of {ROWS} gets other logits than alone. One user's answer changes with another's request."
            )
            return [_finding("batch-rows-mixed", f"logits of row {row}", text)]
    return []


def chunks_agree(steps: Steps) -> bool:
    """Whether several tokens behind others give what they give at once; many states are made for one token a step."""
    try:
        got, _ = steps.chain(steps.ids, [4, 3, steps.ids.shape[1] - 7])
    except DecoderError:
        return False
    return all(steps.error(got[:, at], steps.expected(end)) <= steps.limit for at, end in enumerate((4, 7)))


def measured(steps: Steps) -> tuple[StepError, ...]:
    """Single tokens behind a prompt against all at once; of what is carried nothing is known by layer."""
    length = steps.ids.shape[1]
    got, _ = steps.chain(steps.ids, [PROMPT, *[1] * (length - PROMPT)])
    return tuple(
        StepError(
            step=at,
            tokens=1 if at else PROMPT,
            past_length=PROMPT + at - 1 if at else 0,
            logits=_number(steps.error(got[:, at], steps.expected(PROMPT + at))),
            keys=(),
            values=(),
        )
        for at in range(got.shape[1])
    )


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _layer(name: str) -> int:
    numbers = re.findall(r"\d+", name)
    return int(numbers[-1]) if numbers else 0


def _finding(id: ExportFaultId, where: str, explain: str) -> Finding:
    return Finding(id=id, where=where, explain=explain, fix=REEXPORT)

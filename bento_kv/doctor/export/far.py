"""The export far along the sequence, within a budget that is counted and not timed: every run looks at the same.

Prompts as long as the budget allows are computed at once and behind a cache. Beyond them nothing is computed from the
first token on: a few tokens are moved to far positions, and steps are given a past that nobody had to compute.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bento_kv.doctor.export.length import Declared
from bento_kv.doctor.export.probe import LENGTH, REEXPORT, Probe, cut, noise
from bento_kv.doctor.records import Finding, Reach
from bento_kv.errors import DecoderError, GraphLimitError
from bento_kv.runtime.graph import Cache, GraphOutput, cache_length

# Of a prompt: operations, a few seconds on two cores of 2026, and bytes of its logits. Of a past: bytes.
OPERATIONS, LOGITS_BYTES, PAST_BYTES = 1e12, 2**28, 2**28
PROMPTS = (1024, 512, 256, 128, 64, 32)
MOVED = 8  # tokens that are moved to far positions


class Far:
    """A decoder that is right near the first position, looked at far from it.

    Args:
        probe: of the graph.
        declared: positions that there are; None where nothing says.
        weights: of the graph, as many numbers.
        rounded: activations are rounded with a scale for a whole step, so that long steps cannot be compared.

    Attributes:
        prompt: tokens of the long prompt, and what the graph makes of them at once; the near ones where no longer was run.
    """

    def __init__(self, probe: Probe, declared: Declared | None, *, weights: int, rounded: bool) -> None:
        self.probe = probe
        self.declared = declared
        self.room = declared.length if declared else PROMPTS[0]
        self.prompt: tuple[NDArray[np.int64], GraphOutput] = (probe.ids, probe.full)
        self.looked = [f"{LENGTH} tokens in steps of every kind, with a cache and without"]
        self.left: list[str] = []
        self.positions = min(LENGTH, self.room)
        self._longest = LENGTH if rounded else affordable(weights, probe.full.logits.shape[-1], self.room)
        if rounded:
            self.leave(f"prompts of more than {LENGTH} tokens, whose activations share scales of 8 bits")

    @property
    def reach(self) -> Reach:
        """What was looked at until now."""
        declared = self.declared
        beyond = self.room - self.positions
        left = [*self.left, f"the {beyond} positions beyond"] if declared and beyond > 0 else self.left
        return Reach(
            declared=declared.length if declared else None,
            declared_by=declared.source if declared else "",
            positions=self.positions,
            looked=tuple(self.looked),
            left=tuple(left),
        )

    def leave(self, what: str) -> None:
        """Something is not looked at."""
        if what not in self.left:
            self.left.append(what)

    def see(self, positions: int, what: str) -> None:
        """Numbers were compared up to so many positions."""
        self.looked.append(what)
        self.positions = max(self.positions, min(positions, self.room))

    def alone(self, only: bool) -> list[Finding]:
        """Against itself: a long prompt with a cache and without, and whether the last positions can be reached.

        Args:
            only: nothing else is looked at.
        """
        found = self._long_prompt() or self._ends()
        if only and not found:
            self.leave("what is wrong in the same way with a cache and without, which --reference shows")
        return found

    def _long_prompt(self) -> list[Finding]:
        length = self._longest
        while length > LENGTH:
            ids = self.probe.tokens(4, 1, length)
            try:
                whole = self.probe.graph.run(ids, self.probe.graph.empty_cache(1))
            except DecoderError as error:
                if self.declared:
                    return [self._ended(f"a prompt of {length} tokens", error)]
                length //= 2
                continue
            except GraphLimitError:
                self.leave(f"prompts of {length} tokens, for which time or memory is not enough")
                length //= 2
                continue
            return self._in_steps(ids, whole)
        return []

    def _in_steps(self, ids: NDArray[np.int64], whole: GraphOutput) -> list[Finding]:
        """Steps behind the cache of a long prompt against the prompt at once."""
        length, probe = ids.shape[1], self.probe
        if cache_length(whole.present) != length:
            self.leave(f"prompts of more than {LENGTH} tokens: the cache keeps {cache_length(whole.present)}")
            return []
        steps = [(held, 1) for held in sorted({length // 4, length // 2, length - 1})]
        if probe.chunk:
            steps.append((length // 2, length - length // 2))
        for held, n in steps:
            past = cut(whole.present, held)
            try:
                got = probe.graph.run(ids[:, held : held + n], past).logits[:, -1]
            except DecoderError as error:
                return [self._ended(f"{n} tokens behind a past of {held}", error)]
            at = held + n - 1 - length
            if -at > whole.logits.shape[1]:  # the graph gives the last token's logits only
                continue
            error_of = probe.error(got, whole.logits[:, at])
            if not error_of <= probe.limit:
                return [self._differs(held, n, error_of, ids, past)]
        self.prompt = ids, whole
        self.see(length, f"a prompt of {length} tokens, at once and behind its cache")
        return []

    def _differs(self, held: int, n: int, error: float, ids: NDArray[np.int64], past: Cache) -> Finding:
        """A step far along that is not what the prompt at once is."""
        unseen = n == 1 and not sees_oldest(self.probe, ids[:, held : held + 1], past)
        why = (
            f"It does not see the first {held // 2} positions of its past."
            if unseen
            else "Near the first position the same is right: look for what has an end, such as a mask or a table made at "
            "one size, or a window that prompts have and steps have not."
        )
        return Finding(
            id="mask-ignores-past" if unseen else "numeric-mismatch",
            where=f"{n} tokens behind a past of {held}",
            explain=f"The logits of {n} tokens behind a past of {held} differ from those of the same tokens computed at "
            f"once: by {error:.2g} of the largest, limit {self.probe.limit:.0e}. {why}",
            fix=REEXPORT,
        )

    def _ends(self) -> list[Finding]:
        """Whether the last positions that are declared can be reached at all."""
        declared = self.declared
        if declared is None:
            self.leave("the last positions, of which nothing says where they are")
            return []
        probe, reached = self.probe, []
        if probe.graph.takes_positions and declared.length > MOVED:
            first = declared.length - MOVED
            positions = np.arange(first, declared.length)[None]
            try:
                moved = probe.graph.run(probe.ids[:, :MOVED], probe.graph.empty_cache(1), positions=positions)
            except DecoderError as error:
                return [self._ended(f"{MOVED} tokens at positions {first} to {declared.length - 1}", error)]
            if not np.isfinite(moved.logits).any():
                return [self._ended(f"positions {first} to {declared.length - 1}", DecoderError("it gives no numbers"))]
            reached.append(f"{MOVED} tokens at positions {first} to {declared.length - 1}")
        held = self.past_length(declared.length - 1)
        if held > LENGTH:
            try:
                probe.graph.run(probe.ids[:, :1], filled(probe.full.present, held))
            except DecoderError as error:
                return [self._ended(f"1 token behind a past of {held}", error)]
            except GraphLimitError:
                self.leave(f"a past of {held} positions, for which time or memory is not enough")
            else:
                reached.append(f"1 token behind a past of {held}")
        if reached:
            self.looked.append(f"whether it runs on {' and on '.join(reached)}")
        return []

    def past_length(self, wanted: int) -> int:
        """Positions of a past that fits the budget; what it leaves out is noted."""
        one = sum(side.itemsize * side.shape[1] * side.shape[3] for layer in self.probe.full.present for side in layer)
        held = int(min(wanted, PAST_BYTES // max(one, 1)))
        if held < wanted:
            self.leave(f"pasts of more than {held} positions, which take more than {PAST_BYTES >> 20} MiB")
        return held

    def _ended(self, what: str, error: DecoderError) -> Finding:
        declared = self.declared
        said = f"{declared.source} declares {declared.length} positions" if declared else "Shorter ones run"
        return Finding(
            id="dynamic-axis-baked",
            where=what,
            axis="past",
            explain=f"{said}, and the graph does not run on {what}: {error}. Something in it ends before: a table of "
            "positions, or a mask that was made at one size.",
            fix="Export again with tables and masks as long as the model's, or declare the length that there is. "
            + REEXPORT,
        )


def affordable(weights: int, vocab_size: int, room: int | None) -> int:
    """Tokens of the longest prompt that is computed.

    Args:
        weights: of the graph, as many numbers.
        vocab_size: logits of a token.
        room: positions that there are; None where nothing says.
    """
    fits = [n for n in PROMPTS if 2 * weights * n <= OPERATIONS and 4 * vocab_size * n <= LOGITS_BYTES]
    return min(max([LENGTH, *fits]), room or PROMPTS[0])


def sees_oldest(probe: Probe, ids: NDArray[np.int64], past: Cache) -> bool:
    """Whether the older half of a past matters to the step behind it."""
    half = cache_length(past) // 2
    other = [tuple(_renewed(side, half, 2 * at + s) for s, side in enumerate(sides)) for at, sides in enumerate(past)]
    changed = probe.graph.run(ids, [(key, value) for key, value in other]).logits
    return probe.differ(changed, probe.graph.run(ids, past).logits)


def _renewed(side: NDArray[np.generic], half: int, seed: int) -> NDArray[np.generic]:
    other = side.copy()
    other[:, :, :half] = noise(side[:, :, :half], seed) * 3
    return other


def filled(cache: Cache, length: int) -> Cache:
    """A cache of so many positions, made of those that there are."""
    held = cache_length(cache)
    chosen = np.random.default_rng(4).integers(0, held, length)
    return [(key[:, :, chosen], value[:, :, chosen]) for key, value in cache]


def spread(room: int, places: int) -> Sequence[int]:
    """Positions from 0 to the last one at which `MOVED` tokens fit, evenly."""
    return sorted(set(np.linspace(0, max(0, room - MOVED), places, dtype=int).tolist()))

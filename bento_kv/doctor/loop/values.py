"""The loop's faults that only numbers show: what the trace chose against what the golden loop gives for its tokens."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bento_kv.doctor.loop.alone import Alone, Padding, Text
from bento_kv.doctor.loop.choices import choices_of
from bento_kv.doctor.loop.faulty import FaultyLoop, faulty_loops
from bento_kv.doctor.loop.fields import ended_rows
from bento_kv.doctor.loop.replay import LIMIT, Chosen, Replay, Score, chosen_errors, logits_at
from bento_kv.doctor.loop.structure import Structure
from bento_kv.doctor.loop.trace import Trace, TraceStep, cache_sums
from bento_kv.errors import DecoderError
from bento_kv.runtime.graph import CachedGraph, GraphOutput

# Rounding stays below it. Between it and LIMIT the golden loop is right, unless a faulty one fits far better.
_SUSPECT = 1e-4
_BETTER = 20.0


def judge_values(
    trace: Trace, structure: Structure, graph: CachedGraph, alone: Alone, padding: Padding, pad_token_id: int | None
) -> int:
    """Replay the trace and add what is found.

    Args:
        alone: its rows, each by itself.

    Returns:
        How many steps could be compared.

    Raises:
        DecoderError: the graph does not run the golden loop.
    """
    judge = _Judge(trace, structure, graph, alone, padding, pad_token_id)
    judge.judge()
    return judge.compared


class _Judge:
    def __init__(
        self,
        trace: Trace,
        structure: Structure,
        graph: CachedGraph,
        alone: Alone,
        padding: Padding,
        pad_token_id: int | None,
    ) -> None:
        self._trace = trace
        self._structure = structure
        self._graph = graph
        self._alone = alone
        self._padding = padding
        pads = padding.pads
        self._rows = [row for row in range(trace.rows) if pads[row] == 0 or (pads[row] > 0 and graph.takes_mask)]
        self._pads = np.maximum(pads, 0)
        self._chosen = choices_of(trace, structure)
        self._ended = ended_rows(trace, pad_token_id)
        self._use_sums = False
        self._use_sums = self._sums_fit()
        self.compared = 0

    def _note(self, text: str) -> None:
        self._structure.notes.append(text)

    def _replay(self, rows: list[int], *, until_ended: bool = False) -> Replay:
        choices = {
            step: [c for c in given if c.row in rows and not (until_ended and self._ended[c.row] <= step + 1)]
            for step, given in self._chosen.items()
        }
        return Replay(self._graph, self._trace, self._pads, choices, self._use_sums)

    def judge(self) -> None:
        """Those that are padded on the left, together; each of the others by itself."""
        others = [row for row in range(self._trace.rows) if row not in self._rows]
        if wrong := [row for row in others if self._alone.text(row) is None]:
            self._note(
                f"rows {wrong} are padded in a way that cannot be told, or their numbers are not those of their own tokens; "
                "add `position_ids` to have them compared"
            )
        elif others:
            self.compared = len(self._trace.steps)
        if self._rows:
            self._judge_together()

    def _judge_together(self) -> None:
        replay = self._replay(self._rows)
        golden = replay.score()
        self.compared = len(golden.errors)
        if golden.first is not None and self._stands_elsewhere():
            return
        doubtful = golden.first is not None or golden.worst_number > _SUSPECT
        if doubtful and (fits := self._fitting(replay, golden)):
            self._blame(fits, golden)
            return
        if golden.first is None:
            return
        if self._trace.rows > 1 and self._rows_excused():
            return
        self._diverges(golden, golden.first)

    def _stands_elsewhere(self) -> bool:
        """Whether each row's tokens and logits are those of its own tokens, with padding where none was thought to be."""
        texts = self._alone.texts()
        if any(text is None for text in texts):
            return False
        padded = {row: text for row, text in enumerate(texts) if text not in (None, Text(0, 0))}
        told = ", ".join(
            f"row {row}: {text.left or text.right} on the {'left' if text.left else 'right'}"
            for row, text in padded.items()
            if text
        )
        if told:
            self._note(f"taken as padding, since the tokens and logits of the rows are right without it ({told})")
        return bool(told)

    def _sums_fit(self) -> bool:
        """Whether the trace's sums are of the layers and sides as they are here; padding counts in them."""
        steps = self._trace.steps
        if self._pads.any() or not self._padding.sure:
            return False
        given = next(((s.step, s.present_sum) for s in steps if s.present_sum is not None), None)
        sides = 2 * len(self._graph.empty_cache(1))
        if any(sums is not None and len(sums) != sides for s in steps for sums in (s.past_sum, s.present_sum)):
            self._note(f"sums were not compared: the decoder has {sides} caches, one a layer and side")
            return False
        if given is None or given[0] != 0 or given[1] is None:
            return False
        output = next(self._replay([]).outputs())[2]
        expected = np.array(cache_sums(output.present))
        scale = np.array([max(1.0, float(np.abs(side).sum(dtype=np.float64))) for k in output.present for side in k])
        if (np.abs(expected - np.array(given[1])) / scale).max(initial=0.0) > LIMIT:
            self._note(
                "sums were not compared: those of step 0 are not in the order [k0, v0, k1, v1, ...], or not sums"
            )
            return False
        return True

    def _fitting(self, replay: Replay, golden: Score) -> list[tuple[FaultyLoop, Score]]:
        """The faulty loops that give what the trace has where the golden one does not; the nearest one first."""
        found: list[tuple[FaultyLoop, Score]] = []
        doubt = golden.first_above(LIMIT if golden.first is not None else _SUSPECT)
        starts = sorted({start for start in (1, 2, doubt) if start <= doubt})  # a loop may go wrong from any step on
        if doubt == 0:
            return found  # before any past was fed
        for loop in faulty_loops(self._graph, rows=self._trace.rows, padded=bool(self._pads.any())):
            for start in starts:
                try:
                    score = replay.score(loop.prepare, start, stop=True)
                except DecoderError:
                    continue  # the runtime refuses what it feeds, so it is not what the trace's loop did
                nearer = score.worst_number * _BETTER < golden.worst_number
                if score.first is None and (nearer or (golden.first is not None and not score.numbers)):
                    found.append((loop, score))
                    break
        return sorted(found, key=lambda fit: fit[1].worst_number)

    def _blame(self, fits: list[tuple[FaultyLoop, Score]], golden: Score) -> None:
        loop, score = fits[0]
        limit = LIMIT if golden.first is not None else _SUSPECT
        differ = [step for step, error in golden.errors.items() if not error <= limit]
        explain = (
            f"the loop {loop.does}: replayed that way, the decoder gives what the trace has at all {len(score.errors)} "
            f"steps compared; as it should be, {len(differ)} of them differ, the first at step {differ[0]}"
        )
        others = {f.id: f.does for f, other in reversed(fits) if f.id != loop.id and other.worst_number <= _SUSPECT}
        if others:
            alike = ", or that ".join(f"{does} ({id})" for id, does in others.items())
            explain += f". A loop that {alike} would look the same here"
        if len(differ) < 3 and not golden.numbers:
            explain += ". So few tokens are little to go by, wrong ones (tokens-diverge) give it too: add `logits_top`"
        self._structure.add(differ[0], loop.id, explain, loop.fix)

    def _rows_excused(self) -> bool:
        """Whether every row that differs may: it had ended, or may be padded. One that does not differ must be left."""
        wrong = [row for row in self._rows if self._replay([row]).score().first is not None]
        if len(wrong) == len(self._rows):
            return False
        ended = [row for row in wrong if self._replay([row], until_ended=True).score().first is None]
        if ended:
            self._note(f"rows {ended} are fed one token to the end: taken as rows that had ended")
        if unknown := [row for row in wrong if row not in ended]:
            if self._padding.sure or self._alone.numbers:
                return False
            self._note(
                f"rows {unknown} differ from the golden loop without padding; add `position_ids` or name the padding "
                "token to have them compared"
            )
        return True

    def _diverges(self, golden: Score, first: int) -> None:
        numbers = [step for step, error in golden.numbers.items() if error > LIMIT]
        tokens = golden.tokens
        if not numbers and self._is_sampled(tokens):
            self._note("the logits agree and some tokens are not the likeliest: taken as a sampled run")
            return
        if self._explained(first):
            return
        if not numbers and self._is_prompt(golden):
            self._note(
                f"the token after step {first} is not the likeliest, those after it are: taken as part of the prompt; "
                "add `next_token` to have it compared"
            )
            return
        what = "logits or cache" if first in numbers else "tokens"
        self._structure.add(
            first,
            "tokens-diverge",
            f"step {first}: lengths look right, and the {what} are not those of the golden loop "
            f"({len([e for e in golden.errors.values() if e > LIMIT])} of {len(golden.errors)} steps differ); none of the "
            "known faults gives them",
            "compare what goes into this step with `bento-kv trace`: ids, positions, mask, and `past_sum` by layer",
        )
        if not any(step.logits_top for step in self._trace.steps):
            self._note("if tokens were sampled, trace a greedy run, or add `logits_top`")

    def _is_sampled(self, tokens: Mapping[int, float]) -> bool:
        return any(self._trace.steps[step].logits_top is not None for step in tokens)

    def _explained(self, first: int) -> bool:
        """Adds a finding if the token was chosen at another position of its step, or fed again instead of a choice."""
        step = self._trace.steps[first]
        output = next(output for at, (_, _, output) in enumerate(self._replay(self._rows).outputs()) if at == first)
        choice = next((c for c in self._chosen[first] if c.row in self._rows and _differs(output, step, c)), None)
        if choice is None or step.width == 1:
            return False
        told = step.next_token is not None
        if first == 0 and not told and choice.token == step.input_ids[choice.row][-1]:
            how = (
                f"step 1 feeds the last token of step 0 again ({choice.token}), which the cache holds already, instead "
                "of the token that its logits choose"
            )
            self._structure.add(1, "tokens-diverge", how)
            return True
        logits = output.logits[choice.row]
        errors = [[error for error in chosen_errors(row, choice) if error is not None] for row in logits]
        place = next((at for at, given in enumerate(errors) if max(given) <= LIMIT), None)
        if place is None or len(logits) != step.width or (first and not self._is_decoding(first)):
            return False
        whose = f"what row {choice.row}" if self._trace.rows > 1 else "what the loop"
        how = (
            f"{whose} goes on with after step {first} was chosen after token {place + 1} of the {step.width} that it "
            f"feeds, not after token {choice.at + 1}"
        )
        if first == 0:
            fix = "choose the token from the logits of the last position"
            how += "" if told else ". If that token is still the prompt's, add `next_token` where one is chosen"
            self._structure.add(first, "tokens-diverge", how, fix)
        else:
            how += f": the drafts behind it were rejected, and step {first + 1} feeds a past that still holds them"
            self._structure.add(first + 1, "past-stale", how, "cut the cache behind the last accepted token")
        return True

    def _is_decoding(self, number: int) -> bool:
        """Whether a step is none of the prompt's: after one that fed one token, or that chose one."""
        steps = self._trace.steps[:number]
        return any(step.width == 1 or step.next_token is not None for step in steps)

    def _is_prompt(self, golden: Score) -> bool:
        """Whether what differs may be a prompt that is fed token by token, or whose last chunk has one token."""
        if any(step.next_token is not None for step in self._trace.steps):
            return False
        steps = list(golden.errors)
        wrong = [step for step in steps if step in golden.tokens]
        leading = steps.index(wrong[-1]) + 1
        if self._trace.steps[0].width == 1:
            # Fed token by token, the whole prompt looks like decoding; now and then the likeliest token is its next one.
            return len(wrong) * 2 >= leading and len(steps) - leading >= 3
        return len(wrong) == leading and len(steps) - leading >= max(2, leading)


def _differs(output: GraphOutput, step: TraceStep, choice: Chosen) -> bool:
    """Whether the logits are not those that a row chose from."""
    logits = logits_at(output, step, choice)
    errors = [] if logits is None else chosen_errors(logits, choice)
    return any(error is not None and error > LIMIT for error in errors)

"""The export by running it: a decoder against itself, with its past and without. No reference is needed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bento_kv.doctor.export.appended import not_appended
from bento_kv.doctor.export.causes import causes
from bento_kv.doctor.export.probe import REEXPORT, Probe, cut
from bento_kv.doctor.records import Finding, StepError
from bento_kv.errors import DecoderError
from bento_kv.runtime.graph import GraphOutput, cache_length

# Past and new tokens of the cached steps that are compared with the uncached run.
STEPS = ((5, 1), (1, 1), (2, 1), (3, 1), (7, 1), (11, 1))
CHUNKS = ((5, 3), (1, 2), (2, 7), (7, 3))


def cached_steps(probe: Probe) -> tuple[tuple[int, int], ...]:
    """Past and new tokens of the steps that are compared: chunks too, where the graph takes them."""
    return (*STEPS, *(CHUNKS if probe.chunk else ()))


def check_numbers_are_numbers(probe: Probe) -> list[Finding]:
    """Neither logits nor cache may hold what is not a number, at step 0 or behind a past."""
    runs = [("step 0", probe.full)]
    runs += [(f"{n} tokens behind a past of {held}", probe.step(held, n)) for held, n in cached_steps(probe)]
    for name, output in runs:
        where = not_a_number(output)
        if where:
            return [nan_finding(where, name)]
    return []


def nan_finding(where: str, when: str) -> Finding:
    """Of values in `where` at the step `when`."""
    return Finding(
        id="nan",
        where=f"{where}, {when}",
        explain=f"The {where} of {when} contain values that are not numbers. Every token after it is arbitrary, and "
        "arg-max silently takes the first.",
        fix="In half precision: keep the sums and the softmax in fp32, or export in fp32. Else look for a mask of minus "
        "infinity over a whole row, or a division by a length of 0.",
    )


def not_a_number(output: GraphOutput) -> str:
    """Which of logits, keys and values hold what is not a number; empty if none do."""
    # Minus infinity among logits is how some models forbid a token.
    if np.isnan(output.logits).any() or np.isposinf(output.logits).any():
        return "logits"
    for layer, sides in enumerate(output.present):
        for side, array in zip(("keys", "values"), sides, strict=True):
            if not np.isfinite(np.asarray(array, np.float32)).all():
                return f"{side} of layer {layer}"
    return ""


def check_logits_vary(probe: Probe) -> list[Finding]:
    """Logits differ from token to token, and among the tokens that may follow one."""
    logits = probe.full.logits[0]  # [tokens, vocab_size]
    other = probe.uncached((probe.ids + 1) % probe.vocab_size).logits[0]  # another token in each place
    if not (probe.differ(np.broadcast_to(logits[:1], logits.shape), logits) or probe.differ(other, logits)):
        number = "all zeros" if not logits.any() else "the same numbers"
        explain = f"The logits of {len(logits)} different tokens are {number}: nothing that is fed reaches them."
    elif not probe.differ(np.broadcast_to(logits[:, :1], logits.shape), logits):
        explain = f"The {logits.shape[1]} logits of each token are one number: no token is likelier than another."
    else:
        return []
    return [
        Finding(
            id="logits-constant",
            where="logits",
            explain=explain + " Arg-max gives one token for ever.",
            fix="Run the model that is exported, and look whether its logits vary: weights may be missing from its "
            "checkpoint, or zeros. " + REEXPORT,
        )
    ]


def check_repeatable(probe: Probe) -> list[Finding]:
    """The same step twice gives the same numbers; else nothing can be compared with anything."""
    error = probe.error(probe.uncached(probe.ids).logits, probe.full.logits)
    if error <= probe.limit:
        return []
    return [
        Finding(
            id="numeric-mismatch",
            where="logits, step 0 run twice",
            explain=f"The same {probe.ids.shape[1]} tokens run twice differ by {error:.2g} of the largest logit, limit "
            f"{probe.limit:.0e}: something in the graph is random.",
            fix="Put the model into evaluation mode before the export: model.eval() takes dropout out. " + REEXPORT,
        )
    ]


def check_causal(probe: Probe) -> list[Finding]:
    """Without a past, tokens that come after change nothing: the last one replaced, and fewer of them."""
    other = probe.ids.copy()
    other[:, -1] = (other[:, -1] + 1) % probe.vocab_size
    worst = probe.error(probe.uncached(other).logits[:, :-1], probe.full.logits[:, :-1])
    for n in (1, 5, 8):
        try:
            fewer = probe.uncached(probe.ids[:, :n]).logits
        except DecoderError:
            continue  # sizes that the graph does not take are findings of their own
        worst = max(worst, probe.error(fewer, probe.full.logits[:, :n]))
    if worst <= probe.limit:
        return []
    return [
        Finding(
            id="numeric-mismatch",
            where="step 0, the order of tokens",
            explain="Without a past, logits depend on the tokens that come after, and on how many there are: by "
            f"{worst:.2g} of the largest, limit {probe.limit:.0e}. The graph is not causal. What a token saw of those "
            "behind it when it was computed cannot be repeated later from a cache.",
            fix="The causal mask was lost when it was traced, or a norm or a scale runs over the sequence. " + REEXPORT,
        )
    ]


def check_cached(probe: Probe, names: Sequence[tuple[str, str]]) -> list[Finding]:
    """Cached steps against the uncached run, and, where they differ, why.

    Args:
        probe: of a graph that returns its past with the new positions behind it.
        names: of the present outputs, keys' and values' by layer; the second is empty where one tensor has both.
    """
    worst, where = 0.0, ""
    mismatched = []
    for held, n in cached_steps(probe):
        output = probe.step(held, n)
        last = output.logits.shape[1]
        error = probe.error(output.logits, probe.full.logits[:, held + n - last : held + n])
        if not error <= probe.limit:
            mismatched.append((held, n))
        if not error <= worst:
            worst, where = error, f"{n} tokens behind a past of {held}"
    if not mismatched:
        return _new_positions(probe, names)
    return list(causes(probe, mismatched, names)) or [
        Finding(
            id="numeric-mismatch",
            where=where,
            explain=f"The logits of {where} differ from those of the same tokens computed at once: by {worst:.2g} of "
            f"the largest, limit {probe.limit:.0e}; so do {len(mismatched) - 1} other steps. Past, positions and mask "
            "are taken into account, so something else depends on how the sequence is cut into steps.",
            fix=REEXPORT,
        )
    ]


def _new_positions(probe: Probe, names: Sequence[tuple[str, str]]) -> list[Finding]:
    """What a cached step adds to the cache is what the uncached run has there; its own logits do not show that."""
    for held, n in cached_steps(probe):
        for layer, sides in enumerate(probe.step(held, n).present):
            for side, array in enumerate(sides):
                expected = probe.full.present[layer][side][:, :, held : held + n]
                # Rounding shows more in keys and values than behind the softmax that evens it out.
                if names[layer][side] and not probe.error(array[:, :, held:], expected) <= 5 * probe.limit:
                    what = f"behind a past of {held}, what it holds of the {n} new positions is not what they are"
                    return [not_appended(names[layer][side], what)]
    return []


def measure_steps(probe: Probe, prompt: int = 4) -> tuple[StepError, ...]:
    """Chained steps, each fed what the one before returned, against the uncached run."""
    ids, at, past = probe.ids, 0, probe.graph.empty_cache(1)
    steps: list[StepError] = []
    while at < ids.shape[1]:
        n = prompt if at == 0 else 1
        try:
            output = probe.graph.run(ids[:, at : at + n], past)
        except DecoderError:
            break  # a decoder whose steps do not chain has findings that say so
        expected = cut(probe.full.present, at + n)
        steps.append(
            StepError(
                step=len(steps),
                tokens=n,
                past_length=cache_length(past),
                logits=_number(probe.error(output.logits[:, -1], probe.full.logits[:, at + n - 1])),
                keys=tuple(_number(probe.error(o[0], e[0])) for o, e in zip(output.present, expected, strict=True)),
                values=tuple(_number(probe.error(o[1], e[1])) for o, e in zip(output.present, expected, strict=True)),
            )
        )
        past, at = output.present, at + n
    return tuple(steps)


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None

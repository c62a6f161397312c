"""The export with several rows: each row as if it were alone, padded or not."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bento_kv.doctor.export.causes import positions_matter
from bento_kv.doctor.export.driven import nan_finding
from bento_kv.doctor.export.probe import REEXPORT, Probe, altered, cut, noise
from bento_kv.doctor.records import Finding
from bento_kv.errors import DecoderError
from bento_kv.runtime.graph import GraphOutput, cache_length

ROWS = 3
HELD = 6  # positions of the past that is hidden
PROMPT, SHORT = 8, 5  # of a padded batch: the long row's tokens, and the short one's
_HONOUR = "Apply attention_mask to past and new positions alike, and take position_ids from it. "


def check_rows(probe: Probe) -> list[Finding]:
    """Rows of different tokens in one step 0 against the same alone."""
    ids = probe.tokens(2, ROWS)
    together = probe.uncached(ids)
    for row in range(ROWS):
        alone = probe.uncached(ids[row : row + 1])
        where = _differs(probe, together, alone, row)
        if where:
            other = ids.copy()
            other[[r for r in range(ROWS) if r != row]] = probe.tokens(3, ROWS - 1)
            depends = probe.differ(probe.uncached(other).logits[row], together.logits[row])
            return [_mixed(where, f"Row {row} of {ROWS} at step 0", depends=depends)]
    return []


def check_cached_rows(probe: Probe) -> list[Finding]:
    """Rows of different tokens behind different pasts, against the same alone."""
    ids, held = probe.tokens(2, ROWS), 5
    past = cut(probe.uncached(ids).present, held)
    together = probe.graph.run(ids[:, held : held + 1], past)
    for row in range(ROWS):
        own = [(key[row : row + 1], value[row : row + 1]) for key, value in past]
        where = _differs(probe, together, probe.graph.run(ids[row : row + 1, held : held + 1], own), row)
        if where:
            return [_mixed(where, f"Row {row} of {ROWS} behind a past of {held}", depends=True)]
    return []


def _differs(probe: Probe, together: GraphOutput, alone: GraphOutput, row: int) -> str:
    """Where a row gets something else than alone; empty if nowhere."""
    if not probe.error(together.logits[row], alone.logits[0]) <= probe.limit:
        return f"logits of row {row}"
    for layer, (beside, own) in enumerate(zip(together.present, alone.present, strict=True)):
        for side, both, single in zip(("keys", "values"), beside, own, strict=True):
            if not probe.error(both[row], single[0]) <= 5 * probe.limit:
                return f"present {side} of layer {layer}, row {row}"
    return ""


def _mixed(where: str, which: str, *, depends: bool) -> Finding:
    what = "logits" if where.startswith("logits") else "keys and values"
    cause = "they depend on the rows beside it" if depends else "whatever the other rows hold"
    return Finding(
        id="batch-rows-mixed",
        where=where,
        explain=f"{which} gets other {what} than alone: {cause}. One user's answer changes with another's request.",
        fix="Look for a Reshape or Expand that joins batch with another axis, a mask or positions made for one row, or a "
        "scale that all rows share. " + REEXPORT,
    )


def check_mask(probe: Probe) -> list[Finding]:
    """The attention mask matters, over the past too, and hides what a shorter row is padded with.

    Padded on one side, shorter rows have to be right; a loop needs no more than that.
    """
    if not probe.graph.takes_mask:
        return []
    if any(_sees_hidden(probe, hidden) for hidden in (slice(0, 3), slice(3, HELD))):
        return [_ignored("zeros over the past change nothing")]
    failures = {}
    for side in ("right", "left"):
        try:
            failures[side] = _padded(probe, left=side == "left")
        except DecoderError as error:
            failures[side] = str(error)
    for side, failure in failures.items():
        if failure == _NAN:
            return [nan_finding("logits", f"behind a prompt that is padded on the {side}")]
    if not all(failures.values()):
        return []
    try:
        if not all(_padded(probe, left=left, rows=1) for left in (False, True)):
            return [_mixed("attention_mask", "A short row that is padded beside a long one", depends=True)]
    except DecoderError as error:
        failures["alone"] = str(error)
    said = "; ".join(f"padded on the {side}: {failure}" for side, failure in failures.items())
    if probe.graph.takes_positions and not positions_matter(probe):
        return [_positions_ignored(said)]
    return [_ignored(said)]


def _sees_hidden(probe: Probe, hidden: slice) -> bool:
    """Zeros over some of the past change nothing, and what stands there does: a short window sees neither."""
    mask = np.ones((1, HELD + 1), np.int64)
    mask[0, hidden] = 0

    def other(array: NDArray[np.generic]) -> NDArray[np.generic]:
        changed = array.copy()
        changed[:, :, hidden] = noise(array[:, :, hidden], 0) * 3
        return changed

    own = probe.step(HELD, 1).logits
    ids, past = probe.ids[:, HELD : HELD + 1], probe.past(HELD)
    if probe.differ(probe.graph.run(ids, past, mask=mask).logits, own):
        return False
    return probe.differ(probe.graph.run(ids, altered(past, other)).logits, own)


_NAN = "not a number"


def _padded(probe: Probe, *, left: bool, rows: int = 2) -> str | None:
    """A short row that is padded, behind a long one or alone; step 0 and one cached step. What is wrong, or None."""
    ids = _repeated(probe.ids, 2, PROMPT + 1)
    pad = slice(0, PROMPT - SHORT) if left else slice(SHORT, PROMPT)
    own = slice(PROMPT - SHORT, PROMPT) if left else slice(0, SHORT)
    prompt, mask = ids[:, :PROMPT].copy(), np.ones((2, PROMPT), np.int64)
    prompt[1, own] = ids[0, :SHORT]
    mask[1, pad] = 0
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    token = np.array([ids[0, PROMPT : PROMPT + 1], ids[0, SHORT : SHORT + 1]])
    grown = np.concatenate([mask, np.ones((2, 1), np.int64)], axis=1)
    results = []
    for filler in (1, 2):  # whatever the padding is, it must not matter
        prompt[1, pad] = filler % probe.vocab_size
        of = slice(2 - rows, 2)
        step0 = probe.graph.run(prompt[of], probe.graph.empty_cache(rows), mask=mask[of], positions=positions[of])
        at = np.array([[PROMPT], [SHORT]])[of]
        if cache_length(step0.present) != PROMPT:
            return f"step 0 returns a cache of {cache_length(step0.present)} positions"
        step1 = probe.graph.run(token[of], step0.present, mask=grown[of], positions=at)
        results.append(step1.logits[:, -1])
    if np.isnan(results[0]).any():
        return _NAN
    if not probe.error(results[0][-1], results[1][-1]) <= probe.limit:
        return "the short row's logits depend on the padding"
    if rows == 2 and not probe.error(results[0][0], probe.full.logits[0, PROMPT]) <= probe.limit:
        return "the long row differs from the same alone"
    # Without position ids nobody can say where a row begins that is padded on the left.
    if (probe.graph.takes_positions or not left) and not (
        probe.error(results[0][-1], probe.full.logits[0, SHORT]) <= probe.limit
    ):
        return "the short row differs from the same alone"
    return None


def _positions_ignored(what: str) -> Finding:
    return Finding(
        id="position-ignores-past",
        where="position_ids",
        explain=f"The graph takes position_ids, and they change nothing: {what}. Positions are taken from the columns, so "
        "those of a padded row are wrong.",
        fix="Use the input position_ids as it is. " + REEXPORT,
    )


def _repeated(ids: NDArray[np.int64], rows: int, length: int) -> NDArray[np.int64]:
    """The first `length` tokens of one row, for several rows."""
    return np.repeat(ids[:, :length], rows, axis=0)


def _ignored(what: str) -> Finding:
    return Finding(
        id="mask-ignores-past",
        where="attention_mask",
        explain=f"The attention mask does not do what it is for: {what}. Rows of different lengths cannot share a step.",
        fix=_HONOUR + REEXPORT,
    )

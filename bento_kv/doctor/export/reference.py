"""The decoder against the model that it was exported from."""

from __future__ import annotations

import numpy as np

from bento_kv.contract.precision import PRECISIONS, Precision
from bento_kv.contract.reference import NumericReference
from bento_kv.doctor.export.probe import Probe
from bento_kv.doctor.records import Finding


def check_reference(
    probe: Probe, reference: NumericReference, precision: Precision
) -> tuple[float | None, list[Finding]]:
    """The logits of the probe's tokens, computed at once.

    Returns:
        The largest error over the reference's largest logit, None if it is not finite; and what is wrong with it.
    """
    expected = reference.logits(probe.ids[0].tolist())
    logits, limit = probe.full.logits[0], PRECISIONS[precision].against_reference
    error = probe.error(logits, expected)
    measured = float(error) if np.isfinite(error) else None
    if error <= limit:
        return measured, []
    what = "of another shape" if logits.shape != expected.shape else f"off by {error:.2g} of the largest"
    finding = Finding(
        id="numeric-mismatch",
        where="logits, against the reference",
        explain=f"The logits of {probe.ids.shape[1]} tokens are {what}, limit {limit:.0e}: the graph is not that "
        "model, whatever the loop does.",
        fix="Make sure that the reference is what was exported, its revision too; then export again.",
    )
    return measured, [finding]

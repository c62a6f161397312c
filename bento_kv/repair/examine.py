"""What the doctor says of a graph that is being mended."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from bento_kv.doctor.export.judge import judge_export, judge_first
from bento_kv.doctor.export.loading import Opened, open_graphs
from bento_kv.doctor.records import Finding
from bento_kv.errors import DecoderError
from bento_kv.export.files import data_beside
from bento_kv.repair.axes import Axes
from bento_kv.repair.files import read, write
from bento_kv.repair.weights import carry_weights, find_weights
from bento_kv.runtime.growing import FIRST, WITH_PAST


def open_written(file: Path, origin: Path) -> Opened:
    """Open a graph that was written somewhere else than where its configurations are.

    Args:
        file: as written, weights beside it.
        origin: the file that it was made from; the configurations beside it tell what the graph does not.

    Raises:
        DecoderError: it is no causal decoder's.
    """
    return open_graphs((file,), origin.parent)


def examine(file: Path, origin: Path) -> Sequence[Finding]:
    """What is wrong with a graph, together with the one for step 0 where it is the other of a pair.

    Raises:
        DecoderError: it is no causal decoder's, or nothing tells the heads of its cache.
    """
    if origin.name == WITH_PAST and origin.with_name(FIRST).is_file():
        first = _with_free_axes(origin.with_name(FIRST), file)
        return judge_export(open_graphs((first, file), origin.parent)).diagnosis.findings
    opened = open_written(file, origin)
    interface = opened.interface
    if origin.name == FIRST and interface is not None and interface.has_present and not interface.has_past:
        return judge_first(opened)
    return judge_export(opened).diagnosis.findings


def _with_free_axes(first: Path, beside: Path) -> Path:
    """A pair is mended one by one: what the one for step 0 declares must not count against the other."""
    copy = beside.with_name(f"{beside.name}.first.onnx")
    with suppress(DecoderError):  # what keeps it from being read or run, the doctor says of the file itself
        model = read(first)
        axes = Axes(model)
        if axes.fixed and not copy.exists() and not find_weights(model, first)[1]:
            axes.free()
            carry_weights(model, data_beside(copy))
            write(model, copy)
    return copy if copy.exists() else first

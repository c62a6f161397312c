"""Our own decoders are right, whatever their weights and their cache are stored as."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bento_kv.doctor.diagnose import diagnose
from bento_kv.doctor.export.loading import open_cached


@pytest.fixture(scope="module", params=[("fp32", "int8"), ("int4", "int8")], ids="-".join)
def quantized(request: pytest.FixtureRequest, tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from bento_kv.export.exporter import export

    directory = tmp_path_factory.mktemp("own") / "decoder"
    precision, kv_cache = request.param
    export(str(tiny_source), directory, precision=precision, kv_cache=kv_cache, max_length=64)
    return directory


def test_a_quantized_decoder_has_nothing_to_mend(quantized: Path) -> None:
    """Of two graphs the prompts' has other weights, which is no fault of the loop that serves both."""
    diagnosis = diagnose(quantized)
    assert (diagnosis.export.findings, diagnosis.loop.findings) == ((), ())
    assert diagnosis.scenario == "C"


def test_its_cache_is_driven_as_it_is_stored(quantized: Path) -> None:
    graph, _ = open_cached(quantized, threads=1)
    empty = graph.empty_cache(2)
    assert {side.dtype for layer in empty for side in layer} == {np.dtype(np.int8)}
    present = graph.run(np.array([[5, 6, 7], [8, 9, 10]]), empty).present
    assert {side.dtype for layer in present for side in layer} == {np.dtype(np.int8)}
    assert all(np.abs(side).max() > 0 for layer in present for side in layer)

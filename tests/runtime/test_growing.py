"""Other people's decoders behind the same step: rows of their own, rewound and used again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bento_kv.contract.plan import StepPlan, StepRow
from bento_kv.errors import DecoderError
from bento_kv.runtime.growing import GrowingGraph, graph_files
from bento_kv.runtime.growing_decoder import GrowingDecoder
from tests import layouts

LAYOUTS = {
    "growing": lambda model: model,
    "stacked": layouts.as_stacked,
    "transposed": layouts.as_transposed_keys,
    "time major": layouts.as_time_major,
}


@pytest.fixture(params=LAYOUTS)
def decoder(request: pytest.FixtureRequest, growing_file: Path, tmp_path: Path) -> GrowingDecoder:
    import onnx

    onnx.save(LAYOUTS[request.param](onnx.load(growing_file)), tmp_path / "model.onnx")
    return GrowingDecoder(GrowingGraph.open(tmp_path, threads=1), slots=4, max_length=32, vocab_size=300)


def test_any_split_into_steps_gives_the_same_logits(decoder: GrowingDecoder) -> None:
    ids = np.random.default_rng(0).integers(0, 300, 20).tolist()
    whole = decoder.step(StepPlan([StepRow(0, ids, 0, logits=20)]))
    for sizes in ([1] * 20, [7, 1, 5, 1, 6], [19, 1]):
        at = 0
        for size in sizes:
            logits = decoder.step(StepPlan([StepRow(1, ids[at : at + size], at, logits=size)]))
            np.testing.assert_allclose(logits, whole[at : at + size], rtol=0, atol=1e-4)
            at += size
        for got, expected in zip(decoder.cache.read(1, 20), decoder.cache.read(0, 20), strict=True):
            np.testing.assert_allclose(np.stack(got), np.stack(expected), rtol=0, atol=1e-4)


def test_a_row_alone_and_among_others_is_the_same_to_the_last_bit(decoder: GrowingDecoder) -> None:
    ids = [5, 6, 7, 8]
    alone = [decoder.step(StepPlan([StepRow(0, ids[:3], 0)])), decoder.step(StepPlan([StepRow(0, ids[3:], 3)]))]
    decoder.step(StepPlan([StepRow(3, [9] * 11, 0), StepRow(1, [1, 2], 0)]))
    prompt = decoder.step(StepPlan([StepRow(1, [3, 4, 5], 2), StepRow(2, ids[:3], 0)]))
    token = decoder.step(StepPlan([StepRow(2, ids[3:], 3), StepRow(3, [1], 11)]))
    assert np.array_equal(prompt[1:], alone[0])
    assert np.array_equal(token[:1], alone[1])


def test_rewinding_is_a_smaller_start(decoder: GrowingDecoder) -> None:
    decoder.step(StepPlan([StepRow(0, [1, 2, 3], 0)]))
    first = decoder.step(StepPlan([StepRow(0, [4, 5], 3, logits=2)]))
    decoder.step(StepPlan([StepRow(0, [99, 98, 97], 3)]))
    assert np.array_equal(decoder.step(StepPlan([StepRow(0, [4, 5], 3, logits=2)])), first)


def test_a_plan_that_cannot_be_is_refused(decoder: GrowingDecoder) -> None:
    with pytest.raises(DecoderError, match="only 0 positions were ever written"):
        decoder.step(StepPlan([StepRow(0, [1], 5)]))
    with pytest.raises(DecoderError, match="do not fit in 32 positions"):
        decoder.step(StepPlan([StepRow(0, [1] * 33, 0)]))


def test_two_graphs_and_two_merged_into_one_are_driven_alike(growing_file: Path, tmp_path: Path) -> None:
    import onnx

    model = onnx.load(growing_file)
    first, later = layouts.as_two_files(model)
    onnx.save(first, tmp_path / "decoder_model.onnx")
    onnx.save(later, tmp_path / "decoder_with_past_model.onnx")
    assert [file.name for file in graph_files(tmp_path)] == ["decoder_model.onnx", "decoder_with_past_model.onnx"]
    merged = tmp_path / "merged" / "decoder_model_merged.onnx"
    merged.parent.mkdir()
    onnx.save(layouts.as_merged(model), merged)
    ids = [5, 6, 7, 8, 9, 10]
    whole = GrowingGraph.open(growing_file).run(np.array([ids]), GrowingGraph.open(growing_file).empty_cache(1))
    for target in (tmp_path, merged):
        decoder = GrowingDecoder(GrowingGraph.open(target), slots=1, max_length=32, vocab_size=300)
        decoder.step(StepPlan([StepRow(0, ids[:2], 0)]))
        logits = decoder.step(StepPlan([StepRow(0, ids[2:], 2, logits=4)]))  # one token a run behind a past
        np.testing.assert_allclose(logits, whole.logits[0, 2:], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["model.onnx"], ["model.onnx"]),
        (["anything.onnx"], ["anything.onnx"]),
        (["decoder_model.onnx", "decoder_with_past_model.onnx"], ["decoder_model.onnx", "decoder_with_past_model.onnx"]),
        (["decoder_model.onnx", "decoder_with_past_model.onnx", "decoder_model_merged.onnx"], ["decoder_model_merged.onnx"]),
        (["model.onnx", "model_quantized.onnx"], ["model.onnx"]),
        (["onnx/model.onnx"], ["model.onnx"]),
    ],
)  # fmt: skip
def test_the_graphs_of_a_directory(names: list[str], chosen: list[str], tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [file.name for file in graph_files(tmp_path)] == chosen


def test_a_directory_that_does_not_say_which_graph_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DecoderError, match="no ONNX file"):
        graph_files(tmp_path)
    for name in ("a.onnx", "b.onnx"):
        (tmp_path / name).touch()
    with pytest.raises(DecoderError, match="2 ONNX files"):
        graph_files(tmp_path)
    (tmp_path / "genai_config.json").write_text('{"model": {"decoder": {"filename": "c.onnx"}}}')
    with pytest.raises(DecoderError, match=r"c\.onnx, which is not there"):
        graph_files(tmp_path)

"""Another exporter's decoder, proven and served like our own."""

from __future__ import annotations

import asyncio
import json
import shutil
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from transformers import AutoModelForCausalLM

from bento_kv import EngineConfig, OnnxDecoderRunnable, save_model
from bento_kv.contract.verification import check_proof
from bento_kv.errors import DecoderError, ExportError, IntegrityError, VerificationError
from bento_kv.proof.parity import TorchReference
from bento_kv.proof.proof import prove
from bento_kv.repair.adopt import adopt
from tests import layouts


@pytest.fixture(scope="session")
def _adopted(growing_file: Path, tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("adopted") / "tiny"
    directory.mkdir()
    shutil.copyfile(growing_file, directory / "model.onnx")
    adopt(directory, str(tiny_source))
    record = prove(directory, lambda manifest: TorchReference(str(tiny_source), manifest))
    assert record.passed, [check for check in (*record.export.checks, *record.loop.checks) if not check.passed]
    return directory


@pytest.fixture
def adopted(_adopted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(_adopted, tmp_path / "tiny"))


def test_greedy_tokens_are_transformers_tokens_together_as_alone(tiny_source: Path, adopted: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_source, dtype=torch.float32)
    prompts = [[5], [7, 8, 9], list(range(40)), [3, 1, 4, 1, 5]]

    async def answer(runnable: OnnxDecoderRunnable, prompt: list[int]) -> list[int]:
        params = replace(runnable.defaults, max_tokens=20)
        return [token async for output in runnable.generate(prompt, params) for token in output.token_ids]

    async def together(runnable: OnnxDecoderRunnable) -> list[list[int]]:
        return await asyncio.gather(*(answer(runnable, prompt) for prompt in prompts))

    runnable = OnnxDecoderRunnable(adopted, EngineConfig(slots=3))
    answers = asyncio.run(together(runnable))
    runnable.close()
    for prompt, tokens in zip(prompts, answers, strict=True):
        expected = model.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False, pad_token_id=258)
        assert tokens == expected[0, len(prompt) :].tolist()


def test_it_goes_into_the_model_store(adopted: Path) -> None:
    model = save_model("adopted-tiny", adopted)
    assert json.loads((Path(model.path) / "manifest.json").read_text())["layout"] == "growing"
    check_proof(Path(model.path))


def test_what_was_changed_after_the_proof_is_refused(adopted: Path) -> None:
    with (adopted / "model.onnx").open("r+b") as file:
        file.seek(-9, 2)
        file.write(b"\x01")
    with pytest.raises(IntegrityError, match=r"model\.onnx was changed"):
        OnnxDecoderRunnable(adopted)


def test_full_exactness_is_the_in_place_layouts(adopted: Path) -> None:
    with pytest.raises(DecoderError, match="in-place layout"):
        OnnxDecoderRunnable(adopted, EngineConfig(exact="full"))


def test_guesses_are_checked_in_the_in_place_layout(adopted: Path) -> None:
    with pytest.raises(DecoderError, match="speculation takes the in-place layout"):
        OnnxDecoderRunnable(adopted, EngineConfig(speculation=4))


def test_a_faulty_graph_is_not_proven(growing_file: Path, tiny_source: Path, tmp_path: Path) -> None:
    model = onnx.load(growing_file)
    swapped = {"present.0.key": "present.1.key", "present.1.key": "present.0.key"}
    for node in model.graph.node:
        node.output[:] = [swapped.get(name, name) for name in node.output]
        node.input[:] = [swapped.get(name, name) for name in node.input]
    onnx.save(model, tmp_path / "model.onnx")
    adopt(tmp_path, str(tiny_source))
    record = prove(tmp_path, lambda manifest: TorchReference(str(tiny_source), manifest))
    assert not record.passed
    failed = {check.id for check in record.export.checks if not check.passed}
    assert "past-present-unpaired" in failed
    with pytest.raises(VerificationError, match="past-present-unpaired"):
        OnnxDecoderRunnable(tmp_path)


def test_two_graphs_are_proven_and_served(growing_file: Path, tiny_source: Path, tmp_path: Path) -> None:
    first, later = layouts.as_two_files(onnx.load(growing_file))
    onnx.save(first, tmp_path / "decoder_model.onnx")
    onnx.save(later, tmp_path / "decoder_with_past_model.onnx")
    assert adopt(tmp_path, str(tiny_source)).graphs == ("decoder_model.onnx", "decoder_with_past_model.onnx")
    record = prove(tmp_path, lambda manifest: TorchReference(str(tiny_source), manifest))
    assert record.passed, [check for check in (*record.export.checks, *record.loop.checks) if not check.passed]
    runnable = OnnxDecoderRunnable(tmp_path, EngineConfig(slots=2))
    assert asyncio.run(runnable.complete([5, 6, 7], replace(runnable.defaults, max_tokens=4)))
    runnable.close()


def test_weights_of_fewer_bits_are_not_adopted_yet(growing_file: Path, tiny_source: Path, tmp_path: Path) -> None:
    onnx.save(layouts.as_fp16(onnx.load(growing_file)), tmp_path / "model.onnx")
    with pytest.raises(ExportError, match="fp16 weights"):
        adopt(tmp_path, str(tiny_source))

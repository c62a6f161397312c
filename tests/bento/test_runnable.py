"""The runnable in a program of one's own: streams, whole answers, defaults, the end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from bento_kv import EngineConfig, OnnxDecoderRunnable
from bento_kv.bento.runnable import _names
from bento_kv.contract.manifest import Manifest, Source
from bento_kv.contract.plan import StepPlan
from bento_kv.engine.deadlines import Deadlines
from bento_kv.engine.request import Request, SamplingParams, StepOutput
from bento_kv.errors import (
    ContextLengthError,
    DecoderError,
    EngineClosedError,
    ManifestError,
    OutOfTimeError,
    RequestError,
)
from bento_kv.runtime.decoder import OnnxDecoder
from bento_kv.runtime.open import open_decoder
from bento_kv.text.defaults import read_defaults


def _read(runnable: OnnxDecoderRunnable, prompt: list[int], **changes: object) -> list[StepOutput]:
    async def read() -> list[StepOutput]:
        params = replace(runnable.defaults, **changes)  # type: ignore[arg-type]
        return [output async for output in runnable.generate(prompt, params)]

    return asyncio.run(read())


@pytest.mark.parametrize("exact", ["batch", "full"])
def test_greedy_tokens_are_transformers_tokens(exact: str, tiny_source: Path, tiny_decoder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_source, dtype=torch.float32)
    runnable = OnnxDecoderRunnable(tiny_decoder, EngineConfig(slots=2, exact=exact))  # type: ignore[arg-type]
    prompts = [[5], [7, 8, 9], list(range(40))]
    for prompt in prompts:
        expected = model.generate(torch.tensor([prompt]), max_new_tokens=30, do_sample=False, pad_token_id=258)
        outputs = _read(runnable, prompt, max_tokens=30)
        assert [token for output in outputs for token in output.token_ids] == expected[0, len(prompt) :].tolist()
    runnable.close()


@pytest.mark.parametrize(
    ("options", "model_id", "names"),
    [
        ({}, "tiny", {"tiny"}),
        ({"model_id": "ours"}, "ours", {"ours", "tiny"}),
        ({"aliases": ["org/other"]}, "tiny", {"tiny", "org/other", "other"}),
        ({"aliases": ["/some/where/else", "./here", ""]}, "tiny", {"tiny", "else", "here"}),
    ],
)
def test_what_a_model_is_called(
    options: dict[str, Any], model_id: str, names: set[str], tiny_source: Path, tiny_decoder: Path
) -> None:
    called = {"tiny": tiny_source.name}
    runnable = OnnxDecoderRunnable(tiny_decoder, EngineConfig(slots=2), **options)
    runnable.close()
    assert runnable.model_id == called.get(model_id, model_id)
    assert runnable.model_names == {tiny_decoder.name, *(called.get(name, name) for name in names)}


def test_a_hub_id_and_its_folder_are_names_of_a_model() -> None:
    source = Source(id="org/model-1b", revision="abc", weights_sha256="0" * 64)
    assert _names("org/model-1b", source, ["tag:v1"]) == {"org/model-1b", "model-1b", "tag:v1"}


def test_complete_is_the_stream_joined_and_methods_are_runnable_methods(tiny_decoder: Path) -> None:
    runnable = OnnxDecoderRunnable(tiny_decoder, EngineConfig(slots=2))
    params = replace(runnable.defaults, max_tokens=20)
    whole = asyncio.run(runnable.complete("Hello", params))
    outputs = _read(runnable, runnable.tokenizer.encode_prompt("Hello"), max_tokens=20)
    assert "".join(output.text for output in outputs) == whole
    assert [output.finish_reason for output in outputs[:-1]] == [None] * (len(outputs) - 1)
    assert outputs[-1].finish_reason in ("stop", "length")
    methods = OnnxDecoderRunnable.bentoml_runnable_methods__
    assert methods is not None
    assert {name: method.config.is_stream for name, method in methods.items()} == {"generate": True, "complete": False}
    runnable.close()


def test_the_context_ends_an_answer_and_a_prompt_without_room_is_refused(tiny_decoder: Path) -> None:
    runnable = OnnxDecoderRunnable(tiny_decoder, EngineConfig(slots=1, max_length=32))
    outputs = _read(runnable, [1] * 20, stop_token_ids=frozenset())
    assert sum(len(output.token_ids) for output in outputs) == 12
    assert outputs[-1].finish_reason == "length"
    with pytest.raises(ContextLengthError, match=r"32.*"):
        _read(runnable, [1] * 32)
    runnable.close()


def test_the_kv_cache_is_as_large_as_there_is_memory_for(tiny_decoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def runnable(**config: int) -> OnnxDecoderRunnable:
        made = OnnxDecoderRunnable(tiny_decoder, EngineConfig(slots=2, max_length=64, **config))
        made.close()
        return made

    assert runnable().engine.stats().kv_tokens_total == 2 * 64
    assert runnable(kv_tokens=70).engine.stats().kv_tokens_total == 70
    token_bytes = open_decoder(tiny_decoder, slots=1).cache.token_bytes
    monkeypatch.setattr("bento_kv.bento.runnable.available_memory", lambda: 50 * token_bytes)
    small = runnable()
    assert small.engine.stats().kv_tokens_total == small.max_length == 40
    with pytest.raises(ContextLengthError, match="40 tokens, which is what this server has memory for"):
        small.engine.submit(Request(id="r", prompt_ids=(1,) * 45, params=SamplingParams(), emit=lambda output: None))
    monkeypatch.setattr("bento_kv.bento.runnable.available_memory", lambda: token_bytes)
    with pytest.raises(DecoderError, match="no room for a KV cache"):
        runnable()


def test_deadlines_hold_in_python_as_over_http(tiny_decoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = OnnxDecoder.step

    def slow_step(decoder: OnnxDecoder, plan: StepPlan) -> Any:
        time.sleep(0.02)
        return step(decoder, plan)

    monkeypatch.setattr(OnnxDecoder, "step", slow_step)
    runnable = OnnxDecoderRunnable(tiny_decoder, EngineConfig(slots=1, max_seconds=60))
    endless = replace(runnable.defaults, stop_token_ids=frozenset())

    async def cut() -> StepOutput:
        outputs = [output async for output in runnable.generate([1, 2], endless, max_time=1)]
        assert sum(len(output.token_ids) for output in outputs) >= 1
        return outputs[-1]

    async def wait_in_vain() -> None:
        async with contextlib.aclosing(runnable.generate([1, 2], endless)) as taking:
            await anext(taking)
            await runnable.complete([3], max_queue_time=1e-3)

    last = asyncio.run(cut())
    assert (last.finish_reason, last.timeout) == ("length", "total")
    with pytest.raises(OutOfTimeError, match="waited for a free slot") as caught:
        asyncio.run(wait_in_vain())
    assert caught.value.code == "queue_timeout"
    with pytest.raises(RequestError, match="at most 60 seconds"):
        asyncio.run(runnable.complete([1], max_time=61))
    runnable.close()


def test_a_submission_is_what_was_asked_for(tiny_decoder: Path) -> None:
    runnable = OnnxDecoderRunnable(tiny_decoder, EngineConfig(slots=1))
    params = replace(runnable.defaults, max_tokens=3)
    asked = runnable.submission([1, 2], params, priority=-1, cache_salt="mine", max_time=5.0)
    assert (asked.prompt_ids, asked.params, asked.priority, asked.cache_salt) == ((1, 2), params, -1, "mine")
    assert asked.deadlines == Deadlines(max_time=5.0)
    assert runnable.submission([1]).id != runnable.submission([1]).id
    runnable.close()


def test_after_close_requests_are_refused(tiny_decoder: Path) -> None:
    runnable = OnnxDecoderRunnable(tiny_decoder, EngineConfig(slots=1))
    runnable.close()
    runnable.close()
    with pytest.raises(EngineClosedError):
        _read(runnable, [1, 2])


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, (0.0, 0, 1.0, 1.0)),
        ({"temperature": 0.7, "top_p": 0.8}, (0.0, 0, 1.0, 1.0)),
        ({"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8}, (0.7, 20, 0.8, 1.0)),
        ({"do_sample": True, "top_k": 0, "repetition_penalty": 1.1}, (1.0, 0, 1.0, 1.1)),
        ({"do_sample": True}, (1.0, 50, 1.0, 1.0)),
    ],
)
def test_defaults_are_the_models_own(
    config: dict[str, object], expected: tuple[float, ...], tiny_decoder: Path
) -> None:
    (tiny_decoder / "generation_config.json").write_text(json.dumps(config))
    defaults = read_defaults(tiny_decoder, Manifest.read(tiny_decoder))
    assert (defaults.temperature, defaults.top_k, defaults.top_p, defaults.repetition_penalty) == expected
    assert defaults.stop_token_ids == {257}


def test_defaults_that_are_no_numbers(tiny_decoder: Path) -> None:
    (tiny_decoder / "generation_config.json").write_text('{"do_sample": true, "temperature": "warm"}')
    with pytest.raises(ManifestError, match=r"no number where one is wanted.*warm"):
        read_defaults(tiny_decoder, Manifest.read(tiny_decoder))


def test_defaults_that_cannot_be_read(tiny_decoder: Path) -> None:
    (tiny_decoder / "generation_config.json").write_text("{")
    with pytest.raises(ManifestError, match=r"generation_config\.json is not JSON.*copy it again"):
        read_defaults(tiny_decoder, Manifest.read(tiny_decoder))


def test_execution_providers_reach_the_runtime(tiny_decoder: Path) -> None:
    with pytest.raises(DecoderError, match="NoSuchProvider is not in the installed onnxruntime"):
        OnnxDecoderRunnable(tiny_decoder, EngineConfig(slots=2), providers=["NoSuchProvider"])
    runnable = OnnxDecoderRunnable(tiny_decoder, EngineConfig(slots=2), providers=["CPUExecutionProvider"])
    assert _read(runnable, [5], max_tokens=1)
    runnable.close()

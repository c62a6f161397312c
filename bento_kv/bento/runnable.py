"""The BentoML runnable: a proven decoder, its tokenizer and an engine, in one object."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, Unpack

import bentoml
from bentoml.legacy import Runnable

from bento_kv.bento.drain import Drain
from bento_kv.bento.store import get, locate
from bento_kv.bento.tracing import RequestSpans, bentoml_tracer
from bento_kv.contract.decoder import Decoder
from bento_kv.contract.manifest import Source
from bento_kv.contract.verification import check_proof
from bento_kv.engine.config import EngineConfig
from bento_kv.engine.engine import Engine
from bento_kv.engine.event_log import EventLog
from bento_kv.engine.events import Recorder
from bento_kv.engine.observer import Observer
from bento_kv.engine.request import RequestOptions, SamplingParams, StepOutput, Submission
from bento_kv.engine.stream import TokenStream
from bento_kv.engine.threads import in_thread
from bento_kv.errors import DecoderError
from bento_kv.host import available_cpus, available_memory
from bento_kv.runtime.golden import replay_golden
from bento_kv.runtime.open import open_decoder
from bento_kv.text.defaults import read_defaults
from bento_kv.text.tokenizer import Tokenizer

_KV_SHARE = 0.8  # of the memory that is free once the model is loaded; steps and requests need some, too

Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]]


class OnnxDecoderRunnable(Runnable):
    """Serves one decoder. What it serves is what was proven: it checks before it takes the first request.

    The files' hashes and the proof are checked, then the golden prompts are replayed with the settings and on the
    machine that serve; only then does the engine start.

    Args:
        decoder: a stored model (what a `VerifiedDecoder` attribute gives), a store tag, or a decoder directory.
        config: limits and exactness.
        model_id: the name of the model in every answer; the source's hub id or folder name unless given. Clients may use
            the hub id and the folder's name in any case.
        aliases: what else the model is known by: a hub id, a store tag, or a directory, of which the last name counts.
        parse_special_tokens: whether control tokens that a message spells out are control tokens, and not text.
        observer: makes the engine's observer, given the verification record.
        event_log: a file to append a line of JSON to for each event of each request.
        workers: how many processes like this one share the machine and what `config` allows; each takes its part.
        providers: onnxruntime's execution providers, in order of preference; the CPU's unless set.

    Raises:
        SourceError, ManifestError: there is no such decoder.
        IntegrityError, VerificationError: its proof does not hold here.
        DecoderError: the runtime refuses it.
        OSError: the event log cannot be opened.
    """

    SUPPORTED_RESOURCES = ("cpu",)
    SUPPORTS_CPU_MULTI_THREADING = True

    def __init__(
        self,
        decoder: bentoml.Model | str | Path,
        config: EngineConfig | None = None,
        *,
        model_id: str | None = None,
        aliases: Sequence[str] = (),
        parse_special_tokens: bool = False,
        observer: Callable[[Mapping[str, Any]], Observer] | None = None,
        event_log: Path | None = None,
        workers: int = 1,
        providers: Sequence[str] | None = None,
    ) -> None:
        self.config = (config or EngineConfig()).share(workers, available_cpus())
        self.directory = locate(decoder)
        self.manifest, record = check_proof(self.directory)
        self.verification: Mapping[str, Any] = record.model_dump(mode="json", by_alias=True)
        self.model_id = model_id or _public_name(self.manifest.source)
        places = [*aliases, *([str(decoder)] if isinstance(decoder, str | Path) else [])]
        self.model_names = _names(self.model_id, self.manifest.source, places)
        self.created = int(datetime.fromisoformat(self.manifest.created).timestamp())
        if self.config.speculation and self.manifest.layout != "in-place":
            raise DecoderError(
                f"{self.directory} has a growing cache, which gives no logits for checking guesses: speculation takes the "
                "in-place layout, which `bento-kv export` makes; or set speculation=0"
            )
        self.tokenizer = Tokenizer(self.directory, parse_special_tokens=parse_special_tokens)
        self.defaults = read_defaults(self.directory, self.manifest)
        onnx_decoder = open_decoder(
            self.directory,
            slots=self.config.slots,
            max_length=self.config.max_length,
            exact=self.config.exact,
            threads=self.config.threads,
            providers=providers,
        )
        replay_golden(onnx_decoder, record)
        watcher = observer(self.verification) if observer is not None else None
        if self.config.kv_tokens is None:
            self.config = replace(self.config, kv_tokens=_kv_tokens(onnx_decoder, workers))
        recorders = self._recorders(event_log)
        self.engine = Engine(onnx_decoder, self.tokenizer.decode, self.config, watcher, recorders)
        self.engine.start()

    def _recorders(self, event_log: Path | None) -> list[Recorder]:
        recorders: list[Recorder] = [] if event_log is None else [EventLog(event_log)]
        if (tracer := bentoml_tracer()) is not None:
            recorders.append(RequestSpans(tracer, self.model_id))
        return recorders

    @property
    def max_length(self) -> int:
        """Positions of the context, prompt and answer together."""
        return self.engine.max_length

    @property
    def vocab_size(self) -> int:
        """Token ids are below it."""
        return self.manifest.vocab_size

    def submission(
        self, prompt: Prompt, params: SamplingParams | None = None, **options: Unpack[RequestOptions]
    ) -> Submission:
        """What the engine is asked for.

        Args:
            prompt: a text (what a user says, if the model has a chat template), chat messages, or token ids.
            params: how to choose tokens; the model's own defaults unless given. The model's end-of-sequence ids end an
                answer in any case that `stop_token_ids` names them, as the defaults do.
            options: `priority`: lower is more urgent. `cache_salt`: cached prefixes are shared with requests of the same
                salt only. `client`: whose it is; clients take turns. `max_queue_time`, `max_time`: seconds to the first
                step, and to the end of the answer.

        Raises:
            RequestError: the prompt cannot be encoded, or is too long for certain.
        """
        ids = self.tokenizer.encode_prompt(prompt, room=self.max_length - 1)
        return Submission.of(ids, params or self.defaults, **options)

    @Runnable.method
    async def generate(
        self, prompt: Prompt, params: SamplingParams | None = None, **options: Unpack[RequestOptions]
    ) -> AsyncGenerator[StepOutput, None]:
        """Answer token by token; arguments as `submission`.

        Yields:
            Events; the last has a finish reason.

        Raises:
            RequestError, QueueFullError, EngineClosedError: the request is not accepted.
        """
        submission = await in_thread(self.submission, prompt, params, **options)
        async with TokenStream(self.engine, submission) as stream:
            async for output in stream:
                yield output

    async def stream_text(
        self, prompt: Prompt, params: SamplingParams | None = None, **options: Unpack[RequestOptions]
    ) -> AsyncGenerator[str, None]:
        """The answer's text, piece by piece; arguments and errors as `generate`.

        Raises:
            DecoderError: it failed on the way.
            OutOfTimeError: it was not begun in the time that it has.
            EngineClosedError: the engine shut down before its end.
        """
        async with contextlib.aclosing(self.generate(prompt, params, **options)) as outputs:
            async for output in outputs:
                if output.text:
                    yield output.text
                if output.failure is not None:
                    raise output.failure

    @Runnable.method
    async def complete(
        self, prompt: Prompt, params: SamplingParams | None = None, **options: Unpack[RequestOptions]
    ) -> str:
        """The whole answer as text; arguments and errors as `stream_text`."""
        return "".join([text async for text in self.stream_text(prompt, params, **options)])

    def close(self, *, timeout: float | None = None) -> None:
        """Refuse new requests, let the accepted ones finish for `timeout` seconds, stop the engine."""
        self.engine.close(drain=True, timeout=timeout)

    def drain_on_sigterm(self, *, timeout: float) -> None:
        """From now on, at SIGTERM or SIGINT: `close(timeout=timeout)`, and the server that runs here stops only then. In the
        meantime it is not ready, and answers new requests with 503. SIGINT while that goes on ends the process at
        once. To be called in the main thread, once the server runs.

        Raises:
            ValueError: this is not the main thread.
        """
        Drain(self.engine, timeout=timeout).install()


def load_model(tag: str | bentoml.Tag | bentoml.Model, **options: Any) -> OnnxDecoderRunnable:
    """A runnable around a stored decoder, its proof checked on this machine.

    Args:
        tag: of the stored decoder, or the model itself.
        options: as `OnnxDecoderRunnable` takes them.
    """
    return OnnxDecoderRunnable(tag if isinstance(tag, bentoml.Model) else get(tag), **options)


def _kv_tokens(decoder: Decoder, workers: int) -> int:
    """Positions of the KV cache that there is memory for in one of so many processes, those of all slots at most.

    Raises:
        DecoderError: there is none to speak of.
    """
    free = available_memory() / workers
    tokens = int(_KV_SHARE * free) // decoder.cache.token_bytes
    if tokens < 2:
        raise DecoderError(
            f"{free / 2**20:.0f} MiB of memory are free, which is no room for a KV cache of "
            f"{decoder.cache.token_bytes / 2**10:.0f} KiB a token; free some, or take a smaller model"
        )
    return min(tokens, decoder.slots * decoder.max_length)


def _names(model_id: str, source: Source, places: Sequence[str]) -> frozenset[str]:
    """What clients may call a model: its id, its source's hub id, and the folder names of its source and of `places`.

    No path is a name: where something stands is nobody's business.
    """
    public = [_public_name(source), *(place for place in places if not _is_path(place))]
    return frozenset({model_id, *public, *(Path(name).name for name in (*public, *places))} - {""})


def _is_path(place: str) -> bool:
    return place.startswith(("/", ".", "~")) or place.count("/") > 1 or Path(place).is_dir()


def _public_name(source: Source) -> str:
    """A hub id as it is; of a directory its name, because where it stands is nobody's business."""
    return source.id if source.revision is not None else Path(source.id).name

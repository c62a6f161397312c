"""The command line, `bento-kv`. Heavy parts are imported by the command that needs them.

Exit codes: 0 success; 1 the thing checked is not right; 2 it could not be done.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bento_kv import __version__
from bento_kv.errors import BentoKVError, DecoderError, IntegrityError, ManifestError, VerificationError, first_line
from bento_kv.source import hide_progress_bars

if TYPE_CHECKING:
    from bento_kv.plan import Exactness
    from bento_kv.repair.records import Repair
    from bento_kv.verify.diagnosis.records import Diagnosis
    from bento_kv.verify.reference import NumericReference

NOT_RIGHT = 1
NOT_DONE = 2


class _Group(click.Group):
    """Turns our errors into a sentence on stderr and an exit code; `--debug` lets them through."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BentoKVError as error:
            if ctx.params.get("debug"):
                raise
            click.echo(f"Error: {error}", err=True)
            ctx.exit(NOT_RIGHT if isinstance(error, VerificationError | IntegrityError) else NOT_DONE)
        except ModuleNotFoundError as error:
            if ctx.params.get("debug") or error.name not in (
                "torch",
                "onnx",
                "onnxscript",
                "onnx_ir",
                "rich",
                "safetensors",
                "transformers",
            ):
                raise
            click.echo(f"Error: this needs {error.name}: pip install 'bento-kv[export]'", err=True)
            ctx.exit(NOT_DONE)
        except KeyboardInterrupt:
            click.echo("Interrupted", err=True)
            ctx.exit(130)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except Exception as error:
            if ctx.params.get("debug"):
                raise
            click.echo(f"Error: {type(error).__name__}: {first_line(error)} (--debug shows where)", err=True)
            ctx.exit(NOT_DONE)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="bento-kv")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def main(debug: bool) -> None:  # `debug` is read where errors are caught
    """Export, prove and serve language models from ONNX on BentoML."""
    hide_progress_bars()
    # As an exception, so that what is half done is cleaned up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def _as_json(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")(function)


@main.command()
@click.argument("source")
@click.option("-o", "--output", "directory", required=True, type=click.Path(path_type=Path), help="Directory to write.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "int8", "int4"]),
    default="fp32",
    show_default=True,
    help="Of the weights.",
)
@click.option(
    "--kv-cache", type=click.Choice(["fp32", "int8"]), default="fp32", show_default=True, help="Of the cache."
)
@click.option("--max-length", type=int, help="Positions of a slot; the model's own limit unless set.")
@click.option("--opset", type=int, help="ONNX opset of the graph.")
@click.option("--force", is_flag=True, help="Replace the decoder that is there.")
@_as_json
def export(source: str, directory: Path, force: bool, as_json: bool, **options: Any) -> None:
    """Export SOURCE, a Hugging Face directory or hub id or `demo`, to a decoder directory."""
    from bento_kv.export.exporter import export as run

    given = {name: value for name, value in options.items() if value is not None}
    manifest = run(source, directory, force=force, progress=_progress, **given)
    if as_json:
        click.echo(json.dumps(manifest.model_dump(mode="json", by_alias=True)))
    else:
        click.echo(
            f"{directory}: {manifest.architecture}, {len(manifest.layers)} layers, {manifest.max_length} positions"
        )
        click.echo(f"Not proven yet: bento-kv verify {directory}")


@main.command()
@click.argument("target")
@click.option("--reference", help="Where the original weights are; what the manifest names unless given.")
@click.option("--html", type=click.Path(dir_okay=False, writable=True, path_type=Path), help="Also write a page.")
@click.option("--threads", type=click.IntRange(min=1), help="Of the model; as many as there are CPUs unless set.")
@click.option(
    "--max-length",
    type=click.IntRange(min=1),
    help="Positions of another exporter's decoder; the model's own limit unless set.",
)
@_as_json
def verify(
    target: str, reference: str | None, html: Path | None, threads: int | None, max_length: int | None, as_json: bool
) -> None:
    """Prove TARGET, a decoder directory or a model store tag, and write its verification.json.

    TARGET may be another exporter's directory too; with --reference, what it was exported from, it gets a manifest.json.
    """
    from bento_kv.manifest import MANIFEST_FILE, Manifest
    from bento_kv.store import locate
    from bento_kv.verify.parity import TorchReference
    from bento_kv.verify.proof import prove
    from bento_kv.verify.report import render, render_html

    directory = locate(target)
    if not (directory / MANIFEST_FILE).is_file():
        _adopt(directory, reference, max_length)
    elif max_length is not None:
        raise click.BadParameter(
            f"{directory / MANIFEST_FILE} says it already; remove that file to have it written again",
            param_hint="--max-length",
        )
    record = prove(
        directory,
        lambda manifest: TorchReference(reference or manifest.source.id, manifest),
        threads=threads,
        progress=_progress,
    )
    click.echo(record.model_dump_json(by_alias=True) if as_json else render(record), nl=as_json)
    if html is not None:
        _write_page(html, render_html(record, Manifest.read(directory)))
    if not record.passed:
        raise SystemExit(NOT_RIGHT)


def _adopt(directory: Path, reference: str | None, max_length: int | None) -> None:
    from bento_kv.adopt import adopt

    if reference is None:
        raise ManifestError(
            f"{directory} has no manifest.json, so it is not of `bento-kv export`. To prove another exporter's decoder, "
            "say what it was exported from: --reference SOURCE"
        )
    manifest = adopt(directory, reference, max_length=max_length)
    click.echo(f"{directory}: {manifest.architecture}, a growing cache; manifest.json written", err=True)


@main.command()
@click.argument("target")
@click.option("--reference", help="The model it was exported from: a Hugging Face directory, a hub id, or `demo`.")
@click.option(
    "--trace",
    "trace_file",
    type=click.Path(dir_okay=False, allow_dash=True),
    help="Step trace of the loop; - is stdin.",
)
@click.option("--pad-token-id", type=int, help="What shorter rows of the trace are filled up with.")
@click.option("--html", type=click.Path(dir_okay=False, writable=True, path_type=Path), help="Also write a page.")
@click.option("--threads", type=click.IntRange(min=1), help="Of the model; as many as there are CPUs unless set.")
@_as_json
def doctor(
    target: str,
    reference: str | None,
    trace_file: str | None,
    html: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Which layer of TARGET is wrong, its export or its loop, and what to do first.

    TARGET is any decoder: an ONNX file or a directory, of whatever exporter, or a model store tag. Without --trace the
    loop judged is bento_kv's own. docs/traces.md says how to print a trace from any language.
    """
    from bento_kv.store import locate_decoder
    from bento_kv.verify.diagnosis.doctor import diagnose
    from bento_kv.verify.diagnosis.page import render_html
    from bento_kv.verify.diagnosis.present import render_for
    from bento_kv.verify.diagnosis.trace import read_trace

    diagnosis = diagnose(
        locate_decoder(target),
        reference=_torch_model(reference),
        reference_name=reference,
        trace=None if trace_file is None else read_trace(sys.stdin if trace_file == "-" else trace_file),
        trace_name=trace_file,
        progress=_progress,
        **options,
    )
    if as_json:
        click.echo(diagnosis.model_dump_json(by_alias=True))
    else:
        click.echo(render_for(diagnosis, sys.stdout), nl=False)
    if html is not None:
        _write_page(html, render_html(diagnosis))
    if diagnosis.plan:
        raise SystemExit(NOT_RIGHT)


@main.command()
@click.argument("target")
@click.option("--prompt-ids", required=True, help="Token ids, with commas: 5,6,7.")
@click.option("--steps", type=click.IntRange(min=1), default=8, show_default=True, help="Steps, step 0 included.")
@click.option("--threads", type=click.IntRange(min=1), help="Of the model; as many as there are CPUs unless set.")
@_as_json
def trace(target: str, prompt_ids: str, steps: int, threads: int | None, as_json: bool) -> None:
    """Print the golden trace of TARGET: what a right loop feeds and gets, as JSON Lines."""
    from bento_kv.store import locate_decoder
    from bento_kv.verify.diagnosis.loading import open_cached
    from bento_kv.verify.diagnosis.trace import golden_trace

    try:
        ids = [int(word) for word in prompt_ids.split(",")]
    except ValueError:
        raise click.BadParameter(
            f"{prompt_ids!r} is not numbers with commas between them", param_hint="--prompt-ids"
        ) from None
    graph, vocab_size = open_cached(locate_decoder(target), threads=threads)
    unknown = [token for token in ids if not 0 <= token < vocab_size]
    if unknown:
        raise click.BadParameter(
            f"{unknown[0]} is not a token id: {target} has {vocab_size}, from 0 on", param_hint="--prompt-ids"
        )
    lines = (step.to_json() for step in golden_trace(graph, ids, steps))
    if as_json:
        click.echo(f"[{', '.join(lines)}]")
        return
    for line in lines:
        click.echo(line)


@main.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False, path_type=Path), help="File to write.")
@click.option("--reference", help="The model it was exported from; then it is exported again behind the same inputs.")
@click.option("--keep-names", is_flag=True, help="Leave the names of inputs and outputs as they are.")
@click.option("--force", is_flag=True, help="Replace the file that is there.")
@click.option("--threads", type=click.IntRange(min=1), help="Of the model; as many as there are CPUs unless set.")
@_as_json
def repair(
    file: Path, output: Path, reference: str | None, keep_names: bool, force: bool, threads: int | None, as_json: bool
) -> None:
    """Mend the graph in FILE, an ONNX decoder of any exporter, and diagnose what was written.

    Lowers the IR version, converts the opset, restores axes, pairs and names inputs and outputs, finds renamed weights.
    With --reference the model is exported again behind the inputs and outputs that FILE has.
    """
    from bento_kv.repair.repair import repair as run
    from bento_kv.verify.diagnosis.doctor import diagnose

    done = run(file, output, reference=reference, names=not keep_names, force=force, progress=_progress)
    told = _torch_model(reference)
    diagnosis = diagnose(done.output or file, reference=told, reference_name=reference, threads=threads)
    right = diagnosis.export.verdict == "right"
    if as_json:
        click.echo(json.dumps(_repair_record(done, diagnosis)))
    else:
        for text in _repair_lines(done, diagnosis):
            click.echo(text)
    if not right:
        raise SystemExit(NOT_RIGHT)


def _repair_record(done: Repair, diagnosis: Diagnosis) -> dict[str, Any]:
    return {
        "source": str(done.source),
        "output": str(done.output) if done.output else None,
        "exported": done.exported,
        "mended": [asdict(change) for change in done.mended],
        "left": [asdict(change) for change in done.left],
        "diagnosis": diagnosis.model_dump(mode="json", by_alias=True),
    }


def _repair_lines(done: Repair, diagnosis: Diagnosis) -> Iterator[str]:
    """What was mended, what was not, and the verdict on what was written."""
    for mark, changes in (("mended", done.mended), ("left  ", done.left)):
        for change in changes:
            yield f"{mark}  {change.id}, {change.where}: {change.text}"
    name = shlex.quote(str(done.output or done.source))
    if diagnosis.export.verdict == "right":
        yield (
            f"{name}: its export is right" if done.output else f"{name}: there is nothing to mend, nothing was written"
        )
    else:
        first = diagnosis.export.findings[0]
        what = "is not right yet" if done.output else "could not be mended, nothing was written"
        yield f"{name}: {what}: {first.id}, {first.where}. `bento-kv doctor {name}` says more"


def _torch_model(reference: str | None) -> Callable[[], NumericReference] | None:
    """Loads what a decoder is compared with, when it is needed."""
    if reference is None:
        return None

    def load() -> NumericReference:
        from bento_kv.verify.parity import TorchReference

        return TorchReference(reference, None)

    return load


@main.command()
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("name")
@_as_json
def save(directory: Path, name: str, as_json: bool) -> None:
    """Put the verified decoder in DIRECTORY into the BentoML model store as NAME."""
    from bento_kv.store import save_model

    model = save_model(name, directory)
    click.echo(json.dumps({"tag": str(model.tag), "path": model.path}) if as_json else f"saved as {model.tag}")


@main.command()
@click.argument("target")
@click.argument("prompt")
@click.option("--max-tokens", type=click.IntRange(min=1), help="To the end of the context unless set.")
@click.option("--temperature", type=click.FloatRange(0, 2), help="0 is greedy; the model's default unless set.")
@click.option("--seed", type=int, help="Same seed, same answer.")
@click.option("--threads", type=click.IntRange(min=1), help="Of the model; as many as there are CPUs unless set.")
@_as_json
def generate(target: str, prompt: str, threads: int | None, as_json: bool, **options: Any) -> None:
    """Answer PROMPT with TARGET, a verified decoder directory or a model store tag, streaming to the terminal."""
    import asyncio

    asyncio.run(_generate(target, prompt, threads, as_json, {k: v for k, v in options.items() if v is not None}))


async def _generate(target: str, prompt: str, threads: int | None, as_json: bool, options: dict[str, Any]) -> None:
    from dataclasses import replace

    from bento_kv.engine.config import EngineConfig
    from bento_kv.runnable import OnnxDecoderRunnable

    runnable = OnnxDecoderRunnable(target, EngineConfig(slots=1, threads=threads))
    text, tokens, reason = "", 0, None
    try:
        async for output in runnable.generate(prompt, replace(runnable.defaults, **options)):
            text += output.text
            tokens += len(output.token_ids)
            reason = output.finish_reason
            if output.error:
                raise DecoderError(output.error)
            if not as_json:
                click.echo(output.text, nl=False)
    finally:
        runnable.close(timeout=0)
    click.echo(json.dumps({"text": text, "tokens": tokens, "finish_reason": reason}) if as_json else "")


def _batches(_: click.Context, __: click.Parameter, text: str) -> list[int]:
    try:
        batches = [int(part) for part in text.split(",")]
    except ValueError:
        batches = []
    if not batches or min(batches) < 1:
        raise click.BadParameter(f"{text!r} is not a list of whole numbers from 1 up, such as 1,4,16")
    return batches


@main.command()
@click.argument("target")
@click.option("--batch", "batches", default="1,2,4,8,16", show_default=True, callback=_batches, help="Numbers of rows.")
@click.option("--prompt", type=click.IntRange(min=1), default=256, show_default=True, help="Tokens of each prompt.")
@click.option("--threads", type=click.IntRange(min=1), help="Of the model; as many as there are CPUs unless set.")
@click.option("--exact", type=click.Choice(["batch", "full"]), default="batch", show_default=True)
@_as_json
def bench(target: str, batches: list[int], prompt: int, threads: int | None, exact: Exactness, as_json: bool) -> None:
    """Time the steps of TARGET, a decoder directory or a model store tag: medians of prefill and decode."""
    from bento_kv.bench import measure
    from bento_kv.store import locate

    found = measure(locate(target), batches=batches, prompt=prompt, threads=threads, exact=exact, progress=_progress)
    if as_json:
        click.echo(json.dumps({"results": [asdict(each) for each in found]}))
        return
    click.echo(f"{'phase':8} {'batch':>5} {'prompt':>6} {'ms':>10} {'tokens/s':>10}")
    for each in found:
        click.echo(f"{each.phase:8} {each.batch:5} {each.prompt:6} {each.step_ms:10.2f} {each.tokens_per_second:10.0f}")


@main.command()
@click.argument("url", default="http://localhost:3000")
@click.option("--interval", type=click.FloatRange(min=0.1), default=1.0, show_default=True, help="Seconds to a frame.")
@click.option("--once", is_flag=True, help="Print one frame and end.")
@_as_json
def top(url: str, interval: float, once: bool, as_json: bool) -> None:
    """Watch the server at URL: slots, queue, speed, latencies, from its /metrics. Ctrl+C ends."""
    from rich.console import Console

    from bento_kv.top.scrape import base_url
    from bento_kv.top.view import frames, render, watch

    server = base_url(url)
    if as_json:
        click.echo(json.dumps(asdict(next(frames(server, interval)))))
    elif once or not sys.stdout.isatty():
        Console().print(render(next(frames(server, interval))))
    else:
        with contextlib.suppress(KeyboardInterrupt):  # that is how one leaves
            watch(server, interval, Console())


def _write_page(path: Path, page: str) -> None:
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise click.BadParameter(f"{path} cannot be written: {error.strerror}", param_hint="--html") from error


def _progress(what: str) -> None:
    """A line on a terminal; nothing in a log or a pipe."""
    if sys.stderr.isatty():
        click.echo(f"  {what}", err=True)

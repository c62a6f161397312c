"""The command line, `bento-kv`. Heavy parts are imported by the command that needs them.

Exit codes: 0 success; 1 the thing checked is not right; 2 it could not be done.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from bento_kv import __version__
from bento_kv.errors import BentoKVError, IntegrityError, VerificationError, first_line
from bento_kv.source import hide_progress_bars

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
                "safetensors",
                "transformers",
            ):
                raise
            click.echo(f"Error: this needs {error.name}: pip install 'bento-kv[export]'", err=True)
            ctx.exit(NOT_DONE)
        except KeyboardInterrupt:
            click.echo("Interrupted", err=True)
            ctx.exit(130)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
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
@click.option("--precision", type=click.Choice(["fp32"]), default="fp32", show_default=True, help="Of the weights.")
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
@_as_json
def verify(target: str, reference: str | None, html: Path | None, threads: int | None, as_json: bool) -> None:
    """Prove TARGET, a decoder directory or a model store tag, and write its verification.json."""
    from bento_kv.manifest import Manifest
    from bento_kv.store import locate
    from bento_kv.verify.parity import TorchReference
    from bento_kv.verify.proof import prove
    from bento_kv.verify.report import render, render_html

    directory = locate(target)
    record = prove(
        directory,
        lambda manifest: TorchReference(reference or manifest.source.id, manifest),
        threads=threads,
        progress=_progress,
    )
    click.echo(record.model_dump_json(by_alias=True) if as_json else render(record), nl=as_json)
    if html is not None:
        try:
            html.write_text(render_html(record, Manifest.read(directory)), encoding="utf-8")
        except OSError as error:
            raise click.BadParameter(f"{html} cannot be written: {error.strerror}", param_hint="--html") from error
    if not record.passed:
        raise SystemExit(NOT_RIGHT)


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
    from bento_kv.errors import DecoderError
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


def _progress(what: str) -> None:
    """A line on a terminal; nothing in a log or a pipe."""
    if sys.stderr.isatty():
        click.echo(f"  {what}", err=True)

"""`generate`, `bench` and `top`: decoders and servers at work."""

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from bento_kv.cli.group import as_json_option, main, progress, setting_option, threads_option
from bento_kv.engine.config import EngineConfig
from bento_kv.engine.request import SamplingParams
from bento_kv.errors import DecoderError

if TYPE_CHECKING:
    from bento_kv.contract.plan import Exactness


@main.command()
@click.argument("target")
@click.argument("prompt")
@setting_option(SamplingParams, "max_tokens")
@setting_option(SamplingParams, "temperature")
@setting_option(SamplingParams, "seed")
@threads_option
@as_json_option
def generate(target: str, prompt: str, threads: int | None, as_json: bool, **options: Any) -> None:
    """Answer PROMPT with TARGET, a verified decoder directory or a model store tag, streaming to the terminal.

    What is not set is as the model's own generation defaults have it.
    """
    import asyncio

    asyncio.run(_generate(target, prompt, threads, as_json, {k: v for k, v in options.items() if v is not None}))


async def _generate(target: str, prompt: str, threads: int | None, as_json: bool, options: dict[str, Any]) -> None:
    from dataclasses import replace

    from bento_kv.bento.runnable import OnnxDecoderRunnable

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
@threads_option
@setting_option(EngineConfig, "exact", default="batch")
@as_json_option
def bench(target: str, batches: list[int], prompt: int, threads: int | None, exact: Exactness, as_json: bool) -> None:
    """Time the steps of TARGET, a decoder directory or a model store tag: medians of prefill and decode."""
    from bento_kv.bento.store import locate
    from bento_kv.cli.bench import measure

    found = measure(locate(target), batches=batches, prompt=prompt, threads=threads, exact=exact, progress=progress)
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
@as_json_option
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

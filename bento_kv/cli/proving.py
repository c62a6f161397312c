"""`verify` proves a decoder, `eval` measures what it costs."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from bento_kv.cli.group import NOT_RIGHT, as_json_option, main, progress, threads_option, write_page
from bento_kv.errors import ManifestError


@main.command()
@click.argument("target")
@click.option("--reference", help="Where the original weights are; where the export found them unless given.")
@click.option("--html", type=click.Path(dir_okay=False, writable=True, path_type=Path), help="Also write a page.")
@threads_option
@click.option(
    "--max-length",
    type=click.IntRange(min=1),
    help="Positions of another exporter's decoder; the model's own limit unless set.",
)
@as_json_option
def verify(
    target: str, reference: str | None, html: Path | None, threads: int | None, max_length: int | None, as_json: bool
) -> None:
    """Prove TARGET, a decoder directory or a model store tag, and write its verification.json.

    TARGET may be another exporter's directory too; with --reference, what it was exported from, it gets a manifest.json.
    """
    from bento_kv.bento.store import locate
    from bento_kv.contract.files import MANIFEST_FILE
    from bento_kv.contract.manifest import Manifest
    from bento_kv.proof.parity import TorchReference
    from bento_kv.proof.proof import prove
    from bento_kv.proof.report import render, render_html
    from bento_kv.source import origin_of

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
        lambda manifest: TorchReference(reference or origin_of(directory, manifest.source), manifest),
        threads=threads,
        progress=progress,
    )
    click.echo(record.model_dump_json(by_alias=True) if as_json else render(record), nl=as_json)
    if html is not None:
        write_page(html, render_html(record, Manifest.read(directory)))
    if not record.passed:
        raise SystemExit(NOT_RIGHT)


@main.command(name="eval")
@click.argument("targets", nargs=-1, required=True, metavar="TARGET...")
@click.option("--reference", help="Where the original weights are; where the export found them unless given.")
@click.option(
    "--text",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="UTF-8 text to measure on; the proof's own passages and chats unless given.",
)
@as_json_option
def evaluate(targets: tuple[str, ...], reference: str | None, text: Path | None, as_json: bool) -> None:
    """Compare the predictions of each TARGET, a decoder directory or a model store tag, with its source's on text.

    Divergence (KL, in nats a token), perplexity and how often the likeliest token is the same, in prompts and when decoding;
    and how large the decoder is. `bench` says how fast.
    """
    from bento_kv.bento.store import locate
    from bento_kv.contract.manifest import Manifest
    from bento_kv.proof.evaluation import evaluate as run
    from bento_kv.proof.evaluation import table
    from bento_kv.proof.parity import TorchReference
    from bento_kv.source import origin_of

    directories = [locate(target) for target in targets]
    models: dict[tuple[str, str], TorchReference] = {}
    found = []
    for directory in directories:
        manifest = Manifest.read(directory)
        source = reference or origin_of(directory, manifest.source)
        key = (source, manifest.source.weights_sha256)
        if key not in models:
            progress(f"reading {source}")
            models = {key: TorchReference(source, manifest)}  # one at a time is in memory
        progress(str(directory))
        found.append(run(directory, models[key], text))
    click.echo(json.dumps({"results": [asdict(each) for each in found]}) if as_json else table(found))


def _adopt(directory: Path, reference: str | None, max_length: int | None) -> None:
    from bento_kv.repair.adopt import adopt

    if reference is None:
        raise ManifestError(
            f"{directory} has no manifest.json, so it is not of `bento-kv export`. To prove another exporter's decoder, "
            "say what it was exported from: --reference SOURCE"
        )
    manifest = adopt(directory, reference, max_length=max_length)
    click.echo(f"{directory}: {manifest.architecture}, a growing cache; manifest.json written", err=True)

"""`export` makes a decoder, `save` stores it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from bento_kv.cli.group import as_json_option, main, progress, setting_option
from bento_kv.contract.precision import CACHE_ELEMENTS, EXPORTED
from bento_kv.contract.weight_options import NAMES, QuantizationOptions


def _quantization_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """An option for each field of `QuantizationOptions`, in their order."""
    for name in reversed(NAMES):
        function = setting_option(QuantizationOptions, name)(function)
    return function


@main.command()
@click.argument("source")
@click.option("-o", "--output", "directory", required=True, type=click.Path(path_type=Path), help="Directory to write.")
@click.option(
    "--precision",
    type=click.Choice(EXPORTED),
    default="fp32",
    show_default=True,
    help="Of the weights.",
)
@click.option(
    "--kv-cache", type=click.Choice(list(CACHE_ELEMENTS)), default="fp32", show_default=True, help="Of the cache."
)
@_quantization_options
@click.option("--max-length", type=int, help="Positions of a slot; the model's own limit unless set.")
@click.option("--opset", type=int, help="ONNX opset of the graph.")
@click.option("--force", is_flag=True, help="Replace the decoder that is there.")
@as_json_option
def export(source: str, directory: Path, force: bool, as_json: bool, **options: Any) -> None:
    """Export SOURCE, a Hugging Face directory or hub id or `demo`, to a decoder directory."""
    from bento_kv.export.exporter import export as run

    given = {name: value for name, value in options.items() if value is not None}
    given["quantization"] = QuantizationOptions(**{name: given.pop(name) for name in NAMES if name in given})
    manifest = run(source, directory, force=force, progress=progress, **given)
    if as_json:
        click.echo(json.dumps(manifest.model_dump(mode="json", by_alias=True)))
    else:
        click.echo(
            f"{directory}: {manifest.architecture}, {len(manifest.layers)} layers, {manifest.max_length} positions"
        )
        click.echo(f"Not proven yet: bento-kv verify {directory}")


@main.command()
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("name")
@as_json_option
def save(directory: Path, name: str, as_json: bool) -> None:
    """Put the verified decoder in DIRECTORY into the BentoML model store as NAME."""
    from bento_kv.bento.store import save_model

    model = save_model(name, directory)
    click.echo(json.dumps({"tag": str(model.tag), "path": model.path}) if as_json else f"saved as {model.tag}")

"""`export` makes a decoder, `save` stores it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bento_kv.cli.group import as_json_option, main, progress, setting_option
from bento_kv.contract.precision import ASKED, AUTO, CACHE_ELEMENTS
from bento_kv.contract.weight_options import NAMES, QuantizationOptions

if TYPE_CHECKING:
    from bento_kv.contract.manifest import Manifest


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
    type=click.Choice(ASKED),
    default="fp32",
    show_default=True,
    help="Of the weights. `auto` takes the one of the fewest bits whose proof passes, and proves.",
)
@click.option(
    "--kv-cache", type=click.Choice(list(CACHE_ELEMENTS)), default="fp32", show_default=True, help="Of the cache."
)
@_quantization_options
@click.option("--max-length", type=int, help="Positions of a slot; the model's own limit unless set.")
@click.option("--opset", type=int, help="ONNX opset of the graph.")
@click.option("--force", is_flag=True, help="Replace the decoder that is there.")
@as_json_option
def export(source: str, directory: Path, precision: str, as_json: bool, **options: Any) -> None:
    """Export SOURCE, a Hugging Face directory or hub id or `demo`, to a decoder directory."""
    from bento_kv.contract.manifest import Manifest

    given = {name: value for name, value in options.items() if value is not None}
    given["quantization"] = QuantizationOptions(**{name: given.pop(name) for name in NAMES if name in given})
    if precision == AUTO:
        from bento_kv.proof.attempts import export_smallest

        export_smallest(source, directory, progress=progress, **given)
    else:
        from bento_kv.export.exporter import export as run

        run(source, directory, precision=precision, progress=progress, **given)
    _tell(directory, Manifest.read(directory), proven=precision == AUTO, as_json=as_json)


def _tell(directory: Path, manifest: Manifest, *, proven: bool, as_json: bool) -> None:
    """What was made."""
    if as_json:
        click.echo(json.dumps(manifest.model_dump(mode="json", by_alias=True)))
        return
    click.echo(f"{directory}: {manifest.architecture}, {len(manifest.layers)} layers, {manifest.max_length} positions")
    for precision, faults in manifest.tried.items():
        click.echo(f"{precision} did not pass its proof: {', '.join(faults)}")
    click.echo(f"Proven in {manifest.precision}" if proven else f"Not proven yet: bento-kv verify {directory}")


@main.command()
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("name")
@as_json_option
def save(directory: Path, name: str, as_json: bool) -> None:
    """Put the verified decoder in DIRECTORY into the BentoML model store as NAME."""
    from bento_kv.bento.store import save_model

    model = save_model(name, directory)
    click.echo(json.dumps({"tag": str(model.tag), "path": model.path}) if as_json else f"saved as {model.tag}")

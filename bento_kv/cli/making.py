"""`export` makes a decoder, `save` stores it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from bento_kv.cli.group import as_json_option, main, progress
from bento_kv.contract.precision import CACHE_ELEMENTS, EXPORTED


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
@click.option(
    "--block-size", type=click.Choice(["16", "32", "64", "128", "256"]), help="int4: weights that share a scale [128]."
)
@click.option(
    "--method",
    type=click.Choice(["gptq", "search", "rtn"]),
    help="int4: round by what weights are multiplied with, search for scales, or round to nearest [search].",
)
@click.option(
    "--calibration",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="int4 by gptq: UTF-8 text of the kind that the model is for; documentation of Python's library unless given.",
)
@click.option("--asymmetric", is_flag=True, default=None, help="int4: with zero points.")
@click.option("--head-bits", type=click.Choice(["4", "8"]), help="int4: of the weights that make the logits [8].")
@click.option("--edge-layers", type=click.IntRange(min=0), help="int4: so many layers at either end keep 8 bits [0].")
@click.option(
    "--reduce-range/--full-range",
    default=None,
    help="int8, and int4's columns: use 7 of 8 bits, faster without VNNI [--reduce-range for int4].",
)
@click.option(
    "--rotate/--no-rotate",
    default=None,
    help="int8, int4: spread the few large channels of activations over all [--rotate for int8].",
)
@click.option("--max-length", type=int, help="Positions of a slot; the model's own limit unless set.")
@click.option("--opset", type=int, help="ONNX opset of the graph.")
@click.option("--force", is_flag=True, help="Replace the decoder that is there.")
@as_json_option
def export(source: str, directory: Path, force: bool, as_json: bool, **options: Any) -> None:
    """Export SOURCE, a Hugging Face directory or hub id or `demo`, to a decoder directory."""
    from bento_kv.export.exporter import export as run
    from bento_kv.export.graph.weights import Quantization

    given = {name: value for name, value in options.items() if value is not None}
    how: dict[str, Any] = {
        name: given.pop(name) for name in ("method", "edge_layers", "reduce_range", "rotate") if name in given
    }
    how |= {name: int(given.pop(name)) for name in ("block_size", "head_bits") if name in given}
    if given.pop("asymmetric", False):
        how["symmetric"] = False
    if how:
        given["quantization"] = Quantization(**how)
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

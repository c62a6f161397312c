"""`doctor`, `trace` and `repair`, which take anybody's decoder."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bento_kv.cli.group import NOT_RIGHT, as_json_option, main, progress, threads_option, time_limit_option, write_page

if TYPE_CHECKING:
    from bento_kv.contract.reference import NumericReference
    from bento_kv.doctor.records import Diagnosis
    from bento_kv.repair.records import Repair


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
@threads_option
@time_limit_option
@as_json_option
def doctor(
    target: str,
    reference: str | None,
    trace_file: str | None,
    html: Path | None,
    time_limit: float,
    as_json: bool,
    **options: Any,
) -> None:
    """Which layer of TARGET is wrong, its export or its loop, and what to do first.

    TARGET is any decoder: an ONNX file or a directory, of whatever exporter, or a model store tag. Without --trace the
    loop judged is bento_kv's own. docs/reference/traces.md says how to print a trace from any language.
    """
    from bento_kv.bento.store import locate_decoder
    from bento_kv.doctor.diagnose import diagnose
    from bento_kv.doctor.loop.reading import read_trace
    from bento_kv.doctor.show.page import render_html
    from bento_kv.doctor.show.text import render_for
    from bento_kv.runtime.limits import within_limits

    with within_limits(time_limit):
        diagnosis = diagnose(
            locate_decoder(target),
            reference=_torch_model(reference),
            reference_name=reference,
            trace=None if trace_file is None else read_trace(sys.stdin if trace_file == "-" else trace_file),
            trace_name=trace_file,
            progress=progress,
            **options,
        )
    if as_json:
        click.echo(diagnosis.model_dump_json(by_alias=True))
    else:
        click.echo(render_for(diagnosis, sys.stdout), nl=False)
    if html is not None:
        write_page(html, render_html(diagnosis))
    if diagnosis.plan:
        raise SystemExit(NOT_RIGHT)


@main.command()
@click.argument("target")
@click.option("--prompt-ids", required=True, help="Token ids, with commas: 5,6,7.")
@click.option("--steps", type=click.IntRange(min=1), default=8, show_default=True, help="Steps, step 0 included.")
@threads_option
@time_limit_option
@as_json_option
def trace(target: str, prompt_ids: str, steps: int, threads: int | None, time_limit: float, as_json: bool) -> None:
    """Print the golden trace of TARGET: what a right loop feeds and gets, as JSON Lines."""
    from bento_kv.bento.store import locate_decoder
    from bento_kv.doctor.export.loading import open_cached
    from bento_kv.doctor.loop.golden import golden_trace
    from bento_kv.runtime.limits import within_limits

    try:
        ids = [int(word) for word in prompt_ids.split(",")]
    except ValueError:
        raise click.BadParameter(
            f"{prompt_ids!r} is not numbers with commas between them", param_hint="--prompt-ids"
        ) from None
    with within_limits(time_limit):
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
@threads_option
@time_limit_option
@as_json_option
def repair(
    file: Path,
    output: Path,
    reference: str | None,
    keep_names: bool,
    force: bool,
    threads: int | None,
    time_limit: float,
    as_json: bool,
) -> None:
    """Mend the graph in FILE, an ONNX decoder of any exporter, and diagnose what was written.

    Lowers the IR version, converts the opset, restores declared axes, pairs and names inputs and outputs, finds renamed
    weights. With --reference the model is exported again behind the inputs and outputs that FILE has.
    """
    from bento_kv.doctor.diagnose import diagnose
    from bento_kv.repair.repair import repair as run
    from bento_kv.runtime.limits import within_limits

    with within_limits(time_limit):
        done = run(file, output, reference=reference, names=not keep_names, force=force, progress=progress)
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
        from bento_kv.proof.parity import TorchReference
        from bento_kv.runtime.memory import may_map
        from bento_kv.source import ModelSource

        with may_map(ModelSource.find(reference).weight_files()):
            return TorchReference(reference, None)

    return load

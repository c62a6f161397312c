"""What a decoder takes besides time for tokens: seconds to open it, memory to hold it, memory to make it.

    python -m benchmarks.resources open DECODER [--rows 16] [--tokens 1034] [--threads 2]
    python -m benchmarks.resources export MODEL [--precision int4]

Each runs in a process of its own, whose resident memory is read when all rows are filled, and at its peak.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import resource
import time
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory

MIB = 2**20
# Resident memory may be so many times the weights and the cache in use, and so much besides.
SHARE, BESIDES = 1.25, 150.0
_CHUNK = 256


def _opened(pipe: Connection, directory: Path, rows: int, tokens: int, threads: int) -> None:
    from bento_kv.contract.plan import StepPlan, StepRow
    from bento_kv.runtime.decoder import OnnxDecoder

    began = time.perf_counter()
    decoder = OnnxDecoder(directory, slots=rows, threads=threads, max_length=tokens)
    seconds = time.perf_counter() - began
    for start in range(0, tokens - 1, _CHUNK):
        for slot in range(rows):
            decoder.step(StepPlan([StepRow(slot, [1] * min(_CHUNK, tokens - 1 - start), start, 0)]))
    decoder.step(StepPlan([StepRow(slot, [1], tokens - 1) for slot in range(rows)]))
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    weights = (directory / "model.onnx.data").stat().st_size
    used = decoder.cache.token_bytes * rows * tokens
    pipe.send(
        {
            "open_s": seconds,
            "weights_mib": weights / MIB,
            "cache_mib": used / MIB,
            "resident_mib": resident / MIB,
            "limit_mib": SHARE * (weights + used) / MIB + BESIDES,
        }
    )


def _exported(pipe: Connection, source: str, precision: str) -> None:
    from bento_kv.export.exporter import export

    with TemporaryDirectory(prefix="bento_kv-") as scratch:
        began = time.perf_counter()
        export(source, Path(scratch) / "decoder", precision=precision)
        seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    floats = 4 * sum(map(_elements, Path(source).glob("*.safetensors")))
    pipe.send({"export_s": seconds, "peak_mib": peak / MIB, "fp32_mib": floats / MIB, "peak_over_fp32": peak / floats})


def _elements(file: Path) -> int:
    from safetensors import safe_open

    with safe_open(file, "np") as tensors:
        names = tensors.keys()
        return sum(math.prod(tensors.get_slice(name).get_shape()) for name in names)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    opened = kinds.add_parser("open")
    opened.add_argument("decoder", type=Path)
    opened.add_argument("--rows", type=int, default=16)
    opened.add_argument("--tokens", type=int, default=1034)
    opened.add_argument("--threads", type=int, default=2)
    exported = kinds.add_parser("export")
    exported.add_argument("model", help="a directory of safetensors")
    exported.add_argument("--precision", default="int4")
    given = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    if given.kind == "open":
        process = context.Process(target=_opened, args=(theirs, given.decoder, given.rows, given.tokens, given.threads))
    else:
        process = context.Process(target=_exported, args=(theirs, given.model, given.precision))
    process.start()
    theirs.close()
    for name, value in ours.recv().items():
        print(f"{name:16} {value:10.2f}")
    process.join()


if __name__ == "__main__":
    main()

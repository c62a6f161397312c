"""How fast memory can be read, and what that allows: a decode step reads every weight and every cached key and value.

`python -m benchmarks.limit [THREADS]` prints the bandwidths of this machine as JSON, in bytes a second.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from benchmarks.shapes import WEIGHT_BITS, Shape

LARGE = 2 << 30  # bytes: several times the largest cache of a processor
SMALL = 64 << 20  # bytes: about what a small model takes in 4 bits, which a large cache can hold from step to step
ROUNDS = 5

Part = NDArray[np.float32]


def bandwidths(threads: int) -> dict[str, float]:
    """Bytes a second: `read` and `copy` beyond all caches, `read_small` of a buffer that may stay in one.

    In a process of its own, because the BLAS that reads must not bring threads besides these.
    """
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.limit", str(threads)],
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        text=True,
    )
    found: dict[str, float] = json.loads(run.stdout)
    return found


def step_bytes(shape: Shape, precision: str, rows: int, context: int) -> float:
    """Bytes that a decode step cannot avoid to read: each weight once for all rows, each row's float32 keys and values."""
    return shape.matrix_weights * WEIGHT_BITS[precision] / 8 + rows * context * shape.cache_values * 4


def _measure(threads: int) -> dict[str, float]:
    return {
        "read": _rate(LARGE, threads, _read),
        "read_small": _rate(SMALL, threads, _read),
        "copy": _rate(LARGE, threads, _copy),  # bytes read and bytes written, added
    }


def _read(part: Part) -> None:
    part.dot(part)  # both operands are the same memory, and a multiplication costs nothing beside a load


def _copy(part: Part) -> None:
    half = part.size // 2
    np.copyto(part[:half], part[half : 2 * half])


def _rate(size: int, threads: int, work: Callable[[Part], None]) -> float:
    """Median over the rounds of bytes a second, each thread working on its own part of the buffer."""
    parts = np.array_split(np.ones(size // 4, np.float32), threads)
    seconds = []
    for _ in range(ROUNDS + 1):  # the first warms up
        workers = [threading.Thread(target=work, args=(part,)) for part in parts]
        began = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        seconds.append(time.perf_counter() - began)
    return size / statistics.median(seconds[1:])


if __name__ == "__main__":
    print(json.dumps(_measure(int(sys.argv[1]) if len(sys.argv) > 1 else len(os.sched_getaffinity(0)))))

"""An ONNX Runtime session as the decoder is proven and served with: the same settings in both."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from pathlib import Path

import onnxruntime as ort

from bento_kv.errors import DecoderError, IntegrityError, first_line
from bento_kv.host import available_cpus
from bento_kv.runtime.limits import raise_if_limit, timed
from bento_kv.runtime.memory import external_files, may_map


def open_session(
    model: Path,
    *,
    threads: int | None = None,
    providers: Sequence[str] | None = None,
    reduce_range: bool = False,
) -> ort.InferenceSession:
    """Load a graph for serving.

    Args:
        model: the ONNX file; external data stands beside it.
        threads: of one step; `available_cpus()` unless set.
        providers: execution providers in order of preference; the CPU's unless set.
        reduce_range: its int8 weights keep to `quantization.REDUCED_RANGE`.

    Raises:
        DecoderError: a provider is not in the installed runtime, or the runtime refuses the graph.
        IntegrityError: the external data is missing or shorter than the graph says.
    """
    wanted = list(providers or ["CPUExecutionProvider"])
    missing = [name for name in wanted if name not in ort.get_available_providers()]
    if missing:
        raise DecoderError(
            f"execution provider {missing[0]} is not in the installed onnxruntime "
            f"({', '.join(ort.get_available_providers())}); install the package that has it"
        )
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or available_cpus()
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # an error is raised, and need not be printed besides
    # Threads spin within a run, which small steps gain from, and rest between runs, so that an idle server is idle.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # Without VNNI instructions, products of uint8 and int8 saturate in 16 bits, unless the range of weights is reduced. Asked
    # to be precise there, the runtime takes a kernel that does not, in prompts about a third slower, for which it converts
    # all weights when it opens the graph; where there are such instructions, nothing changes.
    options.add_session_config_entry("session.x64quantprecision", "0" if reduce_range else "1")
    try:
        with timed(f"loading {model.name}"), may_map(external_files(model)):
            session = ort.InferenceSession(str(model), options, providers=wanted)
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        raise_if_limit(error)
        reason = first_line(error)
        if "external" in reason.lower() or "out of bounds" in reason.lower():
            raise IntegrityError(f"{model}: its weights file is missing or damaged: {reason}") from error
        raise DecoderError(f"onnxruntime {ort.__version__} does not load {model}: {reason}") from error
    _release_freed_memory()
    return session


def _release_freed_memory() -> None:
    """Give back what loading a graph took and freed, weights in other forms above all: glibc would keep it."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)

"""Other servers of OpenAI's API, on the same weights in fp32 and as many threads; `benchmarks.peers.setup` installs them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.catalogue import PEERS, ROOT, absent
from benchmarks.loading.server import Server, running

NAMES = ("llama-cpp-python", "transformers-serve")
_PYTHON = PEERS / "servers" / "bin" / "python"
_MODEL = "peer"


@contextmanager
def serving_peer(name: str, model: Path, home: Path, threads: int) -> Iterator[tuple[Server, str]]:
    """A peer that serves the model, and what it calls the model.

    Args:
        name: of `NAMES`.
        model: a directory of a Llama with the demo's tokenizer.
        home: where files made for the peer are kept, and its log.
        threads: of a step.
    """
    environment = {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    if name == "transformers-serve":
        code = "import sys; from transformers.cli.transformers import main; sys.exit(main())"
        command = [str(_PYTHON), "-c", code, "serve", str(model), "--device", "cpu", "--dtype", "float32"]
        with running(command, environment, home, "/health") as server:
            yield server, str(model)
        return
    command = [str(_PYTHON), "-m", "llama_cpp.server", "--model", str(_gguf(model, home)), "--model_alias", _MODEL]
    command += ["--n_ctx", "2048", "--n_threads", str(threads)]
    (packages,) = (PEERS / "llama_cpp" / "lib").glob("python*/site-packages")
    with running(command, environment | {"PYTHONPATH": str(packages)}, home, "/v1/models") as server:
        yield server, _MODEL


def cannot_serve(name: str) -> str | None:
    """Why a peer cannot take part, and what to do; None if it can."""
    needed = ("servers", "llama_cpp") if name == "llama-cpp-python" else ("servers",)
    reason = next(filter(None, map(absent, needed)), None)
    return None if reason is None else f"{name}: {reason}"


def _gguf(model: Path, home: Path) -> Path:
    """The model as llama.cpp reads it, made once."""
    file = home / f"{model.name}.gguf"
    if not file.exists():
        python = PEERS / "llama_cpp" / "bin" / "python"
        command = [str(python), "-m", "benchmarks.workers.gguf_model", str(model), str(file)]
        subprocess.run(command, check=True, cwd=ROOT, env=os.environ, stdout=sys.stderr)
    return file

"""Installs the engines to compare with, each in an environment of its own under `build/peers`.

    python -m benchmarks.peers.setup [NAME ...]

NAME is llama_cpp, genai, openvino, optimum or servers (what llama-cpp-python's server and `transformers serve` need); all
if none is given. llama.cpp is compiled for this machine's
processor, with gcc or clang and cmake, in about ten minutes on two cores. Versions are pinned in `requirements-NAME.txt`,
dependencies included; torch may be its CPU build (`PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu`).
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import venv
from pathlib import Path

from benchmarks.catalogue import PEERS, STAMP, requirements_file, requirements_hash

# For this machine's processor, and without the part for images.
CMAKE_ARGS = (
    "-DGGML_NATIVE=ON",
    "-DLLAVA_BUILD=OFF",
    f"-DCMAKE_CXX_FLAGS=-include {Path(__file__).resolve().parent / 'tile_loadconfig.h'}",
)
NAMES = ("openvino", "genai", "optimum", "llama_cpp", "servers")


def install(name: str) -> None:
    """Make an environment of exactly the packages of its requirements, whatever stood there."""
    folder = PEERS / name
    venv.create(folder, with_pip=True, clear=True)
    command = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install"]
    # The list is complete, and leaves out what packages ask for and do not use.
    command += ["--no-deps", "--requirement", str(requirements_file(name))]
    if name == "llama_cpp":
        command.append("--no-cache-dir")  # a wheel compiled before may be for another processor, or without the header
    subprocess.run(command, check=True, env=os.environ | {"CMAKE_ARGS": shlex.join(CMAKE_ARGS)})
    (folder / STAMP).write_text(requirements_hash(name))


def main() -> int:
    names = sys.argv[1:] or NAMES
    if unknown := [name for name in names if name not in NAMES]:
        print(f"there is no engine {unknown[0]!r}; there are {', '.join(NAMES)}", file=sys.stderr)
        return 2
    for name in names:
        print(f"{name}: installing into {PEERS / name}", flush=True)
        install(name)
    return 0


if __name__ == "__main__":
    sys.exit(main())

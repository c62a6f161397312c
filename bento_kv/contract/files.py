"""The files of a decoder directory, and that they are those that were proven."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from bento_kv.errors import IntegrityError

MODEL_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"
MANIFEST_FILE = "manifest.json"
VERIFICATION_FILE = "verification.json"


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_files(directory: Path) -> dict[str, str]:
    """Hashes of all files of a decoder directory but the two records themselves."""
    return {name: sha256(directory / name) for name in sorted(_files_of(directory))}


def check_hashes(directory: Path, files: Mapping[str, str]) -> None:
    """Compare every file's hash with the manifest's.

    Args:
        directory: of the decoder.
        files: hashes by name, as the manifest has them.

    Raises:
        IntegrityError: a file is missing, was changed, or was added.
    """
    unknown = sorted(_files_of(directory) - set(files))
    if unknown:
        raise IntegrityError(f"{directory / unknown[0]} is not in the manifest; remove it or export again")
    for name, expected in files.items():
        path = directory / name
        if not path.is_file():
            raise IntegrityError(f"{path} is missing; the manifest lists it. Export the decoder again.")
        if sha256(path) != expected:
            raise IntegrityError(
                f"{path} was changed after the export: its sha256 is not the manifest's. Export the decoder again."
            )


def _files_of(directory: Path) -> set[str]:
    """All files below a decoder directory but the two records, and the one that BentoML's model store adds."""
    own = {MANIFEST_FILE, VERIFICATION_FILE, "model.yaml"}
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()} - own

"""Where a model comes from: a local directory, a hub id, or the embedded demo. All become one local directory."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bento_kv.contract.companions import COMPANIONS, read_companion
from bento_kv.contract.files import ORIGIN_FILE, open_plain, sha256
from bento_kv.contract.manifest import Source
from bento_kv.disk import write_whole
from bento_kv.errors import SourceError, first_line

DEMO = "demo"
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_UNWANTED = ["*/*", "consolidated*"]  # other formats of the same weights
_COMPANIONS = ("*.json", "*.jinja", "*.txt", "*.model")
_WANTED = [*_WEIGHTS, *_COMPANIONS]


def hide_progress_bars() -> None:
    """Libraries draw progress bars wherever they are; a log file wants none. To be called before they are imported."""
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model on this machine.

    Attributes:
        id: what the user named, for sentences; of a directory its whole path.
        path: a directory in Hugging Face's format.
        revision: the hub's commit, if it came from there.
    """

    id: str
    path: Path
    revision: str | None = None

    @classmethod
    def find(cls, source: str, *, revision: str | None = None) -> ModelSource:
        """Resolve what a user named; downloads a hub id, at a revision if one is given.

        Raises:
            SourceError: nothing is there, or it is not a model.
        """
        if source == DEMO:
            from bento_kv import demo

            return cls(DEMO, demo.path())
        local = Path(source).expanduser()
        if source and local.is_dir():
            found = cls(str(local.resolve()), local)
        elif local.exists() or source.startswith((".", "/", "~")) or source.count("/") != 1:
            raise SourceError(
                f"{source!r} is not a model directory, and not a hub id (owner/name). "
                "Give a directory with config.json and weights, a hub id, or 'demo'."
            )
        else:
            found = cls._download(source, revision)
        found._check()
        return found

    @classmethod
    def _download(cls, source: str, revision: str | None) -> ModelSource:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

        try:
            path = Path(snapshot_download(source, revision=revision, allow_patterns=_WANTED, ignore_patterns=_UNWANTED))
        except HFValidationError as error:
            raise SourceError(f"{source!r} is neither a directory here nor a valid hub id: {error}") from error
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            reason = first_line(error)
            raise SourceError(
                f"{source!r} is not a directory here, and the hub did not give it: {reason} "
                "Check the spelling, your access to it (`hf auth login`) and the network."
            ) from error
        return cls(source, path, revision=path.name)

    def _check(self) -> None:
        if not (self.path / "config.json").is_file():
            raise SourceError(f"{self.path} has no config.json, so it is not a Hugging Face model directory")
        if not self.weight_files():
            raise SourceError(f"{self.path} has no weights (model.safetensors or pytorch_model.bin)")
        for file in (self.path / name for name in COMPANIONS):
            try:
                if file.is_file():
                    read_companion(file)
            except ValueError as error:
                raise SourceError(str(error)) from error

    @property
    def name(self) -> str:
        """What a decoder calls it: a hub id, `demo`, or the name of the folder. Where that stands is this machine's matter."""
        return self.id if self.revision is not None or self.id == DEMO else Path(self.id).name

    def write_origin(self, directory: Path) -> None:
        """Note where the source stands beside a decoder, for this machine alone: nothing copies that file.

        Raises:
            OSError: it cannot be written.
        """
        if self.name != self.id:
            write_whole(directory / ORIGIN_FILE, f"{self.id}\n".encode())
        else:
            (directory / ORIGIN_FILE).unlink(missing_ok=True)  # of another source, adopted before

    def weight_files(self) -> list[Path]:
        """The files that hold the weights; safetensors where both forms are there, as transformers does."""
        for pattern in _WEIGHTS:
            files = sorted(self.path.glob(pattern))
            if files:
                return files
        return []

    def weights_sha256(self) -> str:
        """One hash over the weights' files, in the order of their names."""
        return _hash(self.weight_files())

    def companions_sha256(self) -> str:
        """The same of its configurations, tokenizer and chat template."""
        return _hash(sorted({file for pattern in _COMPANIONS for file in self.path.glob(pattern) if file.is_file()}))


def origin_of(directory: Path, source: Source) -> str:
    """What to give to `ModelSource.find` for the model that a decoder was exported from.

    Args:
        directory: of the decoder.
        source: as its manifest has it.

    Raises:
        SourceError: it was a folder, and nothing says where that stands.
    """
    try:
        with open_plain(directory, ORIGIN_FILE) as file:
            return file.read().decode().strip()
    except (OSError, UnicodeDecodeError):
        pass
    if source.revision is None and source.id != DEMO:
        raise SourceError(
            f"{directory} was exported from a folder {source.id}, and does not say where that stands; say it with "
            "--reference"
        )
    return source.id


def _hash(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}:{sha256(file)}\n".encode())
    return digest.hexdigest()

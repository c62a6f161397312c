"""BentoML's model store as the home of proven decoders: save, get, find."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import bentoml
from bentoml.exceptions import BentoMLException, NotFound

from bento_kv.contract.verification import check_proof
from bento_kv.errors import SourceError, first_line

MODULE = "bento_kv"


def save_model(name: str, directory: str | Path, *, metadata: Mapping[str, str | int] | None = None) -> bentoml.Model:
    """Put a verified decoder directory into the BentoML model store.

    Args:
        name: of the model, a version may be given after a colon.
        directory: a decoder directory whose proof passed.
        metadata: to be kept besides what the manifest says.

    Raises:
        ManifestError, IntegrityError, VerificationError: it has no proof, or not this one, or a failed one.
        SourceError: the name is not one that BentoML takes, or the store cannot be written.
    """
    path = Path(directory)
    manifest, record = check_proof(path)
    facts = {
        "source": manifest.source.id,
        "weights_sha256": manifest.source.weights_sha256,
        "architecture": manifest.architecture,
        "precision": manifest.precision,
        "kv_cache": manifest.kv_cache,
        "max_length": manifest.max_length,
        "manifest_sha256": record.manifest_sha256,
        "bento_kv": manifest.versions["bento-kv"],
        **(metadata or {}),
    }
    try:
        with bentoml.models.create(name, module=MODULE, labels={"framework": "bento_kv"}, metadata=facts) as model:
            shutil.copytree(path, model.path, dirs_exist_ok=True)
    except (BentoMLException, ValueError) as error:
        raise SourceError(f"the model store does not take {name!r}: {error}") from error
    except OSError as error:
        raise SourceError(
            f"the model store cannot be written, is its disk full? {first_line(error)} (BENTOML_HOME says where it is)"
        ) from error
    return get(model.tag)  # as it lies in the store; what was written to was a folder on the way there


def get(tag: str | bentoml.Tag) -> bentoml.Model:
    """The stored decoder of that tag, the latest version unless it names one.

    Raises:
        SourceError: there is none, or another framework saved it.
    """
    try:
        model = bentoml.models.get(tag)
    except (NotFound, BentoMLException, ValueError) as error:
        raise SourceError(f"the model store has no {tag}; `bentoml models list` shows what it has") from error
    if model.info.module != MODULE:
        raise SourceError(f"{model.tag} was saved by {model.info.module or 'something else'}, not by bento_kv")
    return model


def versions(name: str) -> list[bentoml.Model]:
    """All stored versions of a name, the newest first."""
    try:
        models = bentoml.models.list(name)
    except NotFound:
        return []
    return sorted(models, key=lambda model: model.creation_time, reverse=True)


def locate(target: str | Path | bentoml.Model) -> Path:
    """The decoder directory that a user means by a directory, a store tag, or a stored model.

    Raises:
        SourceError: it is neither.
    """
    if isinstance(target, bentoml.Model):
        return Path(target.path)
    path = Path(target).expanduser()
    if str(target) and path.is_dir():
        return path
    if path.exists() or "/" in str(target):
        raise SourceError(f"{target} is not a directory; give a decoder directory or a model store tag")
    return Path(get(str(target)).path)


def locate_decoder(target: str) -> Path:
    """What a user means to have diagnosed: an ONNX file, a directory that has one, or a store tag.

    Raises:
        SourceError: it is none of these.
    """
    path = Path(target).expanduser()
    if target and path.is_file():
        return path
    try:
        return locate(target)
    except SourceError as error:
        raise SourceError(f"there is no ONNX file or directory {target!r}, and {error}") from error

"""BentoML's model store as the home of proven decoders: save, get, find."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import bentoml
from bentoml.exceptions import BentoMLException

from bento_kv.contract.files import copy_files
from bento_kv.contract.verification import check_proof
from bento_kv.disk import clean, folder_beside, put, sync, write_whole
from bento_kv.errors import SourceError, first_line
from bento_kv.locks import alone

MODULE = "bento_kv"
_MODEL_YAML = "model.yaml"
# A version without its `model.yaml` in which nothing has changed for so long is nobody's work.
_ABANDONED_SECONDS = 600

# Below BentoML's own logger, so that `bentoml build` and `bentoml serve` show it.
logger = logging.getLogger("bentoml.bento_kv")


def save_model(name: str, directory: str | Path, *, metadata: Mapping[str, str | int] | None = None) -> bentoml.Model:
    """Put a verified decoder directory into the BentoML model store: what its manifest lists, and nothing else.

    The version appears in the store when it is complete.

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
        tag = _new_tag(name)
        with _refusing_to_write(), folder_beside(_beside_store()) as staging:
            copy_files(path, manifest.files, staging)
            _write_model_yaml(staging, tag, facts)
            _enter(staging, tag)
    except (BentoMLException, ValueError) as error:
        raise SourceError(f"the model store does not take {name!r}: {error}") from error
    return get(tag)


@contextmanager
def _refusing_to_write() -> Iterator[None]:
    try:
        yield
    except FileExistsError as error:
        raise BentoMLException(f"{error.filename} exists already") from error
    except OSError as error:
        raise SourceError(
            f"the model store cannot be written, is its disk full? {first_line(error)} (BENTOML_HOME says where it is)"
        ) from error


def _store() -> Path:
    """Where this process has BentoML's model store."""
    from bentoml._internal.configuration.containers import BentoMLContainer

    return Path(BentoMLContainer.model_store.get()._path)


def _beside_store() -> Path:
    """The store under the name beside which versions are made: on its own file system, if it is a link and may be."""
    real = _store().resolve()
    return real if os.access(real.parent, os.W_OK) else _store()


def _new_tag(name: str) -> bentoml.Tag:
    tag = bentoml.Tag.from_taglike(name)
    return tag if tag.version is not None else tag.make_new_version()


def _write_model_yaml(folder: Path, tag: bentoml.Tag, facts: Mapping[str, str | int]) -> None:
    """What makes a folder a model of BentoML's."""
    from bentoml._internal.models.model import ModelContext, ModelInfo, ModelOptions

    info = ModelInfo(
        tag=tag,
        module=MODULE,
        api_version="v1",
        signatures={},
        labels={"framework": "bento_kv"},
        options=ModelOptions(),
        metadata=dict(facts),
        context=ModelContext(framework_name="", framework_versions={}),
    )
    with (folder / _MODEL_YAML).open("w", encoding="utf-8") as file:
        info.dump(file)


def _enter(staging: Path, tag: bentoml.Tag) -> None:
    """Let a complete version appear under its tag, as the latest of its name.

    BentoML's own way copies into the store, file by file: a process that is killed over it leaves a version that is none.
    """
    place = _store() / tag.path()
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        put(staging, place)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _copy(staging, place)
    write_whole(_store() / tag.latest_path(), str(tag.version).encode())


def _copy(staging: Path, place: Path) -> None:
    """To a store that is a file system of its own, where there is no room beside it; `model.yaml`, which makes it one, last."""
    place.mkdir()
    try:
        shutil.copytree(staging, place, ignore=shutil.ignore_patterns(_MODEL_YAML), dirs_exist_ok=True)
        sync(place)
        write_whole(place / _MODEL_YAML, (staging / _MODEL_YAML).read_bytes())
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise


def get(tag: str | bentoml.Tag) -> bentoml.Model:
    """The stored decoder of that tag, the latest version unless it names one.

    Raises:
        SourceError: there is none, or another framework saved it.
    """
    model = _found(tag)
    if model.info.module != MODULE:
        raise SourceError(f"{model.tag} was saved by {model.info.module or 'something else'}, not by bento_kv")
    return model


def _found(tag: str | bentoml.Tag) -> bentoml.Model:
    try:
        return bentoml.models.get(tag)
    except Exception as error:  # one that is not whole raises what its model.yaml makes of BentoML's reader
        name = str(tag).removesuffix(":latest")
        if ":" not in name and (whole := versions(name)):
            return whole[0]  # the version that is called the latest is not whole
        raise SourceError(f"the model store has no {tag}; `bentoml models list` shows what it has") from error


def versions(name: str) -> list[bentoml.Model]:
    """All stored versions of a name that are whole, the newest first. What another process is writing is passed by."""
    models = []
    for folder in _folders(name):
        try:
            models.append(bentoml.models.get(f"{name}:{folder.name}"))
        except Exception:  # noqa: BLE001 - as in `_found`
            logger.warning("%s:%s in the model store is not whole, and passed by.", name, folder.name)
    return sorted(models, key=lambda model: model.creation_time, reverse=True)


def _folders(name: str) -> list[Path]:
    try:
        return sorted(folder for folder in (_store() / name).iterdir() if folder.is_dir())
    except OSError:
        return []


def clean_store(name: str) -> None:
    """Remove what killed processes left: ours beside the store, and versions of a name that were never finished.

    A version that has no `model.yaml` is none to BentoML, whose own commands fail at it.
    """
    for store in {_store(), _store().resolve()}:
        clean(store.parent, store.name)
    clean(_store() / name)
    for folder in _folders(name):
        if not (folder / _MODEL_YAML).exists() and time.time() - _last_change(folder) > _ABANDONED_SECONDS:
            logger.warning("%s:%s in the model store was never finished, and is removed.", name, folder.name)
            shutil.rmtree(folder, ignore_errors=True)


def _last_change(folder: Path) -> float:
    """Seconds since the epoch."""
    return max((path.lstat().st_mtime for path in (folder, *folder.rglob("*"))), default=0.0)


@contextmanager
def maker_of(name: str, waiting: Callable[[], None]) -> Iterator[None]:
    """Be the only process that makes a version of that name for as long as this lasts.

    Args:
        name: of the model.
        waiting: called if another one is at it.
    """
    with alone(_store().parent / "bento_kv-locks" / f"{name}.lock", waiting):
        yield


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

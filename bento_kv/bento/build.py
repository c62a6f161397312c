"""The build hook: a model reference that exports, proves and stores its decoder when BentoML asks for it."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import bentoml
from bentoml.exceptions import BentoMLException, NotFound
from bentoml.models import BentoModel

from bento_kv import __version__
from bento_kv.bento.store import MODULE, clean_store, get, maker_of, save_model, versions
from bento_kv.contract.files import MANIFEST_FILE, sha256
from bento_kv.contract.manifest import Manifest
from bento_kv.contract.verification import check_proof
from bento_kv.disk import clean_scratch, scratch
from bento_kv.errors import BentoKVError, ManifestError, SourceError
from bento_kv.source import DEMO, ModelSource, hide_progress_bars

# Below BentoML's own logger, so that `bentoml build` and `bentoml serve` show what takes its time.
logger = logging.getLogger("bentoml.bento_kv")


class RefusedDecoder(BentoKVError, BentoMLException):
    """A `VerifiedDecoder` that cannot be had. BentoML's commands print its kind of error as a sentence."""


@attrs.frozen(init=False)
class VerifiedDecoder(BentoModel):  # type: ignore[misc] # BentoML loads it lazily, so mypy sees no class
    """A model reference that exports, proves and stores its decoder when the service is built or first served.

    As a class attribute of a service it is resolved by BentoML: `bentoml build` calls `to_info`, which fails the build
    if the proof fails; `bentoml serve` calls `resolve`, which takes the stored decoder if it was made from the same
    source in the same way, and makes it if not. Inside a bento it is the packed decoder and nothing else.

    Args:
        source: a Hugging Face model directory, a hub id, `demo`; or a decoder directory or a model store tag, which are
            taken as they are if they are proven.
        precision: of the weights.
        kv_cache: element type of the cache, `fp32` or `int8`.
        max_length: positions of a slot, prompt and answer together; the model's own limit unless set. A decoder that is
            taken as it is has to have as many; `EngineConfig.max_length` makes slots shorter.
        name: in the model store; made from the source unless given.
        alias: under which a bento has it, of no other model in that bento; made from the other arguments unless given.
    """

    source: str = ""
    precision: str = "fp32"
    kv_cache: str = "fp32"
    max_length: int | None = None
    alias: str = ""

    def __init__(
        self,
        source: str,
        *,
        precision: str = "fp32",
        kv_cache: str = "fp32",
        max_length: int | None = None,
        name: str | None = None,
        alias: str | None = None,
    ) -> None:
        tag = name or store_name(source, precision, kv_cache, max_length)
        # Two models of one name, of different owners, may be in one bento.
        asked = hashlib.sha256(f"{source}|{precision}|{kv_cache}|{max_length}".encode()).hexdigest()
        self.__attrs_init__(  # type: ignore[call-arg] # the inherited field
            tag=tag,
            source=source,
            precision=precision,
            kv_cache=kv_cache,
            max_length=max_length,
            alias=alias or f"bento_kv.{tag}.{asked[:8]}",
        )

    def to_info(self, alias: str | None = None) -> Any:
        """What goes into `bento.yaml`: the exact version, under an alias that `resolve` finds inside the bento.

        Raises:
            RefusedDecoder: it cannot be made, its proof fails, or the stored one is damaged.
        """
        from bentoml._internal.bento.bento import BentoModelInfo

        with _refusing():
            return BentoModelInfo.from_bento_model(self._stored_or_made(), alias or self.alias)

    def resolve(self, base_path: Any = None, global_model_store: Any = None) -> bentoml.Model:
        """The stored decoder; `base_path` is BentoML's, for copying models out of the store.

        Raises:
            RefusedDecoder: as `to_info`.
        """
        with _refusing():
            model = self._packed() or self._stored_or_made()
        if base_path is not None:
            copied: bentoml.Model = BentoModel(model.tag).resolve(base_path)
            return copied
        return model

    def check(self) -> None:
        """Insist on the proof once, before workers start: BentoML starts a worker that fails again and again.

        Raises:
            RefusedDecoder: the decoder is damaged or not proven.
        """
        with _refusing():
            clean_scratch()
            self._insist(check_proof(Path(self.resolve().path))[0])

    def _packed(self) -> bentoml.Model | None:
        """The version that this bento was built with. In a bento the alias is known, elsewhere it is not."""
        from bentoml._internal.configuration.containers import BentoMLContainer

        tag = BentoMLContainer.model_aliases.get().get(self.alias)
        if tag is None:
            return None
        try:
            return bentoml.models.get(tag)
        except (NotFound, BentoMLException, ValueError) as error:
            raise SourceError(
                f"the decoder of this bento, {tag}, is not in the model store; import the bento again"
            ) from error

    def _stored_or_made(self) -> bentoml.Model:
        clean_scratch()
        clean_store(self.tag.name)
        path = Path(self.source).expanduser()
        if (path / MANIFEST_FILE).is_file():
            self._insist(Manifest.read(path))
            manifest = sha256(path / MANIFEST_FILE)
            stored = self._stored(lambda facts: facts.get("manifest_sha256") == manifest)
            return stored or save_model(str(self.tag), path)
        if not path.exists() and "/" not in self.source and self.source != DEMO:
            stored = get(self.source)
            self._insist(check_proof(Path(stored.path))[0])
            return stored
        return self._stored(self._is_mine) or self._made_by_one()

    def _made_by_one(self) -> bentoml.Model:
        """Two processes that need the same decoder make it once."""

        def waiting() -> None:
            logger.info("Another process makes a decoder of %s; waiting for it.", self.source)

        with maker_of(self.tag.name, waiting):
            return self._stored(self._is_mine) or self._make()

    def _insist(self, manifest: Manifest) -> None:
        """A decoder that is taken as it is has to be what was asked for."""
        for what, has, asked in (
            ("precision", manifest.precision, self.precision),
            ("KV cache", manifest.kv_cache, self.kv_cache),
        ):
            if has != asked:
                raise SourceError(f"{self.source}: its {what} is {has}, not {asked}; export it again")
        if self.max_length is not None and self.max_length > manifest.max_length:
            raise SourceError(
                f"{self.source} was exported for {manifest.max_length} positions, not {self.max_length}; give at most so "
                "many, or export it again"
            )

    def _stored(self, wanted: Callable[[Mapping[str, Any]], bool]) -> bentoml.Model | None:
        """The newest stored decoder of our name that was made as asked; a damaged one is refused, not replaced."""
        for model in versions(self.tag.name):
            if model.info.module != MODULE or not wanted(model.info.metadata):
                continue
            try:
                check_proof(Path(model.path))
            except BentoKVError as error:
                raise type(error)(f"{error} (`bentoml models delete {model.tag}` removes it from the store)") from error
            return model
        return None

    def _is_mine(self, facts: Mapping[str, Any]) -> bool:
        asked = {
            "precision": self.precision,
            "kv_cache": self.kv_cache,
            "asked_max_length": self.max_length or 0,
            "bento_kv": __version__,
        }
        if any(facts.get(key) != value for key, value in asked.items()):
            return False
        if self.source != DEMO and not Path(self.source).expanduser().is_dir():
            return facts.get("source") == self.source  # of the hub, which is not asked whether it has changed
        found = ModelSource.find(self.source)
        if any(facts.get(key) != value for key, value in _companions(found).items()):
            return False
        return facts.get("source") == found.name and facts.get("weights_sha256") == found.weights_sha256()

    def _make(self) -> bentoml.Model:
        """Export, prove, store: the build hook proper."""
        hide_progress_bars()
        try:
            from bento_kv.export.exporter import export
            from bento_kv.proof.parity import TorchReference
            from bento_kv.proof.proof import prove
        except ModuleNotFoundError as error:
            raise ManifestError(
                f"there is no stored decoder of {self.source}, and making one needs {error.name}: "
                "pip install 'bento-kv[export]'"
            ) from error

        with scratch("make") as folder:
            directory = folder / "decoder"
            logger.info("Making a decoder of %s; it is stored as %s and made once.", self.source, self.tag)
            export(
                self.source,
                directory,
                precision=self.precision,
                kv_cache=self.kv_cache,
                max_length=self.max_length,
                progress=_say,
            )
            logger.info("Proving it.")
            record = prove(directory, lambda manifest: TorchReference(self.source, manifest), progress=_say)
            model = save_model(str(self.tag), directory, metadata=asked_facts(self.source, self.max_length))
            logger.info("Proven in %s s, stored as %s.", record.seconds, model.tag)
            return model


@contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except RefusedDecoder:
        raise
    except BentoKVError as error:
        raise RefusedDecoder(str(error)) from error


def store_name(source: str, precision: str, kv_cache: str, max_length: int | None) -> str:
    """A name that the model store takes: lower case, no slashes, one for each way to make a decoder of the source."""
    stem = re.sub(r"[^a-z0-9._-]+", "-", source.rstrip("/").split("/")[-1].lower()).strip("-._") or "decoder"
    ways = [*([f"kv-{kv_cache}"] if kv_cache != "fp32" else []), *([str(max_length)] if max_length else [])]
    return "-".join(["bento-kv", stem, precision, *ways])


def asked_facts(source: str, max_length: int | None) -> dict[str, str | int]:
    """What tells a stored decoder that was made for a `VerifiedDecoder`, besides what its manifest says."""
    return {"asked_max_length": max_length or 0, **_companions(ModelSource.find(source))}


def _companions(found: ModelSource) -> dict[str, str]:
    """Of a model of the hub the id says it, which is not asked whether it has changed."""
    return {} if found.revision is not None else {"companions_sha256": found.companions_sha256()}


def _say(what: str) -> None:
    logger.info("%s", what)

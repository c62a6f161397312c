"""The build hook: a model reference that exports, proves and stores its decoder when BentoML asks for it."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import bentoml
from bentoml.exceptions import BentoMLException, NotFound
from bentoml.models import BentoModel

from bento_kv.bento.again import for_arguments, for_export, for_program
from bento_kv.bento.asked import DECODER_ALIAS, Asked
from bento_kv.bento.store import MODULE, clean_store, get, maker_of, save_model, versions
from bento_kv.contract.files import MANIFEST_FILE, sha256
from bento_kv.contract.manifest import Manifest
from bento_kv.contract.verification import Verification, check_proof, failure
from bento_kv.contract.weight_options import QuantizationOptions
from bento_kv.disk import clean_scratch, scratch
from bento_kv.errors import BentoKVError, ManifestError, SourceError, VerificationError
from bento_kv.source import DEMO, hide_progress_bars

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
        precision: of the weights: `fp32`, `int8`, `int4`, or `auto`, the one of the fewest bits whose proof passes. Unless
            set, a model is exported to fp32, and a decoder that is taken as it is may have any.
        kv_cache: element type of the cache, `fp32` or `int8`; the same unless set.
        max_length: positions of a slot; the model's own limit unless set. A decoder that is taken as it is has to have as
            many; `EngineConfig.max_length` makes slots shorter.
        name: in the model store; made from the source unless given.
        alias: under which a bento has it, of no other model in that bento; made from the other arguments unless given.
        quantization: the fields of `QuantizationOptions`, by name, such as `block_size=64`.

    Raises:
        RefusedDecoder: an option of quantization has a value that it may not have.
    """

    asked: Asked = attrs.field(kw_only=True)
    alias: str = attrs.field(kw_only=True)

    def __init__(
        self,
        source: str,
        *,
        precision: str | None = None,
        kv_cache: str | None = None,
        max_length: int | None = None,
        name: str | None = None,
        alias: str | None = None,
        **quantization: Any,
    ) -> None:
        with _refusing():
            how = QuantizationOptions(**quantization)
        asked = Asked(source=source, precision=precision, kv_cache=kv_cache, max_length=max_length, quantization=how)
        tag = name or asked.name()
        # Two models of one name, of different owners, may be in one bento.
        alias = alias or f"bento_kv.{tag}.{asked.digest()}"
        self.__attrs_init__(tag=tag, asked=asked, alias=alias)  # type: ignore[call-arg] # the inherited field

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
            self.asked.insist(check_proof(Path(self.resolve().path))[0])

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
        source = self.asked.source
        path = Path(source).expanduser()
        if (path / MANIFEST_FILE).is_file():
            return self._of_directory(path)
        if not path.exists() and "/" not in source and source != DEMO:
            self.asked.ask_nothing_of_the_export()
            stored = get(source)
            self.asked.insist(check_proof(Path(stored.path))[0])
            return stored
        self.asked.quantization.check(self.asked.precision_to_make)
        clean_store(self.tag.name)
        return self._stored(self.tag.name, self.asked.made) or self._made_by_one()

    def _of_directory(self, path: Path) -> bentoml.Model:
        """What stands in a decoder directory, under its precision's name unless it was given one."""
        self.asked.ask_nothing_of_the_export()
        manifest = Manifest.read(path)
        self.asked.insist(manifest)
        name = self.asked.name(manifest) if self.tag.name == self.asked.name() else str(self.tag)
        clean_store(bentoml.Tag.from_str(name).name)
        sha = sha256(path / MANIFEST_FILE)
        stored = self._stored(bentoml.Tag.from_str(name).name, lambda facts: facts.get("manifest_sha256") == sha)
        return stored or save_model(name, path)

    def _made_by_one(self) -> bentoml.Model:
        """Two processes that need the same decoder make it once."""

        def waiting() -> None:
            logger.info("Another process makes a decoder of %s; waiting for it.", self.asked.source)

        with maker_of(self.tag.name, waiting):
            return self._stored(self.tag.name, self.asked.made) or self._make()

    def _stored(self, name: str, wanted: Callable[[Mapping[str, Any]], bool]) -> bentoml.Model | None:
        """The newest stored decoder of a name that was made as asked; a damaged one is refused, not replaced."""
        for model in versions(name):
            if model.info.module != MODULE or not wanted(model.info.metadata):
                continue
            try:
                check_proof(Path(model.path))
            except BentoKVError as error:
                raise type(error)(f"{error} (`bentoml models delete {model.tag}` removes it from the store)") from error
            return model
        return None

    def _make(self) -> bentoml.Model:
        """Export, prove, store: the build hook proper."""
        asked = self.asked
        hide_progress_bars()
        try:
            from bento_kv.proof.attempts import export_proven
        except ModuleNotFoundError as error:
            raise ManifestError(
                f"there is no stored decoder of {asked.source}, and making one needs {error.name}: "
                "pip install 'bento-kv[export]'"
            ) from error

        with scratch("make") as folder:
            directory = folder / "decoder"
            logger.info("Making a decoder of %s; it is stored as %s and made once.", asked.source, self.tag)
            record = export_proven(
                asked.source,
                directory,
                precision=asked.precision_to_make,
                quantization=asked.quantization,
                kv_cache=asked.kv_cache_to_make,
                max_length=asked.max_length,
                progress=_say,
            )
            if not record.passed:
                raise self._refused(record)
            model = save_model(str(self.tag), directory, metadata=asked.facts())
            precision = model.info.metadata["precision"]
            logger.info("Proven in %s, in %s s, stored as %s.", precision, record.seconds, model.tag)
            return model

    def _refused(self, record: Verification) -> RefusedDecoder:
        """Why a decoder that was made is not taken, and what to ask for instead."""
        asked, error = self.asked, failure(self.asked.source, record)
        if not error.remedies:
            return RefusedDecoder(str(error))
        given = {"precision": asked.precision, "kv_cache": asked.kv_cache, **asked.quantization.given}
        options = {name: value for name, value in given.items() if value is not None}
        if self.alias == DECODER_ALIAS:
            return RefusedDecoder(f"{error}\n{for_arguments(options, error.remedies, sys.argv)}")
        return RefusedDecoder(f"{error}\n{for_program(asked.source, options, error.remedies)}")


@contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except RefusedDecoder:
        raise
    except VerificationError as error:
        raise RefusedDecoder(f"{error}\n{for_export(error.remedies)}" if error.remedies else str(error)) from error
    except BentoKVError as error:
        raise RefusedDecoder(str(error)) from error


def _say(what: str) -> None:
    logger.info("%s", what)

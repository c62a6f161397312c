"""What a `VerifiedDecoder` asks for: how a decoder of it is called, told from others, and compared with one that is there."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bento_kv import __version__
from bento_kv.contract.manifest import Manifest
from bento_kv.contract.precision import AUTO
from bento_kv.contract.weight_options import QuantizationOptions
from bento_kv.errors import SourceError
from bento_kv.source import DEMO, ModelSource

# Under which a bento of the packaged service has its decoder.
DECODER_ALIAS = "bento_kv.decoder"
# What a model is made to, unless asked otherwise. A decoder that is there already is what it is.
_PRECISION = "fp32"
_KV_CACHE = "fp32"
_LONGEST_NAME = 63  # that the model store takes


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """See `VerifiedDecoder` for the fields; None is what was not said."""

    source: str
    precision: str | None = None
    kv_cache: str | None = None
    max_length: int | None = None
    quantization: QuantizationOptions = field(default_factory=QuantizationOptions)

    @property
    def precision_to_make(self) -> str:
        """What to export a model to."""
        return self.precision or _PRECISION

    @property
    def kv_cache_to_make(self) -> str:
        """The same of the cache."""
        return self.kv_cache or _KV_CACHE

    def name(self, manifest: Manifest | None = None) -> str:
        """A name that the model store takes: lower case, no slashes, one for each way to make a decoder of the source.

        Args:
            manifest: of a decoder that is taken as it is, which says how it was made.
        """
        precision = manifest.precision if manifest else self.precision_to_make
        kv_cache = manifest.kv_cache if manifest else self.kv_cache_to_make
        options = _digest(_said(self.quantization)) if self.quantization.given else ""
        ways = (
            precision,
            f"kv-{kv_cache}" if kv_cache != _KV_CACHE else "",
            str(self.max_length or ""),
            options,
        )
        tail = "-".join(filter(None, ways))
        stem = re.sub(r"[^a-z0-9._-]+", "-", self.source.rstrip("/").split("/")[-1].lower()).strip("-._") or "decoder"
        return f"bento-kv-{stem[: _LONGEST_NAME - len(tail) - len('bento-kv--')]}-{tail}"

    def digest(self) -> str:
        """Eight characters that differ where anything that is asked for does."""
        asked = (self.source, self.precision, self.kv_cache, self.max_length, _said(self.quantization))
        return _digest("|".join(map(str, asked)))

    def facts(self) -> dict[str, str | int]:
        """What tells a stored decoder that was made for this, besides what its manifest says.

        Raises:
            SourceError: there is no such source.
            ExportError: the text to calibrate on cannot be read.
        """
        return {**self._ways(), **_companions(ModelSource.find(self.source))}

    def made(self, facts: Mapping[str, Any]) -> bool:
        """Whether the facts are those of a decoder that was made for this, by this version, of what the source is now.

        Raises:
            SourceError, ExportError: as `facts`.
        """
        asked = {"kv_cache": self.kv_cache_to_make, "bento_kv": __version__, **self._ways()}
        if any(facts.get(key) != value for key, value in asked.items()):
            return False
        if self.source != DEMO and not Path(self.source).expanduser().is_dir():
            return facts.get("source") == self.source  # of the hub, which is not asked whether it has changed
        found = ModelSource.find(self.source)
        if any(facts.get(key) != value for key, value in _companions(found).items()):
            return False
        return facts.get("source") == found.name and facts.get("weights_sha256") == found.weights_sha256()

    def insist(self, manifest: Manifest) -> None:
        """A decoder that is there has to be what was asked for.

        Raises:
            SourceError: it is another.
        """
        for what, has, asked in (
            ("precision", manifest.precision, None if self.precision == AUTO else self.precision),
            ("KV cache", manifest.kv_cache, self.kv_cache),
        ):
            if asked not in (has, None):
                raise SourceError(
                    f"{self.source}: its {what} is {has}, not {asked}; leave that out, or export it again"
                )
        if self.max_length is not None and self.max_length > manifest.max_length:
            raise SourceError(
                f"{self.source} was exported for {manifest.max_length} positions, not {self.max_length}; give at most so "
                "many, or export it again"
            )

    def ask_nothing_of_the_export(self) -> None:
        """A decoder that is taken as it is was exported before.

        Raises:
            SourceError: something is asked for that only an export can do.
        """
        given = [f"precision {AUTO}"] if self.precision == AUTO else []
        given += self.quantization.given
        if given:
            raise SourceError(
                f"{self.source} is a decoder, and {given[0]} is for making one; leave it out, or give the model that the "
                "decoder was exported from"
            )

    def _ways(self) -> dict[str, str | int]:
        options = self.quantization.given
        if (text := self.quantization.calibration_sha256()) is not None:
            options["calibration"] = text
        return {
            "asked_precision": self.precision_to_make,
            "asked_max_length": self.max_length or 0,
            "asked_quantization": _listed(options),
        }


def _said(quantization: QuantizationOptions) -> str:
    return _listed(quantization.given)


def _listed(options: Mapping[str, Any]) -> str:
    return ",".join(f"{name}={value}" for name, value in options.items())


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _companions(found: ModelSource) -> dict[str, str]:
    """Of a model of the hub the id says it, which is not asked whether it has changed."""
    return {} if found.revision is not None else {"companions_sha256": found.companions_sha256()}

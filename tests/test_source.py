"""Where a decoder says that its model stands."""

from __future__ import annotations

from pathlib import Path

from bento_kv.contract.manifest import Source
from bento_kv.source import DEMO, ModelSource, origin_of


def test_the_origin_is_the_last_source(tmp_path: Path) -> None:
    decoder, folder = tmp_path / "decoder", tmp_path / "model"
    decoder.mkdir()
    for source in (
        ModelSource(str(folder), folder),
        ModelSource("owner/name", folder, revision="0" * 40),
        ModelSource(str(folder), folder),
        ModelSource(DEMO, folder),
    ):
        source.write_origin(decoder)
        recorded = Source(id=source.name, revision=source.revision, weights_sha256="0" * 64)
        assert origin_of(decoder, recorded) == source.id

"""Records: frozen, exact to the field, and written to a file in one go or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from bento_kv.contract.files import open_plain
from bento_kv.disk import write_whole
from bento_kv.errors import IntegrityError, ManifestError


class Record(BaseModel):
    """What is read from JSON and checked; an unknown field is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


R = TypeVar("R", bound=Record)


def read_record(record: type[R], path: Path, *, remedy: str) -> R:
    """Read and validate.

    Args:
        record: its class.
        path: of the JSON document.
        remedy: what writes a right one, for the error's message.

    Raises:
        ManifestError: there is no such file, it is not a plain one, or it is not valid.
    """
    try:
        with open_plain(path.parent, path.name) as file:
            return record.model_validate_json(file.read().decode("utf-8"))
    except FileNotFoundError:
        raise ManifestError(f"{path.parent} has no {path.name}; {remedy}") from None
    except IntegrityError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path} cannot be read: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        raise ManifestError(f"{path} is not valid at {where}: {first['msg']}; {remedy}") from None


def write_record(record: Record, path: Path) -> None:
    """Write as JSON; who reads meanwhile sees the old file or the new one. Raises ManifestError."""
    document = record.model_dump(mode="json", by_alias=True)
    try:
        write_whole(path, (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode("utf-8"))
    except OSError as error:
        raise ManifestError(f"{path} cannot be written: {error.strerror}") from error

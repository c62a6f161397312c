"""Which packages made a decoder, and proved it."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib import metadata


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """Installed versions, Python's and bento_kv's among them; packages that are not installed are left out."""
    from bento_kv import __version__

    # Our own is known even where the package stands in a folder and was not installed, as inside a bento.
    found = {"python": platform.python_version(), "bento-kv": __version__}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found

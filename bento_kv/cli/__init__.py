"""The command line, `bento-kv`. Heavy parts are imported by the command that needs them."""

from bento_kv.cli import diagnosing, making, proving, running
from bento_kv.cli.group import main

__all__ = ["diagnosing", "main", "making", "proving", "running"]

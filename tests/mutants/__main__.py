"""`python -m tests.mutants [--write]`: run all mutants and print the table; `--write` puts it into docs/reference/mutants.md."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def main() -> int:
    """0 if all was found and named rightly, else 1."""
    from tests.mutants.decoders import Decoders
    from tests.mutants.outcomes import promised, run_all
    from tests.mutants.table import DOCUMENT, document, totals

    if sys.argv[1:] not in ([], ["--write"]):
        print("usage: python -m tests.mutants [--write]", file=sys.stderr)
        return 2
    expected = promised()
    with tempfile.TemporaryDirectory() as folder:
        decoders = Decoders()
        outcomes = []
        for outcome in run_all(decoders, Path(folder)):
            outcomes.append(outcome)
            if sys.stderr.isatty():
                print(
                    f"\r{len(outcomes)} of {len(expected)}",
                    end="\n" * (len(outcomes) == len(expected)),
                    file=sys.stderr,
                )
    text = document(outcomes, expected)
    print(text)
    if sys.argv[1:]:
        DOCUMENT.write_text(text, encoding="utf-8")
    wrong = [(o, e) for o, e in zip(outcomes, expected, strict=True) if o != e]
    for outcome, promise in wrong:
        print(f"said: {outcome}\nhas to be said: {promise}", file=sys.stderr)
    print(totals(outcomes, expected), file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

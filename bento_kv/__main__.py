"""`python -m bento_kv` is `bento-kv`."""

from bento_kv.cli import main

if __name__ == "__main__":
    main()

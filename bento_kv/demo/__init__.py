"""The embedded demo model: a tiny Llama, trained from scratch, whose answers a test can check.

It recalls codes given earlier in a conversation, adds numbers up to 99 + 99, copies and reverses words, counts, knows a small
table of facts, and chats politely. See `README.md` beside this file for how it was trained and how well it does.
"""

from pathlib import Path

__all__ = ["path"]


def path() -> Path:
    """The directory of the embedded model, in the layout of Hugging Face `save_pretrained`."""
    return Path(__file__).parent / "model"

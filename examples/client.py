"""A chat with a server over OpenAI's API, streamed; `pip install openai`.

bentoml serve &
python examples/client.py http://localhost:3000 "What is 17 + 25?"
"""

from __future__ import annotations

import sys

import openai


def main(url: str, question: str) -> None:
    """Print the answer as it comes."""
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="unused")
    model = client.models.list().data[0].id
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        stream=True,
        extra_body={"max_time": 60},  # seconds; beyond OpenAI's fields
    )
    for chunk in stream:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()


if __name__ == "__main__":
    main(*sys.argv[1:])

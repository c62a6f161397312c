"""A frame on a terminal, 80 columns wide or more."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable, Iterator

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from bento_kv.errors import MetricsError
from bento_kv.top.frame import Frame, Quantiles, frame
from bento_kv.top.scrape import scrape

BAR = 40  # characters
BLOCKS = "▁▂▃▄▅▆▇█"
STYLES = {"ready": "bold green", "not ready": "bold yellow", "not alive": "bold red"}


def frames(server: str, interval: float) -> Iterator[Frame]:
    """A frame after each interval, without end.

    Raises:
        MetricsError: the server cannot be looked at.
    """
    before = scrape(server)
    while True:
        time.sleep(interval)
        now = scrape(server)
        yield frame(server, before, now)
        before = now


def watch(server: str, interval: float, console: Console) -> None:
    """Show frames until interrupted. A server that goes away while it is watched may come back.

    Raises:
        MetricsError: it cannot be looked at to begin with.
    """
    history: deque[float] = deque(maxlen=BAR)
    source = frames(server, interval)
    shown = render(next(source), history)
    with Live(shown, console=console, screen=True, auto_refresh=False) as live:
        while True:
            try:
                shown = render(next(source), history)
                live.update(shown, refresh=True)
            except MetricsError as error:
                live.update(Group(Text(str(error), style="bold red"), shown), refresh=True)
                time.sleep(interval)
                source = frames(server, interval)  # one that has raised has ended


def render(view: Frame, history: deque[float] | None = None) -> RenderableType:
    """The frame; `history` of generation rates gets one more, and is drawn."""
    head = Text.assemble(
        ("bento_kv ", "bold"), f"{view.server}  ", (view.state, STYLES[view.state]), f"  proof {view.manifest[:12]} "
    )
    head.append("passed" if view.proven else "not passed", "green" if view.proven else "bold red")
    parts: list[RenderableType] = [head, Text(), _load(view), Text(), _speed(view, history), Text(), _latencies(view)]
    ends = "  ".join(f"{reason} {count}" for reason, count in sorted(view.ended.items()))
    late = "  ".join(f"{deadline} {count}" for deadline, count in sorted(view.timeouts.items()))
    parts += [Text(), Text(f"ended      {ends}"), Text(f"timeouts   {late}")]
    return Group(*parts)


def _load(view: Frame) -> RenderableType:
    lines = Text()
    lines.append("slots      ").append_text(_bar(view.running, view.slots)).append(
        f"  {view.running} of {view.slots}\n"
    )
    most = max(view.slots, view.waiting)
    lines.append("queue      ").append_text(_bar(view.waiting, most, "yellow")).append(f"  {view.waiting} waiting\n")
    part = view.cache_used / view.cache_total if view.cache_total else 0.0
    lines.append("KV cache   ").append_text(_bar(view.cache_used, view.cache_total, "cyan")).append(f"  {part:.1%}")
    return lines


def _speed(view: Frame, history: deque[float] | None) -> RenderableType:
    hits = "" if view.prefix_hit_ratio is None else f", {view.prefix_hit_ratio:.0%} of looked up ones cached"
    lines = Text()
    lines.append(f"generated  {view.generation_rate:,.0f} tokens/s\n", "bold")
    lines.append(f"prompts    {view.prompt_rate:,.0f} tokens/s{hits}\n")
    lines.append(f"requests   {view.request_rate:,.1f} ended/s")
    if history is not None:
        history.append(view.generation_rate)
        lines.append(f"\n           {sparkline(history)}", "green")
    return lines


def _latencies(view: Frame) -> RenderableType:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for name in ("seconds", "p50", "p95"):
        table.add_column(name, justify="left" if name == "seconds" else "right", min_width=8)
    for name, values in (
        ("queue", view.queue),
        ("first token", view.first_token),
        ("next token", view.next_token),
        ("whole answer", view.whole),
    ):
        table.add_row(name, *_seconds(values))
    return table


def _seconds(values: Quantiles) -> tuple[str, str]:
    p50, p95 = ("-" if value is None else f"{value:.3f}" for value in (values.p50, values.p95))
    return p50, p95


def _bar(value: float, total: float, style: str = "green") -> Text:
    filled = 0 if total <= 0 else min(BAR, math.ceil(BAR * value / total))
    return Text.assemble(("█" * filled, style), ("░" * (BAR - filled), "dim"))


def sparkline(values: Iterable[float]) -> str:
    """A line of blocks, the highest value the tallest."""
    numbers = list(values)
    top = max(numbers, default=0.0)
    return "".join(BLOCKS[min(len(BLOCKS) - 1, int(len(BLOCKS) * value / top)) if top else 0] for value in numbers)

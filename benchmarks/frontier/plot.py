"""A frontier as a picture: for each cell, tokens a second over divergence. Up and left is better."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from benchmarks.frontier.results import Frontier, Point, unbeaten
from benchmarks.report import OURS

matplotlib.rcParams["svg.hashsalt"] = "bento_kv"  # the same result gives the same file

COLOURS = {OURS: "#d62728", "llama.cpp": "#1f77b4", "OpenVINO": "#17becf", "genai": "#2ca02c"}
LEAST = 1e-5  # nats a token; what loses less stands there


def plot(found: Frontier, file: Path) -> None:
    """Write the picture; its format is that of the file's suffix."""
    figure = Figure(figsize=(4.8 * len(found.cells), 4.4), layout="constrained")
    for ax, (phase, rows) in zip(figure.subplots(1, len(found.cells), squeeze=False)[0], found.cells, strict=True):
        points = found.points(phase, rows)
        _panel(ax, points)
        ax.set_title("prompt of 256 tokens" if phase == "prefill" else f"decode, {rows} rows at 256", fontsize=9)
    figure.suptitle(f"{found.model}, {found.record.machine['processor']}: up and left is better", fontsize=9)
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)


def _panel(ax: Any, points: list[Point]) -> None:
    best = sorted(unbeaten(points), key=lambda point: point.kl)
    ax.step([_place(p) for p in best], [p.speed for p in best], where="post", color="black", lw=0.8, ls=":")
    for point in points:
        engine, _, precision = point.contender.partition(" ")
        ax.plot(
            _place(point),
            point.speed,
            "o",
            color=COLOURS[engine],
            ms=7 if engine == OURS else 5,
            fillstyle="full" if point in best else "none",
        )
        ax.annotate(
            f"{engine} {precision}", (_place(point), point.speed), xytext=(4, 3), textcoords="offset points", fontsize=6
        )
    ax.set_xscale("log")
    ax.set_ylim(bottom=0)
    ax.set_xlabel("divergence from fp32, nats a token")
    ax.set_ylabel("tokens/s")
    ax.grid(alpha=0.3)


def _place(point: Point) -> float:
    return max(point.kl, LEAST)

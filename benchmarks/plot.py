"""A run as a picture: for each model, prefill by prompt length and decode by rows, a line an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from benchmarks.report import OURS, limit
from benchmarks.results import Phase, Record, Row
from benchmarks.shapes import SHAPES

matplotlib.rcParams["svg.hashsalt"] = "bento_kv"  # the same record gives the same file

# Ours in warm colours, `full` dashed, an int8 cache dashed and dotted; peers in cold ones.
STYLE = {
    "bento_kv-int4-batch": ("#d62728", "-"),
    "bento_kv-int4-full": ("#d62728", "--"),
    "bento_kv-int4-batch-kv_int8": ("#d62728", "-."),
    "bento_kv-int8-batch": ("#ff7f0e", "-"),
    "bento_kv-int8-full": ("#ff7f0e", "--"),
    "bento_kv-int8-batch-kv_int8": ("#ff7f0e", "-."),
    "bento_kv-fp32-batch": ("#bc8f00", "-"),
    "bento_kv-fp32-full": ("#bc8f00", "--"),
    "llama.cpp": ("#1f77b4", "-"),
    "llama.cpp-flash": ("#1f77b4", "--"),
    "openvino": ("#17becf", "-"),
    "genai": ("#2ca02c", "-"),
    "bento_kv-growing": ("#e377c2", "-"),
    "transformers": ("#7f7f7f", "-"),
    "optimum": ("#9467bd", "-"),
}


def plot(record: Record, file: Path) -> None:
    """Write the picture; its format is that of the file's suffix."""
    models = list(dict.fromkeys(row.model for row in record.rows))
    panels: list[tuple[Phase, int | None]] = [("prefill", None)]
    panels += [("decode", context) for context in dict.fromkeys(r.context for r in record.rows if r.phase == "decode")]
    figure = Figure(figsize=(4.6 * len(panels), 3.6 * len(models) + 0.8), layout="constrained")
    grid = figure.subplots(len(models), len(panels), squeeze=False)
    for model, axes in zip(models, grid, strict=True):
        for (phase, context), ax in zip(panels, axes, strict=True):
            _panel(ax, record, model, phase, context)
    handles = {label: handle for ax in grid.flat for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    figure.suptitle(f"{record.machine['processor']}, {record.threads} threads, {record.created[:10]}", fontsize=9)
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)


def _panel(ax: Any, record: Record, model: str, phase: Phase, context: int | None) -> None:
    rows = [r for r in record.rows if r.model == model and r.phase == phase and context in (None, r.context)]
    for engine in dict.fromkeys(row.engine for row in rows):
        colour, line = STYLE[engine]
        mine = [row for row in rows if row.engine == engine]
        x = [_place(row) for row in mine]
        width = 2.0 if engine.startswith(OURS) else 1.2
        ax.plot(x, [row.median for row in mine], line, color=colour, label=engine, lw=width, marker="o", ms=3)
        ax.fill_between(x, [r.minimum for r in mine], [r.maximum for r in mine], color=colour, alpha=0.08, lw=0)
    if context is not None:
        x = sorted({row.rows for row in rows})
        limits = [limit(record, model, "int4", ("decode", count, context), "read") or 0.0 for count in x]
        ax.plot(x, limits, ":", color="black", lw=1, label="limit of memory, int4")
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xticks(sorted({_place(row) for row in rows}))
    ax.xaxis.set_major_formatter(ScalarFormatter())
    ax.set_xlabel("tokens of the prompt" if phase == "prefill" else f"rows, context {context}")
    ax.set_ylabel("tokens/s")
    ax.set_title(f"{SHAPES[model].name}'s shape: {phase}", fontsize=9)
    ax.grid(alpha=0.3)


def _place(row: Row) -> int:
    return row.context if row.phase == "prefill" else row.rows

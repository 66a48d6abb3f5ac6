"""The front page of a report, README.md: what ran where, what it says, and links to every table and figure."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from bench.reports.caption import sample_sizes, watermark
from bench.reports.conclusions import conclusions
from bench.reports.escape import markdown_text
from bench.reports.frames import Run, dig
from bench.schema import METRICS

__all__ = ["page", "run_card", "write_page"]


def run_card(run: Run) -> str:
    """Device, versions, commit, sizes and seeds as a Markdown table."""
    versions = sorted(
        {
            f"{name} {version}"
            for r in run.records
            for name, version in (dig(r, "provenance", "versions") or {}).items()
            if version is not None
        }
    )
    states = Counter(str(r.get("status")) for r in run.records)
    facts = {
        "device": run.distinct("provenance", "device"),
        "processor": run.distinct("provenance", "cpu"),
        "threads": run.distinct("provenance", "threads"),
        "commit": run.distinct("provenance", "commit"),
        "versions": versions,
        "suite": run.distinct("suite"),
        "models": run.distinct("cell", "model"),
        "seeds": run.distinct("cell", "seed"),
        "sample sizes": [sample_sizes(run.rows, list(METRICS))],
        "cells": [f"{states[s]} {s}" for s in sorted(states)],
    }
    lines = [(name, ", ".join(map(markdown_long, values)) or "–") for name, values in facts.items()]  # noqa: RUF001
    return str(tabulate(lines, ("", ""), "pipe", disable_numparse=True))


def page(run: Run, written: Sequence[Path], out: Path) -> str:
    """The text of the page; links are relative to `out`."""
    marks = watermark(run)
    warning = f"**{marks}**: not for publication.\n\n" if marks else ""
    links = sorted(os.path.relpath(path, out).replace(os.sep, "/") for path in written)
    tables = [link for link in links if link.startswith("tables/") and link.endswith(".md")]
    figures = [link for link in links if link.endswith(".png")]
    sections = [
        "# Report",
        warning + run_card(run),
        "## What it says",
        "\n".join(f"- {markdown_long(text)}" for text in conclusions(run)) or "Nothing has been measured yet.",
        "## Tables",
        "\n".join(f"- [{_stem(t)}]({t}) ([CSV]({t[:-3]}.csv), [LaTeX]({t[:-3]}.tex))" for t in tables) or "None yet.",
        "## Figures",
        "\n\n".join(map(_figure, figures)) or "None.",
    ]
    return "\n\n".join(sections) + "\n"


def markdown_long(text: str) -> str:
    """A sentence of ours that quotes records, escaped word by word so that it is not cut."""
    return " ".join(markdown_text(word) for word in text.split(" "))


def _figure(link: str) -> str:
    name, base = _stem(link), link.removesuffix(".png")
    return f"### {name}\n\n![{name}]({link})\n\n[SVG]({base}.svg), [data]({base}.csv)"


def _stem(link: str) -> str:
    return link.rpartition("/")[2].rpartition(".")[0]


def write_page(out: Path, run: Run, written: Sequence[Path]) -> Path:
    path = out / "README.md"
    path.write_text(page(run, written, out), encoding="utf-8")
    return path

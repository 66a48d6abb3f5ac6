"""The records of `rates.jsonl`: measured in processes beside each other, kept under a key, written whole.

A method that fails has a record of status "error", with its reason, and is tried again by the next run.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any

from bench.key import file_hashes, key_of, source_hash, sources_of
from bench.provenance import provenance, versions
from bench.rates import measure, sources
from bench.reports.lines import read_lines
from bench.reports.rates import FILE

__all__ = ["run"]


def run(
    out: Path,
    methods: Sequence[str],
    names: Sequence[str],
    workers: int,
    told: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """The records of `methods` on the sources `names`, added to `out`/rates.jsonl; what has the same key is reused."""
    from quant import METHODS

    wanted = {(name, method): key(method, name) for name in names for method in methods}
    there = read_lines(out / FILE)
    known = {record["key"]: record for record in there if record["status"] != "error"}
    others = [record for record in there if (record["source"], record["method"]) not in wanted]
    todo = [pair for pair, k in wanted.items() if k not in known]
    origin = provenance("cpu", 1)
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_one_thread) as pool:
        for name in dict.fromkeys(name for name, _ in todo):
            pool.submit(_prepare, name).result()  # what is kept in a cache is gathered once
        for at, (pair, found) in enumerate(zip(todo, pool.map(_measured, todo), strict=True), 1):
            known[wanted[pair]] = {
                "schema": 1,
                "key": wanted[pair],
                **found,
                "settings": METHODS[pair[1]].settings(),
                "provenance": origin,
            }
            told(f"{at} of {len(todo)}: {pair[1]} on {pair[0]}")
            if at % 50 == 0:
                _write(out, [*known.values(), *others])
    kept = [known[k] for k in wanted.values()]
    _write(out, [*kept, *others])
    return kept


def _write(out: Path, lines: Any) -> None:
    out.mkdir(parents=True, exist_ok=True)
    part = out / f".{FILE}.part"
    part.write_text("".join(json.dumps(r, allow_nan=False) + "\n" for r in lines), encoding="utf-8")
    os.replace(part, out / FILE)


def key(method: str, name: str) -> str:
    """What the figures depend on: the method's settings and sources, the samples, the libraries."""
    from quant import METHODS

    quantizer = METHODS[method]
    own = Path(measure.__file__).read_text(encoding="utf-8") + Path(sources.__file__).read_text(encoding="utf-8")
    parts = [method, name, quantizer.settings(), source_hash(_sources(quantizer)), own, _content(name), versions()]
    return key_of({"parts": parts})


def _sources(quantizer: object) -> dict[str, str]:
    return {path: h for path, h in sources_of(quantizer, file_hashes()).items() if not path.startswith("bench/")}


@cache
def _content(name: str) -> Any:
    return sources.source(name).content()


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _measured(pair: tuple[str, str]) -> dict[str, Any]:
    from quant import METHODS

    name, method = pair
    return measure.measure(method, METHODS[method], _kept(name))


def _prepare(name: str) -> None:
    found = sources.source(name)
    if found.known is not None:
        found.known(frozenset(("fisher",)))


@cache
def _kept(name: str) -> sources.Source:
    """The source with its samples drawn once in this process."""
    import dataclasses

    source = sources.source(name)
    samples = list(source.draw())
    known = None if source.known is None else cache(source.known)
    return dataclasses.replace(source, draw=partial(iter, samples), known=known)

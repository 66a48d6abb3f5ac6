"""The commands behind `bench`: each takes the parsed arguments and returns the exit code."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from rich import box
from rich.console import Console
from rich.table import Table

from bench import catalog, compare, doctor
from bench import show as showing
from bench.child import EXECUTOR, warm_up
from bench.errors import UsageError
from bench.estimate import Estimate, duration
from bench.experiment import Experiment, Selection, expand, find
from bench.experiment_file import load
from bench.plan import Fingerprints, make_plan, retried
from bench.provenance import default_threads
from bench.records import Record, cell_of
from bench.schedule import count_workers
from bench.schema import Cell
from bench.select import seeds, split
from bench.session import Options, Reports, report, run_session

__all__ = ["compare_command", "doctor_command", "explain_command", "list_command", "report_command", "run_command"]


def run_command(args: argparse.Namespace) -> int:
    """bench run"""
    threads = args.threads or default_threads()
    path = _short(find(args.experiment))
    rerun = retried(args.retry)
    seed_list = seeds(args.seeds) if args.seeds else ()
    if not args.dry_run:
        warm_up(EXECUTOR)  # loads its libraries while this process loads its own
    names = catalog.known_names()
    experiment = _load(path)
    selection = Selection(
        methods=_patterns(args.methods),
        models=_patterns(args.models),
        tasks=_patterns(args.tasks),
        orders=_patterns(args.orders),
        seeds=seed_list,
        replace=tuple((spec, catalog.model_kind(spec)) for spec in args.model or ()),
    )
    cells = expand(experiment, names, selection)
    out = args.out or showing.RESULTS / "local" / experiment.name
    if args.dry_run:
        return _dry_run(cells, out, threads)
    options = Options(
        out,
        device=args.device,
        threads=threads,
        timeout_s=args.timeout,
        force=args.force,
        rerun=rerun,
        plots=args.plots,
        past=lambda: showing.past(out),
    )
    return run_session(experiment, cells, _fingerprints(), _reports(), options)


def _short(path: Path) -> Path:
    """`path` as seen from here, when it lies below: for messages."""
    return path.relative_to(Path.cwd()) if path.is_absolute() and path.is_relative_to(Path.cwd()) else path


def _patterns(text: str | None) -> tuple[str, ...]:
    return split(text) if text else ()


def _load(path: Path) -> Experiment:
    from bench.protocol import Protocol

    return load(path, catalog.known_names(), Protocol, catalog.model_kind)


def _fingerprints() -> Fingerprints:
    from quant.peers import find_method

    return Fingerprints(find_method, catalog.model_fingerprint, catalog.data_fingerprint)


def _reports() -> Reports:
    from bench.reports import terminal_table, write

    return Reports(write, terminal_table)


def _dry_run(cells: Sequence[Cell], out: Path, threads: int) -> int:
    """Print the cells and how long they should take; nothing is written."""
    estimate = Estimate(showing.past(out))
    for cell in cells:
        print(f"{cell}  {duration(estimate.cell_s(cell))}")
    workers = count_workers(cells, threads, psutil.virtual_memory().available)
    print(f"{len(cells)} cells, {estimate.said(cells, workers)}")
    return 0


def list_command(args: argparse.Namespace) -> int:
    """bench list"""
    rows = catalog.listing(args.what)
    if args.json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return 0
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    headings = [heading for heading in (rows[0] if rows else {}) if heading != "settings"]
    for i, heading in enumerate(headings):
        table.add_column(heading, no_wrap=i == 0, overflow="fold")
    for row in rows:
        table.add_row(*(str(row[heading]) for heading in headings))
    Console().print(table, markup=False)
    return 0


def report_command(args: argparse.Namespace) -> int:
    """bench report"""
    records = showing.load_folder(args.folder)
    report(records, _reports(), args.folder, Console(stderr=True, highlight=False), plots=args.plots)
    return 0


def show_command(args: argparse.Namespace) -> int:
    """bench show"""
    record, folder = showing.find_record(args.cell, showing.cells_in(showing.folders(args.out)))
    print(showing.show(record, folder))
    return 0


def explain_command(args: argparse.Namespace) -> int:
    """bench explain"""
    from bench.protocol import Protocol

    record, _ = showing.find_record(args.cell, showing.cells_in(showing.folders(args.out)))
    before = record.get("key_parts") or {}
    origin = record.get("provenance") or {}
    fields = before.get("protocol") or {}
    try:
        protocol = _load(find(str(record.get("suite")))).protocol
    except UsageError:
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        protocol = Protocol(**values)
    experiment = Experiment(str(record.get("suite")), bool(record.get("quick")), protocol, (), Path())
    plan = make_plan(
        [cell_of(record)],
        experiment,
        [],
        _fingerprints(),
        device=str(origin.get("device", "cpu")),
        threads=args.threads or default_threads(),
    )
    print(showing.explain(record, plan.jobs[0].head["key_parts"]))
    return 0


def compare_command(args: argparse.Namespace) -> int:
    """bench compare; exit 2 when something asked for could not be compared"""
    left, right = compare.sides(args.a, args.b, args.out)
    if not Path(args.a).is_dir():
        return _compare([(str(cell_of(left[0])), left[0], right[0])], (args.a, args.b), times=args.times)
    ours, theirs = ({str(cell_of(record)): record for record in side} for side in (left, right))
    for line in (compare.only_in("A", args.a, ours, theirs), compare.only_in("B", args.b, theirs, ours)):
        if line:
            print(line)
    pairs = [(cell, ours[cell], theirs[cell]) for cell in ours if cell in theirs]
    if not pairs:
        raise UsageError(f"{args.a} and {args.b} have no cell in common")
    return _compare(pairs, (args.a, args.b), times=args.times)


def _compare(pairs: list[tuple[str, Record, Record]], names: tuple[str, str], *, times: bool) -> int:
    for _, one, other in pairs:
        compare.check_protocols(one, other)
    refusals = [compare.check_times(one, other, names) for _, one, other in pairs]
    refusal = next((text for text in refusals if text), "") if times else ""
    table, told = compare.comparison(pairs, names, times=times and not refusal)
    Console().print(table, markup=False)
    print(f"{len(pairs)} cells in both; {told}")
    if refusal:
        raise UsageError(refusal)
    return 0


def doctor_command(args: argparse.Namespace) -> int:
    """bench doctor; exit 4 when nothing can be run here"""
    checks = doctor.examine(args.out or showing.RESULTS)
    print(doctor.shown(checks, as_json=args.json))
    return 4 if doctor.verdict(checks).startswith("You can run: nothing") else 0

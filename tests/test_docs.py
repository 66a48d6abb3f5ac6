"""What the documents name exists: files, make targets, commands; the README's numbers are those of the records."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCS = ("README.md", "CONTRIBUTING.md", "DESIGN.md", "CHANGELOG.md")


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("doc", DOCS)
def test_files_that_a_document_names_exist(doc: str):
    named = re.findall(r"`([\w.-]+(?:/[\w.-]+)+/?|\w+\.(?:md|toml|py|txt))`", text(doc))
    linked = re.findall(r"\]\(([^)#]+)\)", text(doc))
    example = {"quant/methods/ternary.py", "results/local/", "results/local/default"}
    missing = [n for n in {*named, *linked} - example if not n.startswith("http") and not (ROOT / n).exists()]
    assert not missing


@pytest.mark.parametrize("doc", DOCS)
def test_make_targets_that_a_document_names_exist(doc: str):
    targets = set(re.findall(r"^([a-z-]+):", text("Makefile"), re.M))
    named = set(re.findall(r"`?make ([a-z-]+)`?", text(doc))) - {"a", "each", "it"}
    assert named - {"the"} <= targets, named - targets


def test_make_help_names_every_target_with_its_duration():
    env = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}  # this test may itself run under make
    done = subprocess.run(["make"], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    targets = set(re.search(r"\.PHONY: (.*)", text("Makefile")).group(1).split())
    assert {line.split()[0] for line in done.stdout.splitlines()[1:]} == targets
    for target in ("setup", "bench", "bench-quick", "bench-full", "test", "lint", "sabotage"):
        line = next(x for x in done.stdout.splitlines() if x.split()[:1] == [target])
        assert re.search(r"minute|second|hour", line), line


def test_commands_of_the_readme_parse():
    """Each `bench ...` line of the README is accepted by the parser as far as `--dry-run` or its own arguments."""
    lines = re.findall(r"^\.venv/bin/bench (.*)$", text("README.md"), re.M)
    assert len(lines) >= 4
    from bench.__main__ import _parser as build_parser

    for line in lines:
        import shlex

        build_parser().parse_args(shlex.split(line))


def test_readme_tables_are_those_of_the_committed_records():
    done = subprocess.run(
        [sys.executable, "-m", "bench.reports", "readme", "--check", "results/cpu-2-cores", "README.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_documents_count_the_methods_of_the_default_suite():
    from bench.catalog import known_names
    from bench.experiment import expand, find
    from bench.experiment_file import load
    from bench.protocol import Protocol

    names = known_names()
    cells = expand(load(find("default"), names, Protocol), names)
    beneath = {
        model: {c.method for c in cells if c.order == "beneath" and c.model == model} for model in ("minilm", "smollm2")
    }
    whole = {c.method for c in expand(load(find("full"), names, Protocol), names) if c.order == "beneath"}
    assert beneath["smollm2"] <= beneath["minilm"] <= whole
    some, few, every = len(beneath["minilm"]), len(beneath["smollm2"]), len(whole)
    assert f"{some} methods on MiniLM and {few} of them on SmolLM2" in text("README.md")
    assert f"`make bench-full` judges all {every} on both" in text("README.md")
    assert f"{some} of the {every} methods are judged beneath an adapter on MiniLM and {few}" in text("DESIGN.md")
    assert f"{some} methods on MiniLM, {few} on SmolLM2" in text("Makefile")


def test_the_console_command_is_the_module():
    import tomllib

    import bench.__main__ as module

    scripts = tomllib.loads(text("pyproject.toml"))["project"]["scripts"]
    assert scripts == {"bench": f"{module.main.__module__}:{module.main.__name__}"}

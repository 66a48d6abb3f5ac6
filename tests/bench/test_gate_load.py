"""Versions of one package beside each other: each sees itself alone, however it looks its modules up."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import kernels.op
import kernels.tuned
from bench.errors import UsageError
from bench.gate.load import loaded
from bench.gate.trees import at_commit, working
from tests.bench.gate_toys import commit_all, write_tree

ROOT = Path(__file__).resolve().parents[2]
WAYS = {
    "kernels/value.py": "VALUE = {value}\n",
    "kernels/deep/__init__.py": "from kernels.value import VALUE\n",
    "quant/__init__.py": "from __future__ import annotations\nimport kernels.value\nTOP = kernels.value.VALUE\n",
    "quant/lazy.py": "def find():\n    from kernels.value import VALUE\n    return VALUE\n",
    "quant/alias.py": "import kernels.value as v, kernels.deep\nVALUES = (v.VALUE, kernels.deep.VALUE)\n",
    "quant/relative.py": "from . import TOP\n",
    "quant/text.py": (
        "import importlib, pkgutil, kernels\n"
        "NAMES = [m.name for m in pkgutil.iter_modules(kernels.__path__, 'kernels.')]\n"
        "def find(word='value'):\n    return importlib.import_module(f'kernels.{{word}}').VALUE\n"
    ),
    "quant/operator.py": (
        "import torch\n"
        "@torch.library.custom_op('gatetoy::times', mutates_args=())\n"
        "def times(x: torch.Tensor) -> torch.Tensor:\n    return x * {value}\n"
        "def by_name(x):\n    return torch.ops.gatetoy.times(x)\n"
    ),
    "quant/named.py": (
        "import torch\nfrom pathlib import PurePath\n"
        "SPACE = 'gatenamed'\nFOLDER = PurePath('x') / 'gatenamed'\n"
        "@torch.library.custom_op(f'{{SPACE}}::times', mutates_args=())\n"
        "def times(x: torch.Tensor) -> torch.Tensor:\n    return x * {value}\n"
        "def by_name(x):\n    return getattr(torch.ops, SPACE).times(x)\n"
    ),
    "quant/words.py": "quantity, SENTENCE = 'quantity', 'quantize and kernels of it'\n",
}


def tree_of(folder: Path, value: int):
    return write_tree(folder, {name: text.format(value=value) for name, text in WAYS.items()})


def test_each_version_sees_its_own_modules_by_every_way(tmp_path: Path):
    import torch

    with loaded([tree_of(tmp_path / str(v), v) for v in (3, 5)]) as sides:
        for side, value in zip(sides, (3, 5), strict=True):
            seen = [side.module("quant").TOP, side.module("quant.relative").TOP, *side.module("quant.alias").VALUES]
            seen += [side.module("quant.lazy").find(), side.module("quant.text").find()]
            assert seen == [value] * 6
            assert f"{side.prefix}.kernels.value" in side.module("quant.text").NAMES
            assert side.module("quant.words").SENTENCE == "quantize and kernels of it"
        for name in ("quant.operator", "quant.named"):
            operators = [side.module(name) for side in sides]
            one = torch.ones(())
            assert [(float(o.times(one)), float(o.by_name(one))) for o in operators] == [(3, 3), (5, 5)]
        assert {str(o.FOLDER) for o in operators} == {"x/gatenamed"}
        prefixes = {side.prefix for side in sides}
    assert not [name for name in sys.modules if name.partition(".")[0] in prefixes]


def test_a_module_that_a_version_lacks_is_missing_there_though_the_project_has_it(tmp_path: Path):
    with loaded([write_tree(tmp_path / "empty", {})]) as (side,), pytest.raises(ImportError):
        side.module("kernels.packing")


def test_the_project_itself_loads_twice_and_shares_nothing(tmp_path: Path):
    trees = [working(ROOT, tmp_path / str(i)) for i in range(2)]
    with loaded(trees) as (a, b):
        one, two = (side.module("quant").METHODS for side in (a, b))
        assert {n: q.settings() for n, q in one.items()} == {n: q.settings() for n, q in two.items()}
        assert type(one["nf4-g64"]) is not type(two["nf4-g64"])
        assert list(a.module("kernels.op").operations()) == list(b.module("kernels.op").operations())
        foreign = [
            name
            for name, module in sys.modules.items()
            if name.startswith(f"{b.prefix}.")
            for value in vars(module).values()
            if str(getattr(value, "__module__", "")).partition(".")[0] in (a.prefix, "quant", "kernels")
        ]
        assert not foreign
        mine, theirs = (side.module("kernels.custom").OPERATORS for side in (a, b))
        assert [str(o.overload) for o in mine.values()] != [str(o.overload) for o in theirs.values()]


def test_a_table_of_configurations_counts_in_every_copy(tmp_path: Path):
    """An entry holds the hash of a kernel's source, which must not depend on where the package was loaded."""
    with loaded([working(ROOT, tmp_path)]) as (side,):
        assert kernels.op.operations().keys() == side.module("kernels.op").operations().keys()
        there = side.module("kernels.tuned").source_hash(f"{side.prefix}.kernels.gemv")
    kernels.tuned.source_hash.cache_clear()
    assert there == kernels.tuned.source_hash("kernels.gemv")


def test_a_commit_is_written_out_as_it_was_and_the_working_tree_as_it_is(tmp_path: Path):
    repository = tmp_path / "r"
    write_tree(repository, {"kernels/value.py": "VALUE = 1\n"})
    commit_all(repository)
    same = working(repository, tmp_path / "same")
    (repository / "kernels/value.py").write_text("VALUE = 2\n")
    before, now = at_commit(repository, "HEAD", tmp_path / "a"), working(repository, tmp_path / "b")
    assert (before.folder / "kernels/value.py").read_text() == "VALUE = 1\n"
    assert (now.folder / "kernels/value.py").read_text() == "VALUE = 2\n"
    assert before.digest() == same.digest() != now.digest()
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=repository, capture_output=True, text=True, check=True)
    assert (before.label, now.label) == (head.stdout[:12], "working tree")


@pytest.mark.parametrize("ref", ["nowhere", "--help", "HEAD~7", "HEAD:kernels", ""])
def test_a_commit_that_is_none_is_named(tmp_path: Path, ref: str):
    commit_all(write_tree(tmp_path, {}).folder)
    with pytest.raises(UsageError, match="unknown commit") as caught:
        at_commit(tmp_path, ref, tmp_path / "out")
    assert repr(ref) in str(caught.value)


def test_a_commit_without_the_packages_is_refused(tmp_path: Path):
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels/__init__.py").write_text("")
    commit_all(tmp_path)
    with pytest.raises(UsageError, match="commit 'HEAD' has no package quant/: name a later one"):
        at_commit(tmp_path, "HEAD", tmp_path / "out")

"""Several versions of `kernels` and `quant` in one process, each below a package of its own.

A tree is imported as `PREFIX.kernels` and `PREFIX.quant`. Its modules say `from kernels.op import ...`, at their top
and inside functions, and look modules and operators up by name; so their syntax trees are changed before they are
compiled: absolute imports of the two packages, strings that begin with their dotted names, and the namespaces of
torch operators that the tree defines (a second definition would replace the first) get the prefix. Bodies are left
alone, and every version goes through the same change, so none is faster for it.
"""

from __future__ import annotations

import ast
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import itertools
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from bench.gate.trees import PACKAGES, Tree

__all__ = ["Side", "loaded"]

_COUNT = itertools.count()
_OPERATOR = re.compile(
    r"(?:custom_op|triton_op|define|impl)\(\s*f?[\"'](?:(\w+)|\{(\w+)\})::|\bLibrary\(\s*(?:[\"'](\w+)[\"']|(\w+))"
)
_OWN = re.compile(rf"(?:{'|'.join(PACKAGES)})(?=\.|$)")
_TORCHS = {"aten", "prim", "prims", "quantized"}


class Side:
    """One loaded tree; `side.module("quant.linear")` is its module of that name."""

    def __init__(self, tree: Tree, prefix: str) -> None:
        self.tree, self.prefix = tree, prefix

    def module(self, name: str) -> ModuleType:
        """Raises ImportError when the tree has no such module."""
        return importlib.import_module(f"{self.prefix}.{name}")


@contextmanager
def loaded(trees: Sequence[Tree]) -> Iterator[list[Side]]:
    """The trees as sides, in their order; each must be in a folder of its own. Their modules are dropped at the end."""
    sides = [Side(tree, f"side{next(_COUNT):04d}") for tree in trees]
    finders = [_Finder(side.prefix, side.tree.folder) for side in sides]
    sys.meta_path[:0] = finders
    try:
        yield sides
    finally:
        for finder in finders:
            sys.meta_path.remove(finder)
        prefixes = {side.prefix for side in sides}
        for name in [n for n in sys.modules if n.partition(".")[0] in prefixes]:
            del sys.modules[name]


class _Finder(importlib.abc.MetaPathFinder):
    """Finds PREFIX itself, a package without a file, and what lies below it."""

    def __init__(self, prefix: str, folder: Path) -> None:
        self.prefix, self.folder = prefix, folder
        self.namespaces = _operators(folder)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name == self.prefix:
            spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
            spec.submodule_search_locations = [str(self.folder)]
            return spec
        first, *rest = name.split(".")
        if first != self.prefix or rest[0] not in PACKAGES:
            return None
        place = self.folder.joinpath(*rest)
        package = (place / "__init__.py").is_file()
        file = place / "__init__.py" if package else place.with_suffix(".py")
        if not file.is_file():
            return None
        return importlib.util.spec_from_file_location(
            name,
            file,
            loader=_Loader(name, str(file), _Prefixed(self.prefix, self.namespaces)),
            submodule_search_locations=[str(place)] if package else None,
        )


class _Loader(importlib.machinery.SourceFileLoader):
    """Compiles the changed syntax tree, and keeps no bytecode."""

    def __init__(self, name: str, file: str, change: _Prefixed) -> None:
        super().__init__(name, file)
        self.change = change

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        tree = self.change.visit(ast.parse(self.get_data(path), path))
        code: CodeType = compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True)
        return code


class _Prefixed(ast.NodeTransformer):
    def __init__(self, prefix: str, namespaces: frozenset[str]) -> None:
        self.prefix, self.namespaces = prefix, namespaces

    def visit_Import(self, node: ast.Import) -> list[ast.stmt]:
        out: list[ast.stmt] = []
        for alias in node.names:
            if not _OWN.match(alias.name):
                out.append(ast.Import([alias]))
                continue
            out.append(ast.Import([ast.alias(f"{self.prefix}.{alias.name}", alias.asname)]))
            if alias.asname is None:  # `import kernels.op` binds `kernels`
                out.append(ast.ImportFrom(self.prefix, [ast.alias(alias.name.partition(".")[0])], 0))
        return [ast.copy_location(statement, node) for statement in out]

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.ImportFrom:
        if node.level == 0 and node.module and _OWN.match(node.module):
            node.module = f"{self.prefix}.{node.module}"
        return node

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        if isinstance(node.value, str):
            space, colons, rest = node.value.partition("::")
            if colons and space in self.namespaces:
                node.value = f"{self.prefix}_{space}::{rest}"
            elif _OWN.match(node.value):
                node.value = f"{self.prefix}.{node.value}"
        return node

    def visit_Assign(self, node: ast.Assign) -> Any:
        """`NAMESPACE = "ours"`."""
        self._rename(node.value)
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> Any:
        """`Library("ours", "DEF")` and `getattr(torch.ops, "ours")`."""
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in ("Library", "getattr"):
            for argument in node.args:
                self._rename(argument)
        return self.generic_visit(node)

    def _rename(self, node: ast.expr) -> None:
        if isinstance(node, ast.Constant) and node.value in self.namespaces:
            node.value = f"{self.prefix}_{node.value}"

    def visit_Attribute(self, node: ast.Attribute) -> Any:
        """`torch.ops.NAMESPACE` of an operator that the tree defines."""
        self.generic_visit(node)
        of = node.value
        if node.attr in self.namespaces and isinstance(of, ast.Attribute) and of.attr == "ops":
            node.attr = f"{self.prefix}_{node.attr}"
        return node


def _operators(folder: Path) -> frozenset[str]:
    """The namespaces of torch operators that the tree defines."""
    found: set[str] = set()
    for path in (p for name in PACKAGES for p in (folder / name).rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        for literal, variable, of_library, variable_of_library in _OPERATOR.findall(text):
            if name := variable or variable_of_library:
                found.update(re.findall(rf"^{name}\s*=\s*[\"'](\w+)[\"']", text, re.MULTILINE))
            else:
                found.add(literal or of_library)
    return frozenset(found) - _TORCHS

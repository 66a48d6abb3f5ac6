"""Triton's own jit functions in the interpreter: `tl.sum`, `tl.max` and their like, for the time of a launch.

Triton decides between compiler and interpreter when a jit function is defined, so those of its library, defined before
anything was to be interpreted, are compiled ones that an interpreted kernel cannot call. Here interpreted copies take
their place, and afterwards everything is as it was: the next launch may be one that compiles.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import triton.language as tl
from triton import knobs
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

__all__ = ["interpreting"]


@contextmanager
def interpreting() -> Iterator[None]:
    """Inside, interpreted kernels may call the functions of Triton's library."""
    spaces = (tl, tl.core, tl.standard, tl.math, tl.core.tensor)  # the interpreter patches some of them for good
    before = [dict(vars(space)) for space in spaces]
    setting = knobs.runtime.interpret
    knobs.runtime.interpret = True
    try:
        for name, function in _library().items():
            for space in (tl, tl.standard):
                if name in vars(space):
                    setattr(space, name, function)
        yield
    finally:
        knobs.runtime.interpret = setting
        for space, names in zip(spaces, before, strict=True):
            for name, value in names.items():
                if vars(space)[name] is not value:
                    setattr(space, name, value)


@cache
def _library() -> Mapping[str, Any]:
    """Interpreted copies of the library's jit functions; none where they are interpreted already."""
    return {name: InterpretedFunction(f.fn) for name, f in vars(tl.standard).items() if isinstance(f, JITFunction)}

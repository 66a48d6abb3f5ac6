"""The models that the benchmark adapts and quantizes, by spec: "minilm", "smollm2", "path:DIR", "hf:NAME", ..."""

from __future__ import annotations

import difflib

from bench.models.base import (
    SOURCES,
    Kind,
    Model,
    ModelError,
    Source,
    cache_folder,
    package_folder,
    register,
)
from bench.models.fingerprint import digest_of

from bench.models import folder, minilm, smollm2, tiny  # isort: skip  (sources register themselves)

__all__ = [
    "SOURCES",
    "Kind",
    "Model",
    "ModelError",
    "Source",
    "cache_folder",
    "fingerprint",
    "folder",
    "load",
    "minilm",
    "package_folder",
    "prepare",
    "register",
    "smollm2",
    "tiny",
]


def resolve(spec: str) -> tuple[Source, str]:
    """The source of `spec` and its argument. Raises ModelError naming the nearest known source."""
    name, colon, argument = spec.partition(":")
    source = SOURCES.get(name)
    if source is None:
        near = difflib.get_close_matches(name, SOURCES, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        known = ", ".join(f"{s.name}:{s.takes}" if s.takes else s.name for s in SOURCES.values())
        raise ModelError(f"unknown model {spec!r}.{hint} Known: {known}")
    if bool(source.takes) != bool(argument):
        wanted = f"{name}:{source.takes}" if source.takes else name
        raise ModelError(f"model {spec!r}: write {wanted}")
    if colon and not source.takes:
        raise ModelError(f"model {spec!r}: {name} takes no argument")
    return source, argument


def load(spec: str) -> Model:
    """The model of `spec`, freshly loaded: the caller owns the module. Raises ModelError with the remedy."""
    source, argument = resolve(spec)
    return source.load(argument)


def prepare(spec: str) -> None:
    """Do the one-time work of `spec` (converting, caching), so that `load` is quick."""
    source, argument = resolve(spec)
    source.prepare(argument)


def fingerprint(spec: str) -> str:
    """sha256 (hex) of the content that `spec` is made of: the bytes of its files and the recipe that turns them."""
    source, argument = resolve(spec)
    return digest_of(source.content(argument), source.recipe)

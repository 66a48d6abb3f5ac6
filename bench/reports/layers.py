"""The name of a layer as its matrix and its depth."""

from __future__ import annotations

import re

__all__ = ["split"]


def split(layer: str) -> tuple[str, int]:
    """(matrix, depth); a layer without a number has depth 0.

    >>> split("model.layers.12.mlp.up_proj"), split("head")
    (('mlp.up_proj', 12), ('head', 0))
    """
    found = re.search(r"(?:^|\.)(\d+)\.(.+)$", layer)
    return (found[2], int(found[1])) if found else (layer, 0)

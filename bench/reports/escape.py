"""Text for each output format: whatever stands in a record is shown as text, never read as markup or a formula."""

# ruff: noqa: RUF001
from __future__ import annotations

import html
import re
import unicodedata

__all__ = ["csv_text", "markdown_text", "plain", "plot_text", "tex_text"]

LONGEST = 80
TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "≈": r"$\approx$",
    "†": r"\dag{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "Δ": r"$\Delta$",
    "≤": r"$\le$",
    "–": "--",
    "…": r"\dots{}",
    **{c: "\\" + c for c in "&%$#_{}"},
}
DRAWN = set("Δ≈†…–−×±≤·")  # beyond Latin, what the plots' own texts use


def plain(text: object, longest: int = LONGEST) -> str:
    """One line of printable text: control and direction characters are dropped, long text is cut with an ellipsis."""
    joined = re.sub(r"\s+", " ", str(text))
    kept = "".join(c for c in joined if unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co", "Cn"))
    return kept if len(kept) <= longest else kept[: longest - 1] + "…"


def csv_text(text: object) -> str:
    """A leading `= + - @` makes a spreadsheet read text as a formula; an apostrophe before it does not."""
    kept = plain(text, 10_000)
    return "'" + kept if kept[:1] in tuple("=+-@") and kept not in ("-", "–") else kept


def markdown_text(text: object) -> str:
    return re.sub(r"([\\|`*_\[\]~$])", r"\\\1", html.escape(plain(text), quote=False))


def tex_text(text: object) -> str:
    """For the text of a document, with any engine: what is beyond Latin-1 and not a symbol of ours becomes `?`."""
    return "".join(TEX.get(c, c if ord(c) < 256 else "?") for c in plain(text))


def plot_text(text: object, longest: int = 36) -> str:
    """Only characters that the figures' font has."""
    return "".join(c if ord(c) < 0x250 or c in DRAWN else "?" for c in plain(text, longest))

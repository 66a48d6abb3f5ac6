"""What a peer is, and the table of those that are installed."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, ClassVar

from quant.core import METHODS, Quantizer

__all__ = ["PEERS", "Peer", "find_method", "installed", "register"]

PREFIX = "peer-"
PEERS: dict[str, Peer] = {}


@dataclass(frozen=True)
class Peer(Quantizer):
    """A quantizer of another library; `ours` is the method of this suite at the same settings."""

    ours: str = ""

    package: ClassVar[str] = ""

    def settings(self) -> dict[str, Any]:
        """As of every quantizer, and which version of the library runs."""
        return super().settings() | {"package": self.package, "version": installed(self.package)}


def installed(package: str) -> str:
    """The version of `package`, empty when it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def register(name: str, peer: Peer) -> None:
    """Enter `peer` in `PEERS` where its library is installed."""
    if not name.startswith(PREFIX):
        raise ValueError(f"the name of a peer begins with {PREFIX!r}, got {name!r}")
    if installed(peer.package):
        PEERS[name] = peer


def find_method(name: str) -> Quantizer:
    """The method or peer `name`; ValueError names the nearest ones, or the extra that installs peers."""
    found = METHODS.get(name) or PEERS.get(name)
    if found is None and name.startswith(PREFIX):
        raise ValueError(
            f"unknown peer {name!r}; installed: {', '.join(PEERS) or 'none'}. Install them: pip install -e '.[peers]'"
        )
    if found is None:
        near = difflib.get_close_matches(name, METHODS, n=3) or list(METHODS)
        raise ValueError(f"unknown method {name!r}; there are {len(METHODS)}, among them {', '.join(near[:3])}")
    return found

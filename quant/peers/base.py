"""What a peer is, and the tables of those that are installed and of the controls beside them."""

from __future__ import annotations

import difflib
from abc import abstractmethod
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, ClassVar

from quant.core import METHODS, Quantizer

__all__ = ["CONTROLS", "PEERS", "Peer", "find_method", "installed", "register", "register_control"]

PREFIX = "peer-"
CONTROL = "control-"
PEERS: dict[str, Peer] = {}
CONTROLS: dict[str, Quantizer] = {}


@dataclass(frozen=True)
class Peer(Quantizer):
    """A quantizer of another library; `ours` is the method of this suite at the same settings.

    `differs` says what is known to differ all the same, for a reader whom a difference in the figures surprises.
    `beside` are methods of this suite at other settings that are shown too. `code_bits` is the width of a code, which
    a library may store in more.
    """

    ours: str = ""
    beside: tuple[str, ...] = ()
    differs: str = ""

    package: ClassVar[str] = ""

    @property
    @abstractmethod
    def code_bits(self) -> int:
        """Bits that tell the codes of one weight apart."""

    def settings(self) -> dict[str, Any]:
        """As of every quantizer, the width of a code, and which version of the library runs."""
        known = {"code_bits": self.code_bits, "package": self.package, "version": installed(self.package)}
        return super().settings() | known


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


def register_control(name: str, control: Quantizer) -> None:
    """Enter `control`, a method of this suite that serves comparisons only, in `CONTROLS`."""
    if not name.startswith(CONTROL):
        raise ValueError(f"the name of a control begins with {CONTROL!r}, got {name!r}")
    CONTROLS[name] = control


def find_method(name: str) -> Quantizer:
    """The method, peer or control `name`; ValueError names the nearest ones, or the extra that installs peers."""
    found = METHODS.get(name) or PEERS.get(name) or CONTROLS.get(name)
    if found is None and name.startswith(PREFIX):
        raise ValueError(
            f"unknown peer {name!r}; installed: {', '.join(PEERS) or 'none'}. Install them: "
            "pip install -e '.[peers]', for gemlite on a CUDA device '.[peers-cuda]'"
        )
    if found is None:
        near = difflib.get_close_matches(name, METHODS, n=3) or list(METHODS)
        raise ValueError(f"unknown method {name!r}; there are {len(METHODS)}, among them {', '.join(near[:3])}")
    return found

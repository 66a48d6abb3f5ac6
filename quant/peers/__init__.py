"""Other libraries' quantizers as methods of this suite: same weights, same metrics, same tables, marked as peers.

A peer is there where its library is installed (`pip install -e '.[peers]'`), under a name that begins with "peer-".
Each file names the method of this suite that it is held against.
"""

from quant.peers.base import PEERS, Peer, find_method, installed

from quant.peers import bitsandbytes, hqq, quanto, torchao  # isort: skip  (peers register themselves)

__all__ = ["PEERS", "Peer", "bitsandbytes", "find_method", "hqq", "installed", "quanto", "torchao"]

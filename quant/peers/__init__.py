"""Other libraries' quantizers as methods of this suite: same weights, same metrics, same tables, marked as peers.

A peer is there where its library is installed (`pip install -e '.[peers]'`; gemlite, which only a CUDA device can run:
`'.[peers-cuda]'`), under a name that begins with "peer-".
Each file names the method of this suite that it is held against, and what differs at the same settings. `controls`
holds what is measured only to judge a difference.
"""

from quant.peers.base import CONTROLS, PEERS, Peer, find_method, installed

from quant.peers import bitsandbytes, controls, gemlite, hqq, quanto, torchao  # isort: skip  (peers register themselves)

__all__ = [
    "CONTROLS",
    "PEERS",
    "Peer",
    "bitsandbytes",
    "controls",
    "find_method",
    "gemlite",
    "hqq",
    "installed",
    "quanto",
    "torchao",
]

"""A real run, on a tiny model, with every connection refused: the suite needs no network once it is set up."""

import os
import subprocess
import sys

from bench.records import FILE, read

BLOCK = """
import socket
def refuse(self, address, *rest):
    if self.family != socket.AF_UNIX:
        with open({log!r}, "a") as file:
            file.write(f"{{address}}\\n")
        raise OSError(f"no connection to {{address}} is allowed")
    return plain(self, address, *rest)
plain = socket.socket.connect
socket.socket.connect = refuse
socket.socket.connect_ex = refuse
def no_lookup(*args, **kwargs):
    raise OSError("no name is looked up")
socket.getaddrinfo = no_lookup
"""


def test_a_run_opens_no_connection(tmp_path):
    log = tmp_path / "connections"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(BLOCK.format(log=str(log)))
    path = os.pathsep.join([str(tmp_path / "site"), os.getcwd()])
    environment = os.environ | {"PYTHONPATH": path, "QUANTBENCH_CACHE": str(tmp_path / "cache")}
    blocked = "import socket; socket.create_connection(('192.0.2.1', 80), 1)"
    probe = subprocess.run(
        [sys.executable, "-c", blocked], env=environment, capture_output=True, text=True, check=False
    )
    assert "is allowed" in probe.stderr or "no name is looked up" in probe.stderr

    words = ["run", "quick", "--models", "tiny-encoder", "--methods", "nf4-g64", "--orders", "lora,beneath"]
    words += ["--threads", "1", "--no-plots", "--out", str(tmp_path / "out")]
    command = [sys.executable, "-m", "bench", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    records, bad = read(tmp_path / "out" / FILE)
    assert [r["status"] for r in records] == ["ok", "ok"]
    assert bad == []
    assert not log.exists(), log.read_text()

"""The shape of the project: import direction, light imports, honest `__all__`, no clash with a package `kernels`."""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("kernels", "quant", "bench")


def modules() -> list[str]:
    found = []
    for package in PACKAGES:
        root = importlib.import_module(package)
        found += [package] + [m.name for m in pkgutil.walk_packages(root.__path__, f"{package}.")]
    return [name for name in found if "micro" not in name and not name.endswith("__main__")]


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_imports_point_one_way():
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as lint; lint()"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


@pytest.mark.parametrize("name", modules())
def test_every_name_in_all_exists(name: str):
    module = importlib.import_module(name)
    missing = [n for n in getattr(module, "__all__", ()) if not hasattr(module, n)]
    assert not missing


def test_importing_quant_starts_no_cuda_and_no_transformers():
    loaded = json.loads(
        python(
            "import json, sys, torch, quant;"
            "print(json.dumps([torch.cuda.is_initialized(), 'transformers' in sys.modules, 'pandas' in sys.modules]))"
        )
    )
    assert loaded == [False, False, False]


def test_transformers_runs_a_model_beside_our_package_named_kernels():
    """transformers looks for Hugging Face's package `kernels`; ours must not be taken for it."""
    out = python(
        "import kernels, torch\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "c = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1,"
        " num_attention_heads=4, num_key_value_heads=2)\n"
        "m = LlamaForCausalLM(c)\n"
        "print(tuple(m(torch.arange(5)[None]).logits.shape), hasattr(kernels, 'packing') or True)"
    )
    assert out.startswith("(1, 5, 64)")


def test_only_kernels_imports_triton():
    guilty = [
        str(path.relative_to(ROOT))
        for package in ("quant", "bench")
        for path in (ROOT / package).rglob("*.py")
        if re.search(r"^\s*(import triton|from triton)", path.read_text(encoding="utf-8"), re.M)
    ]
    assert not guilty


def test_no_pickle_and_no_remote_code():
    """torch.load runs code from a file; trust_remote_code runs code from a model folder. Neither is used."""
    text = {p: p.read_text(encoding="utf-8") for package in PACKAGES for p in (ROOT / package).rglob("*.py")}
    assert not [str(p) for p, t in text.items() if re.search(r"torch\.load\(|import pickle|trust_remote_code=True", t)]
    for path, t in text.items():
        for call in re.finditer(r"Auto\w+\.from_(pretrained|config)\(", t):
            around = t[call.start() : call.start() + 400]
            assert "trust_remote_code=False" in around or "**" in around, f"{path}: {call.group(0)}"


def test_files_are_short():
    """One idea a file: more than 300 lines is a reason to split."""
    long = {
        str(p.relative_to(ROOT)): n
        for folder in (*PACKAGES, "tests")
        for p in (ROOT / folder).rglob("*.py")
        if (n := len(p.read_text(encoding="utf-8").splitlines())) > 300
    }
    assert not long

"""The door to model folders refuses what is not a plain, whole safetensors model, and says which file and why."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from quant.files import MAX_HEADER, MAX_TENSORS, check_model_folder, inside, read_header, read_tensors, sha256


def raw(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    """A safetensors file with any header, right or wrong."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(dtype: str = "F32", shape: tuple[int, ...] = (2,), begin: int = 0, end: int = 8) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    home = tmp_path / "model"
    home.mkdir()
    (home / "config.json").write_text('{"model_type": "bert"}')
    save_file({"a": torch.ones(3), "b.c": torch.zeros(2, 2, dtype=torch.uint8)}, home / "model.safetensors")
    return home


def test_a_plain_folder_passes(folder: Path) -> None:
    assert check_model_folder(folder) == folder.resolve()
    assert set(read_tensors(folder, "model.safetensors")) == {"a", "b.c"}


@pytest.mark.parametrize("name", ["pytorch_model.bin", "a.pt", "a.pth", "a.pkl", "a.npy", "OPTIMIZER.PT"])
def test_pickles_are_refused_with_the_remedy(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=rf"{name}.*pickle.*convert"):
        check_model_folder(folder)


def test_no_folder_no_weights_no_config(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="not a folder"):
        check_model_folder(tmp_path / "nowhere")
    (folder / "config.json").rename(tmp_path / "config.json")
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        check_model_folder(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no \.safetensors file"):
        check_model_folder(folder)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "", "a\0b"])
def test_names_that_leave_the_folder_are_refused_before_they_are_opened(folder: Path, name: str) -> None:
    with pytest.raises(ValueError, match="must be relative and stay in the folder"):
        inside(folder, name)


def test_links_stay_inside_or_lead_to_the_blobs_of_the_same_cache(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.safetensors"
    (folder / "model.safetensors").rename(outside)
    (folder / "model.safetensors").symlink_to(outside)
    with pytest.raises(ValueError, match="link out of the folder"):
        check_model_folder(folder)
    cache = tmp_path / "models--a--b"
    (cache / "blobs").mkdir(parents=True)
    (cache / "snapshots").mkdir()
    (folder / "model.safetensors").unlink()
    folder = folder.rename(cache / "snapshots" / "0123")
    outside.rename(cache / "blobs" / "f00d")
    (folder / "model.safetensors").symlink_to("../../blobs/f00d")
    assert check_model_folder(folder) == folder.resolve()


def test_an_index_or_config_may_not_point_outside(folder: Path, tmp_path: Path) -> None:
    save_file({"a": torch.ones(3)}, tmp_path / "outside.safetensors")
    index = folder / "model.safetensors.index.json"
    for shard, why in (("../outside.safetensors", "stay in the folder"), ("weights.bin", "only .safetensors")):
        index.write_text(json.dumps({"weight_map": {"a": shard}}))
        with pytest.raises(ValueError, match=why):
            check_model_folder(folder)
    index.unlink()
    (folder / "tokenizer_config.json").write_text('{"vocab_file": "/etc/passwd"}')
    with pytest.raises(ValueError, match="stay in the folder"):
        check_model_folder(folder)


@pytest.mark.parametrize("text", [b"{", b"[1]", b'{"a": 1, "a": 2}', b"\xff"])
def test_a_bad_json_file_is_named(folder: Path, text: bytes) -> None:
    (folder / "config.json").write_bytes(text)
    with pytest.raises(ValueError, match=r"config\.json"):
        check_model_folder(folder)


BAD = {
    "overlaps": ({"a": entry(), "b": entry(begin=4, end=12)}, 12),
    "hole": ({"a": entry(), "b": entry(begin=12, end=20)}, 20),
    "truncated": ({"a": entry()}, 7),
    "bytes after": ({"a": entry()}, 9),
    "does not fill": ({"a": entry(shape=(3,))}, 8),
    "unknown dtype": ({"a": entry(dtype="F31")}, 8),
    "has shape": ({"a": entry(shape=(-2, -1))}, 8),
    "letters, digits": ({"../../x": entry()}, 8),
    "needs dtype": ({"a": {"dtype": "F32"}}, 8),
}


@pytest.mark.parametrize("why", sorted(BAD))
def test_a_header_that_does_not_fit_its_file_is_refused(why: str, tmp_path: Path) -> None:
    header, size = BAD[why]
    with pytest.raises(ValueError, match=why) as error:
        read_header(raw(tmp_path / "bad.safetensors", header, bytes(size)))
    assert "bad.safetensors" in str(error.value)


def test_duplicate_keys_lies_about_the_length_and_bloat_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    one = json.dumps(entry())
    with pytest.raises(ValueError, match="'a' appears twice"):
        read_header(raw(path, f'{{"a": {one}, "a": {one}}}'.encode(), bytes(8)))
    with pytest.raises(ValueError, match="truncated"):
        read_header(raw(path, {}, length=1 << 60))
    with pytest.raises(ValueError, match=f"more than the {MAX_HEADER} allowed"):
        read_header(raw(path, b" " * (MAX_HEADER + 1)))
    many = {f"t{i}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for i in range(MAX_TENSORS + 1)}
    text = json.dumps(many, separators=(",", ":")).encode()
    with pytest.raises(ValueError, match="more than the"):
        read_header(raw(path, text))
    path.write_bytes(b"abc")
    with pytest.raises(ValueError, match="truncated"):
        read_header(path)


def test_a_changed_file_is_refused_by_its_checksum(folder: Path) -> None:
    path = folder / "model.safetensors"
    good = sha256(path)
    assert set(read_tensors(folder, path.name, good)) == {"a", "b.c"}
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="was changed after it was saved"):
        read_tensors(folder, path.name, good)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_file_is_refused_or_read_never_anything_else(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "mutated.safetensors"
    save_file({"a": torch.ones(3), "b": torch.zeros(2, 2)}, path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        header, start = read_header(path)
    except ValueError as error:
        refusal = str(error)
        event("refused")
        assert "mutated.safetensors" in refusal
    else:
        assert start + max((e["data_offsets"][1] for e in header.values()), default=0) == path.stat().st_size

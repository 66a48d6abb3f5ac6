"""The README's blocks are filled from records, and a difference is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.reports import registry
from bench.reports.__main__ import main
from tests.bench.sample_records import sample


def write_results(folder: Path) -> Path:
    from bench.records import to_line

    folder.mkdir(parents=True)
    (folder / "records.jsonl").write_bytes(b"".join(to_line(r) for r in sample()))
    readme = folder.parent / "README.md"
    readme.write_text(
        "# x\n\n<!-- begin:main -->\nSTALE\n<!-- end:main -->\n\n<!-- begin:adapting -->\n<!-- end:adapting -->\n"
    )
    return readme


def test_the_readme_is_filled_once_and_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    readme = write_results(tmp_path / "results")
    arguments = ["readme", str(tmp_path / "results"), str(readme)]
    assert main([*arguments, "--check"]) == 1
    assert "differs from the records" in capsys.readouterr().err
    assert main(arguments) == 0
    filled = readme.read_text(encoding="utf-8")
    assert "STALE" not in filled
    assert "KL, Wikipedia" in filled
    assert "4.127" in filled
    assert main([*arguments, "--check"]) == 0
    readme.write_text(filled.replace("4.127", "4.128", 1), encoding="utf-8")
    assert main([*arguments, "--check"]) == 1


def test_an_unknown_block_and_missing_records_are_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    readme = write_results(tmp_path / "results")
    assert main(["readme", str(tmp_path), str(readme)]) == 2
    readme.write_text("<!-- begin:nonsense -->\n<!-- end:nonsense -->\n")
    assert main(["readme", str(tmp_path / "results"), str(readme)]) == 2
    assert "unknown block 'nonsense'" in capsys.readouterr().err


def test_the_registry_has_every_name_a_row_for_what_is_needed_and_whole_sources(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = ("kmeans-4bit-tensor", "squeezellm-4bit", *(n for n in registry.METHODS if n.startswith("uniform-")))
    monkeypatch.setattr(registry, "METHODS", {n: registry.METHODS[n] for n in names})
    lines = registry.methods_table().splitlines()
    assert all(f"`{name}`" in "".join(lines) for name in names)
    plain, weighted = (next(line for line in lines if f"`{name}`" in line) for name in names[:2])
    assert "| none " in plain
    assert "| fisher " in weighted
    assert "arXiv 2306.07629" in plain
    assert "…" not in "".join(lines)


@pytest.mark.parametrize(("method", "bits"), [("mixed-3bit", 3.25), ("mixed-4bit", 4.25), ("prune-50-global", 9.0)])
def test_a_rule_over_a_model_is_measured_over_several_layers(method: str, bits: float) -> None:
    assert registry.facts_of(registry.METHODS[method]).bits == pytest.approx(bits, abs=0.02)

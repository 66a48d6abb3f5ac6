"""The command line: the words and exit code of every error, and what each command prints."""

import json
import shutil
import subprocess
import sys

import pytest

from bench.__main__ import main
from bench.records import FILE, to_line
from bench.session import Reports
from tests.bench.test_records import record
from tests.bench.toy_main import run_toys

NF4 = "m/t/beneath/nf4-g64/0"


def save(folder, *records):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_bytes(b"".join(to_line(r) for r in records))
    return folder


def made(value=1.0, *, device="cpu A", steps=3, **more):
    return record(
        provenance={"device": "cpu", "device_name": device, "threads": 2, "argv": ["bench", "run", "quick"]},
        key_parts={"protocol": {"steps": steps}},
        suite="quick",
        accuracy={"loss": {"value": value}},
        speed={"forward_b1_s": {"value": 2 * value}},
        **more,
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rnu"], "error: unknown command 'rnu'. Did you mean 'run'?"),
        (["list", "metods"], "error: unknown list 'metods'. Did you mean 'methods'?"),
        (["run", "qick"], "error: unknown experiment 'qick'. Did you mean 'quick'?"),
        (["run", "quick", "--bogus"], "error: unrecognized arguments: --bogus"),
        (["run", "quick", "--threads", "0"], "error: argument --threads: '0' is not a whole number from 1"),
        (["run", "quick", "--timeout", "nan"], "error: argument --timeout: 'nan' is not a positive number"),
        (["run", "quick", "--retry", "oops"], "error: --retry: unknown status 'oops'"),
        (["run", "quick", "--seeds", "x"], "error: --seeds 'x' must be whole numbers from 0"),
        (["run", "quick", "--dry-run", "--methods", "unifrom*"], "error: --methods 'unifrom*' matched 0 of "),
        (
            ["run", "quick", "--dry-run", "--orders", "benaeth"],
            "error: --orders 'benaeth' matched 0 of 17 orders. Did you mean 'beneath'?",
        ),
        (
            ["run", "quick", "--dry-run", "--tasks", "alise"],
            "error: --tasks 'alise' matched 0 of 2 tasks. Did you mean 'alice'?",
        ),
        (
            ["run", "quick", "--dry-run", "--models", "tiny-encodr"],
            "error: --models 'tiny-encodr' matched 0 of 2 models. Did you mean 'tiny-encoder'?",
        ),
        (["run", "quick", "--dry-run", "--model", "tiny"], "error: model 'tiny': write path:DIR"),
        (["run", "quick", "--dry-run", "--model", "path:nowhere"], "error: model 'path:nowhere': no such folder"),
        (["report", "nowhere"], "error: no records in nowhere/records.jsonl"),
        (["show", "x"], "error: no results under results/ yet"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    err = capsys.readouterr().err
    assert err.startswith(message)
    assert err.count("\n") == 1


def test_a_model_missing_from_an_experiment_file_is_named_with_its_line(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.toml").write_text(
        'name = "my"\n[[grid]]\nmodels = ["path:gone"]\ntasks = ["alice-labels"]\norders = ["lora"]\n'
    )
    assert main(["run", "my.toml", "--dry-run"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: my.toml:3: model 'path:gone': no such folder. A model folder is what save_pretrained")


def test_the_help_of_force_tells_where_the_cache_is(capsys, monkeypatch):
    from bench.models import cache_folder
    from bench.provenance import ROOT

    monkeypatch.delenv("QUANTBENCH_CACHE", raising=False)
    assert main(["run", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"$QUANTBENCH_CACHE or else {cache_folder().relative_to(ROOT)} in the checkout" in said


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny encoder as save_pretrained writes it."""
    from bench.models import load

    folder = tmp_path_factory.mktemp("checkpoint")
    model = load("tiny-encoder")
    model.module.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def spoil_config(folder):
    (folder / "config.json").write_text("{")


def add_pickle(folder):
    (folder / "pytorch_model.bin").write_bytes(b"x")


def lose_tokenizer(folder):
    for path in folder.glob("tok*"):
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "where", "why"),
    [
        (truncate, "/model.safetensors", "is truncated: 5000 bytes"),
        (spoil_config, "/config.json", "is not valid JSON"),
        (add_pickle, "/pytorch_model.bin", "pickle"),
        (lose_tokenizer, "", " holds no tokenizer"),
    ],
)
def test_a_damaged_model_folder_is_one_line_and_exit_2(damage, where, why, checkpoint, capsys, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(checkpoint, folder)
    damage(folder)
    assert main(["run", "quick", "--dry-run", "--model", f"path:{folder}"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: model 'path:{folder}': {folder}{where}")
    assert why in err
    assert "A model folder is what save_pretrained writes: config.json, *.safetensors and the tokenizer" in err
    assert err.count("\n") == 1


def test_a_dry_run_prints_cells_and_a_labelled_estimate_and_writes_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["run", "quick", "--dry-run", "--methods", "nf4-g64", "--orders", "lora,beneath", "--models", "tiny-enc*"]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    cells = ["tiny-encoder/alice-labels/lora/fp32/0", "tiny-encoder/alice-labels/beneath/nf4-g64/0"]
    assert [line.split()[0] for line in lines[:2]] == cells
    assert lines[2].startswith("2 cells, about ")
    assert lines[2].endswith("(an estimate: 2 without any by a rough guess)")
    assert list(tmp_path.iterdir()) == []


def test_explain_and_show_know_the_threads_of_each_order(capsys, tmp_path):
    from tests.bench.test_run import fates

    words = ["run", "quick", "--methods", "nf4-g64", "--models", "tiny-causal", "--orders", "lora,beneath,speed"]
    out = tmp_path / "r"
    assert main([*words, "--threads", "2", "--no-plots", "--out", str(out)]) == 0
    assert len(fates(out)) == 2
    for order, threads in (("beneath", 1), ("speed", 2)):
        cell = f"tiny-causal/alice/{order}/nf4-g64/0"
        capsys.readouterr()
        assert main(["explain", cell, "--out", str(out), "--threads", "2"]) == 0
        assert "nothing changed" in capsys.readouterr().out
        assert main(["show", cell, "--out", str(out)]) == 0
        shown = capsys.readouterr().out.rstrip().splitlines()[-1]
        assert shown.startswith("reproduce: bench run quick ")
        assert f" --threads {threads} " in shown
        again, _, fresh = shown.removeprefix("reproduce: bench ").removesuffix(" --force").partition(" --out ")
        assert fresh.startswith("results/local/reproduced/")
        assert main([*again.split(), "--out", str(out), "--no-plots"]) == 0
        assert "1 of 1 cells reused" in capsys.readouterr().err, "the command has the same key"
    cell = "tiny-causal/alice/speed/nf4-g64/0"
    assert main(["explain", cell, "--out", str(out), "--threads", "3"]) == 0
    assert "  threads: 2 -> 3" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["models", "tasks", "orders", "experiments"])
def test_lists_are_json_with_an_idea_for_each(kind, capsys):
    assert main(["list", kind, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows
    assert all(row["idea"] for row in rows)


def test_show_tells_everything_and_the_command_that_reproduces_it(capsys, tmp_path):
    save(tmp_path / "r", made())
    assert main(["show", NF4, "--out", str(tmp_path / "r")]) == 0
    out = capsys.readouterr().out
    assert '"forward_b1_s"' in out
    assert out.rstrip().endswith(
        "reproduce: bench run quick --models m --tasks t --orders beneath --methods nf4-g64 --seeds 0 "
        "--device cpu --threads 2 --out results/local/reproduced/k --force"
    )
    assert main(["show", "m/t/beneath/nf5-g64/0", "--out", str(tmp_path / "r")]) == 2
    assert f"Did you mean '{NF4}'?" in capsys.readouterr().err


def test_a_folder_without_records_hides_no_other(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "results" / "local" / "begun")
    save(tmp_path / "results" / "r", made())
    assert main(["show", NF4]) == 0
    assert "folder    results/r\n" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["report", "r", "--no-plots"], ["show", NF4, "--out", "r"], ["compare", "r", "r"]])
def test_lines_that_cannot_be_read_are_told_and_left_alone(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bench.cli._reports", lambda: Reports(lambda out, records, plots: [], lambda r, width: ""))
    folder = save(tmp_path / "r", made())
    data = b"{oops}\n" + (folder / FILE).read_bytes() + b"[]\n" + to_line(made())[:-1]
    (folder / FILE).write_bytes(data)
    assert main(words) == 0
    err = capsys.readouterr().err
    advice = "Not counted; the next run with --out r mends the file and runs its cell again\n"
    assert f"warning: r/{FILE}:1: invalid JSON at column 2. {advice}" in err
    assert f"warning: r/{FILE}:3: not a JSON object. {advice}" in err
    assert f"warning: r/{FILE}:4: the line has no end. {advice}" in err
    assert [path.name for path in folder.iterdir()] == [FILE]
    assert (folder / FILE).read_bytes() == data


def test_debug_shows_the_traceback():
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--debug", "run", "qick"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" in done.stderr
    assert done.returncode != 0


def test_a_changed_source_changes_the_key_of_its_own_method_only():
    from bench.key import changed, key_of, source_hash, sources_of
    from quant import METHODS

    files = {"quant/core.py": "1", "quant/methods/nf4.py": "1", "quant/methods/none.py": "1", "bench/train.py": "1"}
    bf16 = METHODS["bf16"]
    before = source_hash(sources_of(bf16, files))
    assert source_hash(sources_of(bf16, files | {"quant/methods/nf4.py": "2"})) == before
    for name in ("quant/core.py", "quant/methods/none.py", "bench/train.py"):
        assert source_hash(sources_of(bf16, files | {name: "2"})) != before
    assert key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1}) != key_of({"a": 1, "b": 3})
    assert changed({"a": {"b": 1, "c": [1]}}, {"a": {"b": 2, "c": (1,)}}) == [("a.b", 1, 2)]


def test_presenting_files_are_not_in_the_key():
    from bench.key import file_hashes

    names = set(file_hashes())
    assert {"bench/cells.py", "bench/worker.py", "quant/core.py", "kernels/packing.py"} <= names
    assert not {"bench/cli.py", "bench/__main__.py", "bench/doctor.py", "bench/estimate.py"} & names
    assert not any(name.startswith("bench/reports/") for name in names)


def test_a_report_that_cannot_be_written_loses_no_record(tmp_path, monkeypatch):
    from bench.errors import StoppedError
    from tests.bench import toy_main

    def fails(out, records, plots):
        raise OSError("No space left on device")

    monkeypatch.setattr(toy_main, "Reports", lambda write, table: Reports(fails, table))
    with pytest.raises(StoppedError, match="the records are safe"):
        run_toys(tmp_path, ["a"])
    assert b'"status":"ok"' in (tmp_path / FILE).read_bytes()


def test_a_report_removes_the_files_of_the_one_before_and_no_other(tmp_path, monkeypatch):
    from tests.bench import toy_main

    def files(folder):
        return sorted(str(p.relative_to(folder)) for p in folder.glob("*/*") if p.parent.name in ("tables", "plots"))

    def reports(*names):
        def write(out, records, plots):
            paths = [out / name for name in names]
            for path in paths:
                path.parent.mkdir(exist_ok=True)
                path.write_text("x")
            page = out / "README.md"
            page.write_text(" ".join(f"[{name}]({name})" for name in names) + " ![up](plots/../../up.md)")
            return [*paths, page]

        monkeypatch.setattr(toy_main, "Reports", lambda _, table: Reports(write, table))
        assert run_toys(tmp_path / "r", ["a"]) == 0

    (tmp_path / "up.md").write_text("mine")
    reports("tables/a-quick.md", "plots/a-quick.png", "plots/b.svg")
    (tmp_path / "r" / "tables" / "notes.md").write_text("mine")
    reports("tables/a.md", "plots/b.svg")
    assert files(tmp_path / "r") == ["plots/b.svg", "tables/a.md", "tables/notes.md"]
    assert (tmp_path / "up.md").read_text() == "mine"

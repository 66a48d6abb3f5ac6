"""Experiment files: strict, with the true line of every mistake; and the cells that they expand to."""

import textwrap

import pytest

from bench.errors import UsageError
from bench.experiment import Names, Selection, builtin, expand, find
from bench.experiment_file import load
from bench.schema import ORDERS, REFERENCES, Cell
from bench.toml_lines import key_lines
from tests.bench.toys import ToyProtocol

NAMES = Names(
    ("fp32", "bf16", "nf4-g64", "nf4-g32", "uniform-int4-g64"),
    ("tiny", "mini", "path:", "hf:"),
    {"imdb": "encoder", "films": "encoder", "reviews": "causal"},
)
GOOD = """\
# a comment with [brackets] and = signs
name = "suite"
seeds = [0, 1]
methods = [
  "nf4*",  # ] not the end
  "-*-g32",
]

[protocol]
pause_s = 0
sizes = [1, 2]

[[grid]]
models = ["mini"]
tasks = ["imdb", "films"]
orders = ["beneath", "lora"]

[[grid]]
models = ["tiny"]
tasks = ["reviews"]
orders = ["beneath"]
methods = ["*"]
seeds = [3]
"""


@pytest.fixture
def read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def reader(text):
        (tmp_path / "suite.toml").write_text(textwrap.dedent(text))
        return load(find("suite.toml"), NAMES, ToyProtocol)

    return reader


def test_cells_are_ordered_and_references_run_once_unquantized(read):
    cells = expand(read(GOOD), NAMES)
    assert [str(c) for c in cells] == [
        "mini/imdb/lora/fp32/0",
        "mini/imdb/lora/fp32/1",
        "mini/films/lora/fp32/0",
        "mini/films/lora/fp32/1",
        "mini/imdb/beneath/nf4-g64/0",
        "mini/imdb/beneath/nf4-g64/1",
        "mini/films/beneath/nf4-g64/0",
        "mini/films/beneath/nf4-g64/1",
        *(f"tiny/reviews/beneath/{method}/3" for method in NAMES.methods),
    ]


def test_overlapping_grids_give_each_cell_once(read):
    again = GOOD + '\n[[grid]]\nmodels = ["mini"]\ntasks = ["imdb"]\norders = ["beneath"]\n'
    cells = expand(read(again), NAMES)
    assert len(cells) == len(set(cells)) == 13


def test_the_command_line_narrows_and_keeps_the_references(read):
    experiment = read(GOOD)
    cells = expand(experiment, NAMES, Selection(methods=("nf4-g64",), tasks=("imdb",), seeds=(7,)))
    assert cells == [Cell("mini", "imdb", "lora", "fp32", 7), Cell("mini", "imdb", "beneath", "nf4-g64", 7)]
    only = expand(experiment, NAMES, Selection(orders=("beneath",), models=("mini",)))
    assert {c.order for c in only} == {"beneath"}
    with pytest.raises(UsageError, match=r"^--methods 'nf5' matched 0 of 5 methods"):
        expand(experiment, NAMES, Selection(methods=("nf5",)))
    with pytest.raises(UsageError, match="experiment 'suite' has no cell"):
        expand(experiment, NAMES, Selection(tasks=("reviews",), orders=("lora",)))


def test_a_model_of_ones_own_replaces_those_of_its_kind(read):
    cells = expand(read(GOOD), NAMES, Selection(replace=(("path:my", "causal"),)))
    assert {c.model for c in cells if c.task == "reviews"} == {"path:my"}
    assert {c.model for c in cells if c.task == "imdb"} == {"mini"}
    only_causal = Selection(replace=(("path:my", "diffusion"),))
    with pytest.raises(UsageError, match="fits no task of experiment 'suite'"):
        expand(read(GOOD), NAMES, only_causal)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('models = ["mini"]', 'modles = ["mini"]', "suite.toml:14: unknown key 'modles'. Did you mean 'models'?"),
        ("seeds = [3]", "sedes = [3]", "suite.toml:23: unknown key 'sedes'. Did you mean 'seeds'?"),
        ("pause_s", "puase_s", "suite.toml:10: unknown key 'puase_s'. Did you mean 'pause_s'?"),
        (
            "pause_s",
            '"pause_s "',
            "suite.toml:10: unknown key 'pause_s ' (stray blank?). Did you mean 'pause_s'?",
        ),
        ('"films"', '"flims"', "suite.toml:15: unknown task 'flims'. Did you mean 'films'?"),
        ('["tiny"]', '["tinny"]', "suite.toml:19: unknown model 'tinny'. Did you mean 'tiny'?"),
        ('"beneath", "lora"', '"benaeth", "lora"', "suite.toml:16: unknown order 'benaeth'. Did you mean 'beneath'?"),
        ('"-*-g32"', '"-*-g23"', "suite.toml:4: methods '-*-g23' matched 0 of 5 methods."),
        ('["*"]', '"*"', "suite.toml:22: methods must be a list of texts"),
        ("seeds = [0, 1]", "seeds = [-1]", "suite.toml:3: seeds must be a list of whole numbers from 0, got [-1]"),
        ("seeds = [0, 1]", "quick = 1", "suite.toml:3: quick must be true or false, got 1"),
        ("pause_s = 0", "pause_s = true", "suite.toml:10: pause_s must be of type float, got True"),
        ("sizes = [1, 2]", 'sizes = ["a"]', "suite.toml:11: sizes must be of type tuple[int, ...], got ['a']"),
        ('"imdb", "films"', '"imdb", "reviews"', "suite.toml:15: tasks of one grid must be of one kind of model"),
        ('name = "suite"', "name = 3", "suite.toml:2: name must be a text"),
        ("seeds = [3]", "seeds = [3", "suite.toml:"),
    ],
)
def test_every_mistake_names_its_line(read, old, new, message):
    assert old in GOOD
    with pytest.raises(UsageError) as error:
        read(GOOD.replace(old, new, 1))
    assert str(error.value).startswith(message)
    assert error.value.exit_code == 2


@pytest.mark.parametrize("name", ["a/b", "../up", "..", ".hidden", "-x", "two words", "a\\\\b", "ä", "x\\n"])
def test_a_name_that_is_no_folder_is_an_error(read, name):
    with pytest.raises(UsageError, match=r"^suite\.toml:2: name '.*' cannot be used, it names a folder: letters"):
        read(GOOD.replace('"suite"', f'"{name}"', 1))


@pytest.mark.parametrize("name", ["a", "my-suite_2.1", "7"])
def test_a_plain_name_is_right(read, name):
    assert read(GOOD.replace('"suite"', f'"{name}"', 1)).name == name


def test_checkpoints_are_looked_at_when_the_file_is_read(tmp_path):
    def kind_of(spec):
        if spec == "path:gone":
            raise UsageError("model 'path:gone': no such folder. Remedy")
        return "encoder"

    path = tmp_path / "suite.toml"

    def says(models, tasks='["imdb"]'):
        path.write_text(f'name = "x"\n[[grid]]\nmodels = {models}\ntasks = {tasks}\norders = ["lora"]\n')
        with pytest.raises(UsageError) as error:
            load(path, NAMES, ToyProtocol, kind_of)
        return str(error.value)

    assert says('[\n"hf:good",\n"path:gone"]') == f"{path}:5: model 'path:gone': no such folder. Remedy"
    assert says('["path:good"]', '["reviews"]').startswith(f"{path}:3: model 'path:good' is of kind 'encoder', but")
    path.write_text('name = "x"\n[[grid]]\nmodels = ["path:good", "mini"]\ntasks = ["imdb"]\norders = ["lora"]\n')
    assert load(path, NAMES, ToyProtocol, kind_of).grids[0].models == ("path:good", "mini")


def test_a_missing_key_and_an_empty_file_are_errors(read):
    with pytest.raises(UsageError, match=r"suite.toml:13: models must be a list of texts.*it is missing"):
        read(GOOD.replace('models = ["mini"]\n', ""))
    with pytest.raises(UsageError, match="name must be a text"):
        read("")
    with pytest.raises(UsageError, match="at least one"):
        read('name = "x"')


def test_lines_are_found_among_strings_and_brackets():
    text = (
        'a = """\nb = 1\n[c]\n"""\nb = [\n  "x = 1",\n  {d = 2},\n]\n[[t]]\n\'q\' = 1\n[t.u]\nv = 1\n[[t]]\nq.r = 2\n'
    )
    lines = key_lines(text)
    assert lines == {
        ("a",): 1,
        ("b",): 5,
        ("t", 0): 9,
        ("t", 0, "q"): 10,
        ("t", 0, "u"): 11,
        ("t", 0, "u", "v"): 12,
        ("t", 1): 13,
        ("t", 1, "q"): 14,
        ("t", 1, "q", "r"): 14,
    }


def test_unknown_experiments_suggest_the_nearest():
    with pytest.raises(UsageError, match=r"unknown experiment 'qick'\. Did you mean 'quick'\?"):
        find("qick")
    with pytest.raises(UsageError, match=r"no experiment file 'mine.toml'"):
        find("mine.toml")


@pytest.mark.parametrize("name", sorted(builtin()))
def test_the_built_in_experiments_are_right_and_baselines_come_first(name):
    from bench.catalog import known_names
    from bench.protocol import Protocol

    experiment = load(find(name), known_names(), Protocol)
    cells = expand(experiment, known_names())
    assert experiment.name == name
    assert experiment.quick == (name == "quick")
    place = {cell: i for i, cell in enumerate(cells)}
    for cell in cells:
        if cell.order not in REFERENCES:
            assert place[Cell(cell.model, cell.task, "lora", "fp32", cell.seed)] < place[cell]


def test_the_full_experiment_has_every_order_that_can_be_run():
    from bench.catalog import known_names
    from bench.protocol import Protocol
    from bench.qlora import QLORA

    experiment = load(find("full"), known_names(), Protocol)
    for kind in ("encoder", "causal"):
        grids = [grid for grid in experiment.grids if {known_names().tasks[task] for task in grid.tasks} == {kind}]
        offered = {order for grid in grids for order in grid.orders}
        assert not set(QLORA) - offered, kind
        assert offered == set(ORDERS), kind
    assert set(QLORA) <= set(ORDERS)


def test_the_quick_experiment_is_the_quick_protocol():
    from bench.catalog import known_names
    from bench.protocol import QUICK, Protocol

    assert load(find("quick"), known_names(), Protocol).protocol == QUICK

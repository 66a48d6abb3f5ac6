"""What a run shows: the time left with several workers, and every cell that runs."""

import io

from rich.console import Console
from rich.text import Text

from bench.estimate import Estimate
from bench.progress import Lines, LiveTable
from bench.run import Job
from bench.schema import Cell


def job(method, order="beneath", model="m"):
    return Job(Cell(model, "t", order, method), method, {})


def done(cell, wall_s=4.0, status="ok"):
    return {"cell": cell.as_dict(), "status": status, "wall_s": wall_s}


def test_a_line_tells_the_time_left():
    out = io.StringIO()
    todo = [job(method, model="minilm") for method in "abcde"] + [job("q", "qlora", "minilm")]
    with Lines(todo, 0, Estimate([]), 2, Console(file=out)) as lines:
        lines.finished(done(todo[0].cell, wall_s=10.0))
    # 4 more of 10 s as measured, and a guess of 28 s that was half of the truth so far, by two workers
    assert out.getvalue().strip().endswith("eta 56 s")
    with Lines(todo, 0, Estimate([]), 1, Console(file=out)) as lines:
        lines.finished(done(todo[0].cell, wall_s=10.0))
    assert out.getvalue().strip().endswith("eta 96 s")


def test_all_running_cells_are_shown():
    screen = Console(file=io.StringIO(), force_terminal=True, width=100, height=40)
    todo = [job(method) for method in ("first", "second", "third")]
    live = LiveTable(todo, [], Estimate([]), 2, screen, lambda records, width: Text(f"{len(records)} rows"))

    def shown():
        with screen.capture() as captured:
            screen.print(live._view())
        return captured.get()

    with live:
        live.started(todo[0])
        live.started(todo[1])
        both = shown()
        live.finished(done(todo[0].cell))
        live.started(todo[2])
        later = shown()
    assert "first" in both
    assert "second" in both
    assert "first" not in later
    assert "third" in later

"""Tuning: every configuration of every kernel timed at the shapes of `bench.gpu.shapes`, the fastest remembered.

Compiling takes most of it, so all configurations are compiled first, by several processes that fill the one cache of
Triton; then one process times them, by CUDA graphs with rotated inputs as the benchmark does. The table is written by
`kernels.tuned`, which also says what a class of shape is: of several inputs of one class the first is timed.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Container, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from bench.gpu.items import Item, Maker, Work, place_of, plan
from bench.gpu.shapes import SHAPES
from bench.gpu.store import Sink
from bench.gpu.subjects import total_bytes
from bench.gpu.sweep import Budget
from bench.gpu.timing import Watch, lost, one_line
from kernels import tuned
from kernels.tuning import Launch

__all__ = ["Tuning", "compile_all", "compile_share", "pinned", "seconds_of"]

SAMPLES = 5
LATE = "the time budget ended before it"
Seconds = Callable[[Launch, Any], float]


def pinned(launch: Launch, config: Any) -> Launch:
    """The launch in this configuration and no other."""
    return dataclasses.replace(launch, kernel=dataclasses.replace(launch.kernel, configs=(config,)))


def named(launch: Launch, config: Any) -> str:
    """A configuration of a kernel as a word."""
    return "-".join([launch.kernel.fn.__name__, *(f"{key}{value}" for key, value in tuned.as_values(config).items())])


def compile_share(device: str, i: int, n: int, budget: Budget) -> int:
    """Launch the configurations whose number is i modulo n once each; how many there were. A failure is left to `tune`.

    Those of the first shape alone: the compiled code depends on the format first, and on the shape where its sizes are
    divided otherwise; what another shape still needs is compiled when it is timed.
    """
    done, number = 0, 0
    make = Maker(device)
    for item in plan():
        if item.shape != SHAPES[0]:
            continue
        try:
            works = make(item)
        except Exception as error:
            print(f"{item}: {one_line(error)}", flush=True)
            continue
        for launch, config in ((w.launch, config) for w in works for config in w.launch.kernel.configs):
            number += 1
            if (number - 1) % n != i:
                continue
            if budget.left <= 0:
                return done
            try:
                pinned(launch, config).run()
                torch.cuda.synchronize()
            except Exception as error:
                print(f"{item}, {named(launch, config)}: {one_line(error)}", flush=True)
                if lost():
                    return done
            done += 1
    return done


def compile_all(device: str, n: int, seconds: float) -> list[int | None]:
    """`compile_share` in `n` processes, ended after `seconds`; their exit codes, None for one that had to be ended."""
    command = [sys.executable, "-m", "bench.gpu", "compile", "--device", device, "--seconds", f"{seconds:.0f}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # there are as many processes as processors
    started = [subprocess.Popen([*command, "--shard", f"{i}/{n}"], env=environment) for i in range(n)]
    end = time.monotonic() + seconds + 2
    codes: list[int | None] = []
    for process in started:
        try:
            codes.append(process.wait(timeout=max(end - time.monotonic(), 0.0)))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            codes.append(None)
    return codes


def seconds_of(watch: Watch) -> Seconds:
    """A function that times a launch in a configuration: median of replays over copies of its tensors."""

    def timed(launch: Launch, config: Any) -> float:
        one = pinned(launch, config)
        copies = [
            dataclasses.replace(one, arguments=tree_map(_copy, dict(launch.arguments)))
            for _ in range(watch.copies(total_bytes(dict(launch.arguments))))
        ]
        calls = [copy.run for copy in copies]
        for call in calls:
            call()
        replay = watch.replay(calls)
        if isinstance(replay, str):
            return statistics.median(watch.once(calls[i % len(calls)])[0] for i in range(SAMPLES))
        return statistics.median(replay() for _ in range(SAMPLES))

    return timed


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


class Tuning:
    """Times the configurations of launches and remembers the fastest of each, a record each; `wrong` have failed.

    `lost` is asked after a failure whether the device still answers, and then says why it does not.
    """

    def __init__(
        self, seconds: Seconds, sink: Sink, budget: Budget, about: Mapping[str, Any], lost: Callable[[], str] = str
    ) -> None:
        self.seconds, self.sink, self.budget, self.about, self.lost = seconds, sink, budget, about, lost
        self.wrong = 0

    def run(self, items: Sequence[Item], make: Callable[[Item], list[Work]], without: Container[str] = ()) -> str:
        """Tune the items in order while time is left; the name of what took the device away, else nothing.

        What is not reached is listed in one record. `without` names items' operations and configurations to leave out.
        """
        for i, item in enumerate(items):
            if item.name in without:
                continue
            if self.budget.left <= 0:
                self.unreached(items[i:])
                break
            try:
                works = make(item)
            except Exception as error:
                self.wrong += 1
                self.sink(self.head(str(item), item.name) | {"status": "failed", "reason": one_line(error)})
                if self.lost():
                    return item.name
                continue
            for work in works:
                if guilty := self.work(work, without):
                    return guilty
        return ""

    def work(self, work: Work, without: Container[str] = ()) -> str:
        """Tune one launch; the name of the configuration that took the device away, else nothing.

        A configuration that cannot run, or that time does not suffice for, counts as infinitely slow; a launch of
        which none can has failed.
        """
        times: list[tuple[dict[str, Any], float | None, str]] = []
        guilty = ""

        def one(config: Any) -> float:
            nonlocal guilty
            name, spent = named(work.launch, config), None
            why = f"the device was lost in {guilty}" if guilty else LATE if self.budget.left <= 0 else ""
            if name in without:
                why = "left out: it took the device away"
            try:
                spent = None if why else self.seconds(work.launch, config)
            except Exception as error:
                why = one_line(error)
                guilty = name if self.lost() else ""
            times.append((tuned.as_values(config), spent, why))
            return float("inf") if spent is None else spent

        kernel = work.launch.kernel
        chosen = tuned.search(kernel, work.launch.arguments, self.about["device_name"], one)
        reasons = list(dict.fromkeys(reason for _, _, reason in times if reason))
        none = bool(times) and all(spent is None for _, spent, _ in times)
        status = "ok" if not none else "skipped" if reasons == [LATE] else "failed"
        self.wrong += status == "failed"
        head = self.head(place_of(work.launch), work.label) | {"kernel": kernel.fn.__name__}
        head |= {"place": place_of(work.launch), "status": status, "reason": "; ".join(reasons)}
        head |= {"config": tuned.as_values(chosen)}
        known = times if self.about["device"] == "cuda" else []
        self.sink(head | {"times": [{"config": c, "seconds": t} for c, t, _ in known]})
        return guilty

    def unreached(self, items: Sequence[Item]) -> None:
        """The record of what time did not suffice for; a class of shape among it may have been tuned by another."""
        head = self.head("not reached", f"{len(items)} items") | {"status": "skipped"}
        self.sink(head | {"reason": f"{LATE}: {len(items)} items", "unreached": [str(item) for item in items]})

    def head(self, key: str, what: str) -> dict[str, Any]:
        """What every record says."""
        head = {"kind": "tuned", "key": f"{self.about['device_name']} / tuned / {key}", "what": what}
        head |= {"device": self.about["device"], "started_utc": datetime.now(UTC).isoformat(timespec="seconds")}
        return head | {"provenance": self.about}

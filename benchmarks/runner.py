"""What the runner costs a load, and what it saves one that fails: `make bench-runner`.

Overhead: a million rows into a new DuckDB file, by `pipeline.run` and by the runner, in processes of their own, in
turn. A machine's noise is many times what is looked for, so it is looked at from near: the time within one run that is
the runner's and not dlt's (`around`), and the difference between many loads of one row with and without the runner, in
one process (`fixed`). The ratios of whole runs are told beside them.

Failing once: the same rows into PostgreSQL, each run a flow with one task; while the last table is copied, the
connection is cut. The runner tries again, against a task with one retry that calls `pipeline.run`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.shared import (
    ROOT,
    Figures,
    in_turn,
    machine,
    peak_memory,
    print_aims,
    run_child,
    server,
    show,
    spread,
)

BASELINE = "pipeline.run"
VARIANTS: dict[str, dict[str, Any]] = {
    "runner": {},
    "verify": {"verify": True},
    "traces": {"store_trace_info": True},
}
WITH_AN_AIM = ("runner", "verify")

UNDISTURBED, FAILING = "undisturbed", "fails once"
BY_TASK, BY_RUNNER = "task retry", "runner"

RESOURCES = 8
PAGE = 1_000

MOST_OVER = 0.5
"""Per cent of the load that the runner may take."""

MOST_LOST = 1.0
"""Seconds that a load which fails once may lose beside the load step that failed."""


# -- what is loaded ----------------------------------------------------------------------------------------------------

_read = [0]


def source(rows: int) -> Any:
    """Return the source; what is read of it is counted."""
    import dlt

    def pages(first: int) -> Iterator[list[dict[str, Any]]]:
        for start in range(first, first + rows // RESOURCES, PAGE):
            page = range(start, min(start + PAGE, first + rows // RESOURCES))
            _read[0] += len(page)
            yield [
                {
                    "id": each,
                    "name": f"name {each % 997}",
                    "amount": each * 0.25,
                    "is_paid": each % 3 == 0,
                    "day": each % 366,
                }
                for each in page
            ]

    def parts() -> list[Any]:
        share = rows // RESOURCES
        return [dlt.resource(pages, name=f"part_{number}")(number * share) for number in range(RESOURCES)]

    return dlt.source(parts, name="bench")()


def loaded(pipeline: Any) -> list[int]:
    """Return what the destination holds of each table."""
    found: list[int] = []
    with pipeline.sql_client() as client:
        for number in range(RESOURCES):
            table = client.make_qualified_table_name(f"part_{number}")
            query = f"SELECT count(*), sum(id), CAST(sum(amount) AS BIGINT), count(DISTINCT name) FROM {table}"
            found += [int(value) for value in client.execute_sql(query)[0]]
    return found


# -- overhead: one run, in a process of its own ------------------------------------------------------------------------


def new_pipeline(name: str = "bench") -> Any:
    """Return a pipeline into a DuckDB file of its own in the current folder."""
    import dlt

    return dlt.pipeline(
        name,
        pipelines_dir="pipelines",
        destination=dlt.destinations.duckdb(f"{name}.duckdb"),
        dataset_name="bench_data",
    )


class Within:
    """The wall and CPU seconds that dlt itself takes, in calls that are not made by another one."""

    def __init__(self, pipeline: Any) -> None:
        self.wall = self.cpu = 0.0
        self._depth = 0
        for name in ("run", "normalize", "load"):
            setattr(pipeline, name, self._timed(getattr(pipeline, name)))

    def _timed(self, act: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            self._depth += 1
            began, cpu = time.perf_counter(), time.process_time()
            try:
                return act(*arguments, **options)
            finally:
                self._depth -= 1
                if not self._depth:
                    self.wall += time.perf_counter() - began
                    self.cpu += time.process_time() - cpu

        return timed


def once(variant: str, rows: int) -> Figures:
    """Load the rows; return what that took, and how much of it was not dlt's."""
    pipeline = new_pipeline()
    data = source(rows)
    within = Within(pipeline)
    wall, cpu = _run(variant, pipeline, data, loader_file_format="parquet")
    figures = {"wall": wall, "cpu": cpu, "around": wall - within.wall, "around_cpu": cpu - within.cpu}
    return {**figures, "memory": peak_memory(), "loaded": loaded(pipeline)}


def many(variant: str, pairs: int) -> Figures:
    """Load one row many times with and without the runner, in turn; return the differences within the pairs."""
    differences: list[tuple[float, float]] = []
    pipelines = {name: new_pipeline(name) for name in ("plain", "managed")}
    for number in range(pairs + 5):
        took: dict[str, tuple[float, float]] = {}
        for name in sorted(pipelines, reverse=bool(number % 2)):
            pipelines[name].activate()
            how = BASELINE if name == "plain" else variant
            took[name] = _run(how, pipelines[name], [{"id": number}], table_name="rows")
        # The first few make tables and fill caches.
        if number >= 5:  # noqa: PLR2004
            differences.append((took["managed"][0] - took["plain"][0], took["managed"][1] - took["plain"][1]))
    return {"fixed": [wall for wall, _ in differences], "fixed_cpu": [cpu for _, cpu in differences]}


def _run(variant: str, pipeline: Any, data: Any, **options: Any) -> tuple[float, float]:
    from prefect_dlt import runner

    began, cpu = time.perf_counter(), time.process_time()
    if variant == BASELINE:
        pipeline.run(data, **options)
    else:
        runner(pipeline, **VARIANTS[variant]).run(data, **options)
    return time.perf_counter() - began, time.process_time() - cpu


# -- failing once: one run, in a process of its own --------------------------------------------------------------------


def failing(variant: str, fails: bool, rows: int) -> Figures:
    """Load the rows into a new PostgreSQL, in a flow; return what that took, and how much was read."""
    from tests.postgres import by_port, postgres_server, socket_of
    from tests.tcp_proxy import TcpProxy

    with postgres_server() as make_database:
        address = make_database("bench")
        proxy = TcpProxy(socket_of(address))
        try:
            if fails:
                proxy.cut_at(b"COPY", b"part_7")
            figures = _in_a_flow(variant, rows, by_port(address, proxy.port))
            if proxy.failures != int(fails):
                raise RuntimeError(f"The connection was cut {proxy.failures} times")
            return figures
        finally:
            proxy.close()


def _in_a_flow(variant: str, rows: int, address: str) -> Figures:
    import dlt
    from prefect import flow, task

    from prefect_dlt import runner
    from prefect_dlt.retry import fixed_attempts

    steps: list[tuple[float, float]] = []

    def pipeline() -> Any:
        return dlt.pipeline(
            "bench",
            pipelines_dir="pipelines",
            destination=dlt.destinations.postgres(address),
            dataset_name="bench_data",
        )

    def note(made: Any) -> None:
        steps.extend(
            (step.started_at.timestamp(), step.finished_at.timestamp())
            for step in (made.last_trace.steps if made.last_trace else ())
            if step.step == "load" and step.finished_at
        )

    def load_by_task() -> None:
        made = pipeline()
        try:
            made.run(source(rows), loader_file_format="csv")
        finally:
            note(made)

    def load_by_runner() -> None:
        made = pipeline()
        policy = fixed_attempts(2, wait=0.0).copy(before_sleep=lambda _state: note(made))
        try:
            runner(made, retry_policy=policy).run(source(rows), loader_file_format="csv")
        finally:
            note(made)

    if variant == BY_TASK:
        body = task(name="load", retries=1, retry_delay_seconds=0)(load_by_task)
    else:
        body = task(name="load")(load_by_runner)

    @flow(name="bench-runner")
    def bench() -> None:
        body()

    began, cpu = time.perf_counter(), time.process_time()
    bench()
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    return {
        "wall": wall,
        "cpu": cpu,
        "memory": peak_memory(),
        # From the first load step's beginning to the end of the last one: all that a failure there can cost.
        "loading": steps[-1][1] - steps[0][0],
        "first_load": steps[0][1] - steps[0][0],
        "read": _read[0],
        "loaded": loaded(pipeline()),
    }


# -- all runs ----------------------------------------------------------------------------------------------------------


def measure(kind: str, variant: str, size: int, home: Path, api: str = "") -> Figures:
    """Run one variant in a process and a folder of its own; return its figures."""
    return run_child(
        __file__,
        ["--child", kind, "--variant", variant, "--rows", str(size)],
        home,
        # dlt's own tries of a job, five by default, would make the failure good before anyone sees it.
        LOAD__RAISE_ON_MAX_RETRIES="1",
        **({"PREFECT_API_URL": api} if api else {}),
    )


def child(kind: str, variant: str, size: int) -> Figures:
    """Do in this process what `measure` asks for."""
    if kind == "once":
        return once(variant, size)
    if kind == "many":
        return many(variant, size)
    return failing(variant, kind == FAILING, size)


def main() -> int:
    """Run all variants in turn, print and write the figures; return 1 when an aim is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of a load (1,000,000)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds after a warm-up (5)")
    parser.add_argument("--pairs", type=int, default=100, help="pairs of loads of one row (100)")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench-runner.json", help="file for the figures")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--variant", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        figures = child(arguments.child, arguments.variant, arguments.rows)
        Path("figures.json").write_text(json.dumps(figures))
        return 0

    whole: dict[str, list[Figures]] = {name: [] for name in [BASELINE, *VARIANTS]}
    small: dict[str, Figures] = {}
    disturbed: dict[str, list[Figures]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-runner-") as folder:
        home = Path(folder)
        for number, name in in_turn(arguments.rounds, list(whole)):
            figures = measure("once", name, arguments.rows, home)
            show(number, name, figures)
            if number:
                whole[name].append(figures)
        for name in VARIANTS:
            small[name] = measure("many", name, arguments.pairs, home)
            print(f"one row  {name:24} fixed {median(small[name]['fixed']) * 1e3:.1f} ms", flush=True)
        kinds = [(by, kind) for by in (BY_TASK, BY_RUNNER) for kind in (UNDISTURBED, FAILING)]
        with server(home) as api:
            for number, (by, kind) in in_turn(arguments.rounds, kinds):
                figures = measure(kind, by, arguments.rows, home, api)
                show(number, f"{by}, {kind}", figures)
                if number:
                    disturbed.setdefault(f"{by}, {kind}", []).append(figures)
    return report(whole, small, disturbed, arguments.rows, arguments.out)


def report(
    whole: dict[str, list[Figures]],
    small: dict[str, Figures],
    disturbed: dict[str, list[Figures]],
    rows: int,
    out: Path,
) -> int:
    """Print and write what was measured, and how it compares with the aims."""
    expected = whole[BASELINE][0]["loaded"]
    for name, runs in {**whole, **disturbed}.items():
        if any(figures["loaded"] != expected for figures in runs):
            raise RuntimeError(f"{name} did not load what the others did")
    ran_on = machine()
    print(f"\n{rows:,} rows, {RESOURCES} resources; " + ", ".join(f"{key} {value}" for key, value in ran_on.items()))
    print("min / median / max; around: what is not dlt's in a run; fixed: of a load of one row, over pipeline.run\n")
    for name, runs in {**whole, **disturbed}.items():
        kinds = [("wall", "s", 2), ("cpu", "s", 2), ("around", "s", 4), ("loading", "s", 2), ("memory", "MiB", 0)]
        cells = [
            f"{kind} {spread([run[kind] for run in runs], digits)} {unit}"
            for kind, unit, digits in kinds
            if kind in runs[0]
        ]
        print(f"{name:24} " + "  ".join(cells))
    base = whole[BASELINE]
    for name in VARIANTS:
        pairs = list(zip(whole[name], base, strict=True))
        over = {kind: [100 * (run[kind] / plain[kind] - 1) for run, plain in pairs] for kind in ("wall", "cpu")}
        ratios = [f"{kind} {spread(values, 1)} %" for kind, values in over.items()]
        fixed = f"fixed {spread([1e3 * each for each in small[name]['fixed']], 1)} ms"
        print(f"{name:24} over pipeline.run: {', '.join(ratios)}; {fixed}")
    print()
    aims = [aim for name in WITH_AN_AIM for aim in _aims_over(name, whole, small[name])]
    aims += _aims_lost(disturbed, rows)
    is_met = print_aims(aims)
    out.parent.mkdir(parents=True, exist_ok=True)
    figures = {"machine": ran_on, "rows": rows, "whole": whole, "small": small, "disturbed": disturbed, "aims": aims}
    out.write_text(json.dumps(figures, indent=2))
    return 0 if is_met else 1


def _aims_over(name: str, whole: dict[str, list[Figures]], small: Figures) -> list[Figures]:
    load = {kind: median(run[kind] for run in whole[BASELINE]) for kind in ("wall", "cpu")}
    seconds = {
        f"around dlt, {name}": (median(run["around"] for run in whole[name]), load["wall"]),
        f"cpu around dlt, {name}": (median(run["around_cpu"] for run in whole[name]), load["cpu"]),
        f"fixed, {name}": (median(small["fixed"]), load["wall"]),
        f"fixed cpu, {name}": (median(small["fixed_cpu"]), load["cpu"]),
    }
    return [
        {
            "name": f"{kind}",
            "figure": (over := 100 * took / of),
            "unit": "% of the load",
            "aim": f"at most {MOST_OVER} %",
            "met": over <= MOST_OVER,
        }
        for kind, (took, of) in seconds.items()
    ]


def _aims_lost(disturbed: dict[str, list[Figures]], rows: int) -> list[Figures]:
    lost: dict[str, float] = {}
    for by in (BY_RUNNER, BY_TASK):
        pairs = list(zip(disturbed[f"{by}, {FAILING}"], disturbed[f"{by}, {UNDISTURBED}"], strict=True))
        # Of the load steps, and not of whole runs: what differs before is noise.
        lost[by] = median(
            failed["loading"] - failed["first_load"] - (undisturbed["loading"]) for failed, undisturbed in pairs
        )
        again = max(failed["read"] - undisturbed["read"] for failed, undisturbed in pairs)
        walls = spread([failed["wall"] - undisturbed["wall"] for failed, undisturbed in pairs], 2)
        print(f"{by + ', ' + FAILING:24} rows read again {again:,}; lost {walls} s of the whole run")
    read_again = max(run["read"] for run in disturbed[f"{BY_RUNNER}, {FAILING}"]) - (rows // RESOURCES) * RESOURCES
    print()
    return [
        {
            "name": "rows read again, runner",
            "figure": read_again,
            "unit": "rows",
            "aim": "0",
            "met": read_again == 0,
        },
        {
            "name": "lost beside the failed step, runner",
            "figure": lost[BY_RUNNER],
            "unit": f"s (task retry {lost[BY_TASK]:.2f})",
            "aim": f"at most {MOST_LOST} s",
            "met": lost[BY_RUNNER] <= MOST_LOST,
        },
    ]


if __name__ == "__main__":
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "WARNING")
    sys.exit(main())

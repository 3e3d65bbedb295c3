"""What taking a source apart costs, and what it is worth: `make bench-decompose`.

Three loads, each by a flow of `create_run_pipeline_flow(decompose="parallel")` and by its baselines, in processes of
their own, in turn: nested rows that keep the CPU busy, on two processes, into DuckDB; a source that takes its time,
on threads, into DuckDB; TPC-H from PostgreSQL, whose largest table holds most of the rows, on threads, into
DuckDB. And 10, 100 and 1,000 components of one row each, on threads, for what each adds to what dlt takes by itself.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, cast

from benchmarks.decompose_sources import TPCH, build_pipeline, many, nested, one, tpch, waiting
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

PLAIN, PARALLELIZE, WORKERS, FIRST_ALONE, FLOW = (
    "pipeline.run",
    ".parallelize()",
    "normalize.workers",
    "first alone",
    "flow",
)
VARIANTS = (PLAIN, PARALLELIZE, WORKERS, FIRST_ALONE, FLOW)
CPU, WAITING, SKEWED, COUNT = "cpu", "waiting", "skewed", "components"
FIRST = {CPU: "part_0", WAITING: "part_0", SKEWED: "lineitem"}

DLT, BY_HAND, QUIET = "dlt alone", "flow by hand", "flow, no reports"
COUNT_VARIANTS = (DLT, BY_HAND, QUIET, FLOW)

WIDTH = 8
"""Components at a time, on threads."""

LEAST_FASTER = 1.8
"""Times that a flow on two processes is faster than `pipeline.run`, with work for the CPU alone."""

MOST_OVER_LONGEST = 1.05
"""Times that a flow may take as long as its longest component and the seed run together."""

MOST_ADDED = 10.0
"""Milliseconds that a component may add to what dlt takes for it."""

MOST_OFF_LINE = 1.25
"""Times that a figure of the most components may be what the fewer ones let expect."""


# -- one run, in a process of its own ----------------------------------------------------------------------------------


def load(kind: str, variant: str, size: int, address: str) -> Figures:
    """Load what a kind is about by one variant; return what that took."""
    sources = {CPU: partial(nested, size), WAITING: partial(waiting, size), SKEWED: partial(tpch, address)}
    source = sources[kind]
    options = {"loader_file_format": "parquet"}
    pipeline = partial(build_pipeline, "duckdb", "bench.duckdb")
    figures: Figures = {}
    if variant in {FLOW, FIRST_ALONE}:
        # As dlt is, before the clock starts; the seconds of the whole process have both.
        for module in ("prefect.main", "prefect.task_runners", "prefect_dlt.flows"):
            importlib.import_module(module)
    began, cpu = time.perf_counter(), time.process_time()
    if variant in {FLOW, FIRST_ALONE}:
        figures |= _by_flow(kind, variant, pipeline, partial(source, False), options)
    else:
        pipeline().run(source(variant == PARALLELIZE), **options)
    wall = time.perf_counter() - began
    children = os.times()
    cpu = time.process_time() - cpu + children.children_user + children.children_system
    return {"wall": wall, "cpu": cpu, **figures, "memory": peak_memory(), "loaded": loaded(pipeline())}


def _by_flow(kind: str, variant: str, pipeline: Any, source: Any, options: dict[str, Any]) -> Figures:
    from prefect.task_runners import ProcessPoolTaskRunner, ThreadPoolTaskRunner

    from prefect_dlt import create_run_pipeline_flow, fan_out, flow_reporter
    from prefect_dlt.errors import ComponentsFailedError

    runner: Any
    if kind == CPU:
        runner = ProcessPoolTaskRunner(max_workers=2)
    else:
        runner = cast("Any", ThreadPoolTaskRunner)(max_workers=WIDTH)
    flow = create_run_pipeline_flow(pipeline, source, decompose="parallel", flow_name="bench", task_runner=runner)
    if variant == FIRST_ALONE:
        fan_out.shared_dataset = _nothing_prepared  # pyright: ignore[reportPrivateImportUsage]
        flow(resources=[FIRST[kind]], **options)
        left, again = [name for name in source().resources if name != FIRST[kind]], 0
        while left:
            try:
                flow(resources=left, **options)
                break
            except ComponentsFailedError as error:
                # Into DuckDB some of them do, now and then: connections get into each other's way.
                left, again = list(error.failures), again + 1
                # What they append would be there twice: what is pending is loaded, and then all of the source.
                options = {**options, "refresh": "drop_resources"}
        return {"again": float(again)}
    records: list[Any] = []
    publish = flow_reporter._publish  # pyright: ignore[reportPrivateUsage] # noqa: SLF001

    def noted(record: Any) -> None:
        records.append(record)
        publish(record)

    flow_reporter._publish = noted  # pyright: ignore[reportPrivateUsage] # noqa: SLF001
    flow(**options)
    longest = max(each.seconds for each in records[0].components)
    return {"longest": longest, "seed": records[0].seed_seconds, "used": records[0].share_used}


@contextlib.contextmanager
def _nothing_prepared(*_arguments: Any, **_options: Any) -> Generator[None]:
    """Stand for what makes it safe that all components load at once."""
    yield


def loaded(pipeline: Any) -> dict[str, int]:
    """Return the rows of each table that the destination holds, but for those of dlt."""
    with pipeline.sql_client() as client:
        tables = client.execute_sql(
            "SELECT table_name FROM information_schema.tables WHERE table_schema = 'bench_data' ORDER BY 1"
        )
        return {
            name: int(client.execute_sql(f"SELECT count(*) FROM {client.make_qualified_table_name(name)}")[0][0])
            for (name,) in tables
            if not name.startswith("_dlt")
        }


def components(variant: str, count: int) -> Figures:
    """Load components of one row each; return what that took."""
    calls = [0]
    began, cpu = time.perf_counter(), time.process_time()
    pipeline = partial(build_pipeline, "duckdb", "bench.duckdb")
    if variant == DLT:
        _by_dlt_alone(pipeline(), count)
    elif variant == BY_HAND:
        _by_hand(pipeline(), count)
    else:
        from prefect.task_runners import ThreadPoolTaskRunner

        from prefect_dlt import CallbackCollector, create_run_pipeline_flow

        _count_calls_for_reports(calls)
        progress = CallbackCollector(3600.0) if variant == QUIET else None
        runner = cast("Any", ThreadPoolTaskRunner)(max_workers=WIDTH)
        create_run_pipeline_flow(
            partial(pipeline, progress=progress), partial(many, count), decompose="parallel", task_runner=runner
        )()
    figures = {"wall": time.perf_counter() - began, "cpu": time.process_time() - cpu, "memory": peak_memory()}
    return {**figures, "calls": calls[0], "loaded": loaded(pipeline())}


def _count_calls_for_reports(calls: list[int]) -> None:
    # Here, and not in a proxy, which would take CPU from the same cores.
    from prefect_dlt.prefect_api import PrefectApi

    on_request: Any = PrefectApi._on_request  # pyright: ignore[reportPrivateUsage] # noqa: SLF001

    def counted(self: PrefectApi, request: Any) -> None:
        calls[0] += 1
        on_request(self, request)

    PrefectApi._on_request = counted  # pyright: ignore[reportPrivateUsage] # noqa: SLF001


def _by_dlt_alone(base: Any, count: int) -> None:
    """Load each resource with a pipeline of its own, on as many threads, into a dataset that was prepared as well."""
    from prefect_dlt.dataset import shared_dataset

    with shared_dataset(base), ThreadPoolExecutor(WIDTH) as pool:
        for each in [pool.submit(_load_one, base, number) for number in range(count)]:
            each.result()


def _by_hand(base: Any, count: int) -> None:
    """Do the same in a flow of Prefect's with a task for each: what somebody would write without this package."""
    from prefect import flow, task
    from prefect.cache_policies import NO_CACHE
    from prefect.task_runners import ThreadPoolTaskRunner

    from prefect_dlt.dataset import shared_dataset

    @task(cache_policy=NO_CACHE, log_prints=True)
    def load(number: int) -> Any:
        return _load_one(base, number)

    @flow(name="by hand", task_runner=cast("Any", ThreadPoolTaskRunner)(max_workers=WIDTH), log_prints=True)
    def load_all() -> None:
        with shared_dataset(base):
            named: list[Any] = [load.with_options(name=f"load part_{number:04}") for number in range(count)]
            for future in [each.submit(number) for number, each in enumerate(named)]:
                future.result()

    load_all()


def _load_one(base: Any, number: int) -> Any:
    import dlt

    own = dlt.pipeline(
        f"bench__part_{number:04}", pipelines_dir="pipelines", destination=base.destination, dataset_name="bench_data"
    )
    return own.run(one(number))


def child(arguments: argparse.Namespace) -> Figures:
    """Do in this process what `measure` asks for."""
    if arguments.child == COUNT:
        return components(arguments.variant, arguments.size)
    return load(arguments.child, arguments.variant, arguments.size, arguments.address)


# -- all runs ----------------------------------------------------------------------------------------------------------


def measure(kind: str, variant: str, size: int, home: Path, *, api: str, address: str) -> Figures:
    """Run one variant in a process and a folder of its own; return its figures."""
    arguments = ["--child", kind, "--variant", variant, "--size", str(size), "--address", address]
    # dlt takes five threads for resources that it may read at the same time: the flow has eight.
    workers = {WORKERS: {"NORMALIZE__WORKERS": "2"}, PARALLELIZE: {"EXTRACT__WORKERS": str(WIDTH)}}.get(variant, {})
    return run_child(__file__, arguments, home, PREFECT_API_URL=api, **workers)


def fill(address: str, folder: Path, scale: float) -> None:
    """Make the tables of TPC-H and copy them into PostgreSQL."""
    import psycopg2

    command = [str(Path(sys.executable).parent / "tpchgen-cli"), "csv", "-s", str(scale)]
    subprocess.run([*command, f"--output-dir={folder / 'tpch'}"], check=True, capture_output=True)
    connection = psycopg2.connect(address)
    with contextlib.closing(connection), connection, connection.cursor() as cursor:
        for table, columns in TPCH.items():
            cursor.execute(f"CREATE TABLE {table} ({columns})")
            with (folder / "tpch" / f"{table}.csv").open(encoding="utf-8") as file:
                cursor.copy_expert(f"COPY {table} FROM STDIN WITH (FORMAT csv, HEADER true)", file)


def main() -> int:
    """Run all variants in turn, print and write the figures; return 1 when an aim is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="rounds after a warm-up (3)")
    parser.add_argument("--rows", type=int, default=800_000, help="nested rows for the CPU (800,000)")
    parser.add_argument("--pages", type=int, default=100, help="pages of the largest table that keeps waiting (100)")
    parser.add_argument("--scale", type=float, default=1.0, help="scale factor of TPC-H (1)")
    parser.add_argument("--counts", type=int, nargs="+", default=[10, 100, 1_000], help="components (10 100 1000)")
    parser.add_argument("--only", nargs="+", choices=(CPU, WAITING, SKEWED, COUNT), help="measure only these")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "build" / "bench-decompose.json", help="file for the figures"
    )
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--variant", default="", help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--address", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        Path("figures.json").write_text(json.dumps(child(arguments)))
        return 0
    from tests.postgres import postgres_server

    kinds: list[str] = arguments.only or [CPU, WAITING, SKEWED, COUNT]
    whole: dict[str, dict[str, list[Figures]]] = {}
    counts: dict[int, dict[str, list[Figures]]] = {}
    with (
        tempfile.TemporaryDirectory(prefix="bench-decompose-") as folder,
        server(Path(folder)) as api,
        postgres_server() as make_database,
    ):
        for kind in [each for each in kinds if each != COUNT]:
            whole[kind] = _measure_kind(kind, arguments, Path(folder), api, make_database)
        for count in arguments.counts if COUNT in kinds else ():
            counts[count] = _measure_count(count, arguments, Path(folder), api)
    return report(whole, counts, arguments)


def _measure_kind(
    kind: str, arguments: argparse.Namespace, home: Path, api: str, make_database: Any
) -> dict[str, list[Figures]]:
    runs: dict[str, list[Figures]] = {name: [] for name in VARIANTS}
    source = ""
    if kind == SKEWED:
        source = make_database("tpch")
        fill(source, home, arguments.scale)
    size = {CPU: arguments.rows, WAITING: arguments.pages}.get(kind, 0)
    for number, name in in_turn(arguments.rounds, list(VARIANTS)):
        # What is warm after a small load is warm.
        figures = measure(kind, name, size if number else size // 10, home, api=api, address=source)
        show(number, f"{kind}, {name}", figures)
        if number:
            runs[name].append(figures)
    return runs


def _measure_count(count: int, arguments: argparse.Namespace, home: Path, api: str) -> dict[str, list[Figures]]:
    runs: dict[str, list[Figures]] = {name: [] for name in COUNT_VARIANTS}
    # The more there are, the longer it takes, and the less one run differs from the next.
    rounds = arguments.rounds if count <= 100 else max(1, arguments.rounds // 3)  # noqa: PLR2004
    for number, name in in_turn(rounds, list(COUNT_VARIANTS)):
        if not number and count > min(arguments.counts):
            continue  # warm already
        figures = measure(COUNT, name, count, home, api=api, address="")
        show(number, f"{count} components, {name}", figures)
        if number:
            runs[name].append(figures)
    return runs


# -- what it says ------------------------------------------------------------------------------------------------------


def report(
    whole: dict[str, dict[str, list[Figures]]], counts: dict[int, dict[str, list[Figures]]], options: Any
) -> int:
    """Print and write what was measured, and how it compares with the aims."""
    for kind, runs in [*whole.items(), *((f"{count} components", each) for count, each in counts.items())]:
        _check(kind, runs)
    ran_on = machine()
    print("\n" + ", ".join(f"{key} {value}" for key, value in ran_on.items()))
    print("min / median / max\n")
    for kind, runs in [*whole.items(), *((f"{count}", each) for count, each in counts.items())]:
        for name, each in runs.items():
            units = [("wall", "s", 2), ("cpu", "s", 2), ("memory", "MiB", 0), ("calls", "", 0), ("used", "", 2)]
            cells = [
                f"{unit} {spread([run[unit] for run in each], digits)} {of}"
                for unit, of, digits in units
                if unit in each[0]
            ]
            print(f"{kind:10} {name:18} " + "  ".join(cells))
    print()
    aims = [aim for kind, runs in whole.items() for aim in _aims_of(kind, runs)]
    aims += _aims_of_counts(counts)
    is_met = print_aims(aims)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    figures = {"machine": ran_on, "whole": whole, "components": counts, "aims": aims}
    options.out.write_text(json.dumps(figures, indent=2))
    return 0 if is_met else 1


def _check(kind: str, runs: dict[str, list[Figures]]) -> None:
    expected = next(iter(runs.values()))[0]["loaded"]
    for name, each in runs.items():
        if not expected or any(figures["loaded"] != expected for figures in each):
            raise RuntimeError(f"{kind}: {name} did not load what the others did")


def _ratio(of: list[Figures], to: list[Figures]) -> float:
    return median(one["wall"] / other["wall"] for one, other in zip(of, to, strict=True))


def _aims_of(kind: str, runs: dict[str, list[Figures]]) -> list[Figures]:
    for name in VARIANTS[:-1]:
        print(f"{kind:10} flow is {_ratio(runs[name], runs[FLOW]):.2f} times as fast as {name}")
    if kind == CPU:
        faster = _ratio(runs[PLAIN], runs[FLOW])
        return [_aim("on two processes, over pipeline.run", faster, "times as fast", LEAST_FASTER, at_least=True)]
    if kind == WAITING:
        faster = _ratio(runs[PARALLELIZE], runs[FLOW])
        return [_aim("waiting for a source, over .parallelize()", faster, "times as fast", 1.0, at_least=True)]
    over = median(run["wall"] / (run["longest"] + run["seed"]) for run in runs[FLOW])
    return [_aim("skewed, over longest component and seed run", over, "times as long", MOST_OVER_LONGEST)]


def _aims_of_counts(counts: dict[int, dict[str, list[Figures]]]) -> list[Figures]:
    aims: list[Figures] = []
    for count, runs in counts.items():
        each = {name: 1e3 * median(run["cpu"] for run in runs[name]) / count for name in runs}
        calls = median(run["calls"] for run in runs[FLOW]) / count
        told = ", ".join(f"{name} {figure:.1f}" for name, figure in each.items())
        print(f"{count:5} components, ms of CPU for each, start included: {told}; {calls:.1f} calls for reports each")
    for fewer, more in pairwise(sorted(counts)):
        for kind in ("wall", "cpu"):
            slopes = {name: _slope(kind, name, fewer, more, counts) for name in COUNT_VARIANTS}
            told = ", ".join(f"{name} {figure:.1f}" for name, figure in slopes.items())
            print(f"{fewer:5} to {more} components, ms of {kind} for each more: {told}")
            added = slopes[FLOW] - slopes[DLT]
            print(f"{'':20} added to {DLT}: {added:.1f}; to {BY_HAND}: {slopes[FLOW] - slopes[BY_HAND]:.1f}")
            aims.append(_aim(f"added by each of {fewer:,} to {more:,}, {kind}", added, "ms", MOST_ADDED))
    if len(counts) > 2:  # noqa: PLR2004 - a line takes two, and one more to be off it
        aims += [_aim_line(kind, counts) for kind in ("wall", "cpu", "calls", "memory")]
    return aims


def _slope(kind: str, name: str, fewer: int, more: int, counts: dict[int, dict[str, list[Figures]]]) -> float:
    """Return what each more component takes, in milliseconds, without what a run takes once, imports first of all."""
    at = {count: median(run[kind] for run in counts[count][name]) for count in (fewer, more)}
    return 1e3 * (at[more] - at[fewer]) / (more - fewer)


def _aim_line(kind: str, counts: dict[int, dict[str, list[Figures]]]) -> Figures:
    few, more, most = sorted(counts)[-3:]
    at = {count: median(run[kind] for run in counts[count][FLOW]) for count in (few, more, most)}
    expected = at[more] + (at[more] - at[few]) / (more - few) * (most - more)
    return _aim(f"{kind} of {most:,}, over the line", at[most] / expected, "times what it was to be", MOST_OFF_LINE)


def _aim(name: str, figure: float, unit: str, bound: float, *, at_least: bool = False) -> Figures:
    is_met = figure >= bound if at_least else figure <= bound
    aim = f"at {'least' if at_least else 'most'} {bound:g}"
    return {"name": name, "figure": figure, "unit": unit, "aim": aim, "met": is_met}


if __name__ == "__main__":
    sys.exit(main())

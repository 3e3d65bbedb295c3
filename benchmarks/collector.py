"""What the collector costs a load, with Prefect's API up, slow, hanging and down: `make bench-collector`.

Each run is a process of its own: a Prefect flow with one task, which loads eight resources into a new DuckDB file. The
flow's own API is a real Prefect server in good health; only the collector's calls go through a proxy that misbehaves.
The variants run in turn, and each is compared with the run without a collector of the same round.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, cast

from benchmarks.shared import (
    ROOT,
    Figures,
    machine,
    peak_memory,
    print_aims,
    run_child,
    send_reports_through,
    server,
    spread,
    told,
)
from tests.runtime.proxy import Mode, Proxy

BASELINE = "none"
VARIANTS: dict[str, Mode] = {"up": "up", "slow": "slow", "hanging": "hanging", "down": "down"}
DECOMPOSED = "decomposed"

RESOURCES = 8
STAGES = 3
PAGE = 1_000

MOST_OVER = 0.5
"""Per cent that a run with the collector may take longer, and more CPU, than one without."""

MOST_CALLS = 8
"""API calls that each stage of each pipeline may take beside one a second: states, reports, and the events of both."""


# -- one run, in a process of its own ----------------------------------------------------------------------------------


def load(variant: str, rows: int, url: str) -> Figures:
    """Load the rows; return what that took."""
    import dlt
    from prefect import flow, task
    from prefect.task_runners import ThreadPoolTaskRunner

    from prefect_dlt import PrefectCollector, create_run_pipeline_flow

    closing = _send_through(url) if variant != BASELINE else []

    def pipeline() -> dlt.Pipeline:
        # By its types, dlt takes no None, which is its default.
        collector = cast("Any", None if variant == BASELINE else PrefectCollector())
        return dlt.pipeline(
            "bench",
            pipelines_dir="pipelines",
            destination=dlt.destinations.duckdb("bench.duckdb"),
            dataset_name="bench_data",
            progress=collector,
        )

    figures: Figures = {}

    def measured(run: Any) -> None:
        began, cpu = time.perf_counter(), time.process_time()
        run()
        # Those of parts that end together pass together.
        figures["close"] = max(closing, default=0.0)
        figures["wall"] = time.perf_counter() - began - figures["close"]
        figures["cpu"] = time.process_time() - cpu
        figures["sending"] = _cpu_of_publishers()

    if variant == DECOMPOSED:
        parts = create_run_pipeline_flow(
            pipeline=pipeline, source=lambda: _source(rows), decompose="parallel", flow_name="bench-parts"
        )
        # By its types, Prefect's @flow takes no task runner that Prefect has.
        threads = cast("Any", ThreadPoolTaskRunner(max_workers=RESOURCES))

        @flow(name="bench-decomposed", task_runner=threads)
        def bench_decomposed() -> None:
            measured(lambda: parts(loader_file_format="parquet"))

        bench_decomposed()
    else:

        @task
        def load_all() -> None:
            measured(lambda: pipeline().run(_source(rows), loader_file_format="parquet"))

        @flow(name="bench")
        def bench() -> None:
            load_all()

        bench()
    figures["memory"] = peak_memory()
    figures["loaded"] = _loaded()
    return figures


def _source(rows: int) -> Any:
    import dlt

    def pages(first: int) -> Iterator[list[dict[str, Any]]]:
        for start in range(first, first + rows // RESOURCES, PAGE):
            yield [
                {
                    "id": each,
                    "name": f"name {each % 997}",
                    "amount": each * 0.25,
                    "is_paid": each % 3 == 0,
                    "day": each % 366,
                }
                for each in range(start, start + PAGE)
            ]

    def source() -> list[Any]:
        share = rows // RESOURCES
        return [dlt.resource(pages, name=f"part_{number}")(number * share) for number in range(RESOURCES)]

    return dlt.source(source, name="bench")()


def _send_through(url: str) -> list[float]:
    """Let publishers, and nothing else of this process, use another API; return how long each flush takes."""
    from prefect_dlt import publisher as module

    send_reports_through(url)
    seconds: list[float] = []
    flush = module.Publisher.flush

    def timed(self: Any, timeout: float, run: Any) -> list[str]:
        began = time.perf_counter()
        try:
            return flush(self, timeout, run)
        finally:
            seconds.append(time.perf_counter() - began)

    module.Publisher.flush = timed
    return seconds


def _cpu_of_publishers() -> float:
    """Return the CPU seconds of the threads that send: what a noisy machine blurs least."""
    from prefect_dlt import publisher as module

    threads = [each._thread.ident for each in module._publishers.values()]  # pyright: ignore[reportPrivateUsage] # noqa: SLF001
    return sum(time.clock_gettime(time.pthread_getcpuclockid(thread)) for thread in threads if thread is not None)


def _loaded() -> list[int]:
    import duckdb

    with duckdb.connect("bench.duckdb", read_only=True) as connection:
        tables = [f"bench_data.part_{number}" for number in range(RESOURCES)]
        query = "SELECT count(*), sum(id), sum(amount)::BIGINT, count(DISTINCT name) FROM {}"
        return [int(value) for table in tables for value in connection.execute(query.format(table)).fetchall()[0]]


# -- all runs ----------------------------------------------------------------------------------------------------------


def measure(variant: str, rows: int, home: Path, api: str) -> Figures:
    """Run one variant in a process and a folder of its own; return its figures, and the calls it made."""
    proxy = Proxy(api)
    proxy.mode = VARIANTS.get(variant, "up")
    try:
        arguments = ["--child", variant, "--rows", str(rows), "--api", proxy.url]
        figures = run_child(__file__, arguments, home, PREFECT_API_URL=api)
        figures["calls"] = len(proxy.calls)
        return figures
    finally:
        proxy.close()


def main() -> int:
    """Run all variants in turn, print and write the figures; return 1 when an aim is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows in all (1,000,000)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds after a warm-up (5)")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "build" / "bench-collector.json", help="file for the figures"
    )
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--api", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        Path("figures.json").write_text(json.dumps(load(arguments.child, arguments.rows, arguments.api)))
        return 0

    names = [BASELINE, *VARIANTS]
    runs: dict[str, list[Figures]] = {name: [] for name in [*names, DECOMPOSED]}
    with tempfile.TemporaryDirectory(prefix="bench-collector-") as folder, server(Path(folder)) as api:
        for round_number in range(arguments.rounds + 1):
            # Each variant comes first, last and in between, so that what changes with time meets all alike.
            turn = round_number % len(names)
            for name in names[turn:] + names[:turn]:
                figures = measure(name, arguments.rows, Path(folder), api)
                label = f"round {round_number}" if round_number else "warm-up"
                print(f"{label:8} {name:8} {told(figures)}", flush=True)
                if round_number:
                    runs[name].append(figures)
        runs[DECOMPOSED].append(measure(DECOMPOSED, arguments.rows, Path(folder), api))
    return report(runs, arguments.rows, arguments.out)


def report(runs: dict[str, list[Figures]], rows: int, out: Path) -> int:
    """Print and write what was measured, and how it compares with the aims."""
    expected = runs[BASELINE][0]["loaded"]
    for name, each in runs.items():
        if any(figures["loaded"] != expected for figures in each):
            raise RuntimeError(f"Variant {name} did not load what the others did")
    ran_on = machine()
    print(f"\n{rows:,} rows, {RESOURCES} resources; " + ", ".join(f"{key} {value}" for key, value in ran_on.items()))
    print("wall: the load without the close; sending: the publisher's own thread; min / median / max\n")
    for name, each in runs.items():
        kinds = (
            ("wall", "s", 2),
            ("close", "s", 2),
            ("cpu", "s", 2),
            ("sending", "s of it", 3),
            ("memory", "MiB", 0),
            ("calls", "", 0),
        )
        cells = [f"{kind} {spread([run[kind] for run in each], digits)} {unit}" for kind, unit, digits in kinds]
        print(f"{name:10} " + "  ".join(cells))
    print()
    aims = [_aim_over(kind, name, runs) for kind in ("wall", "cpu") for name in VARIANTS]
    aims += [_aim_calls(name, runs[name], pipelines=1) for name in VARIANTS]
    aims.append(_aim_calls(DECOMPOSED, runs[DECOMPOSED], pipelines=RESOURCES))
    met = print_aims(aims)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"machine": ran_on, "rows": rows, "runs": runs, "aims": aims}, indent=2))
    return 0 if met else 1


def _aim_over(kind: str, name: str, runs: dict[str, list[Figures]]) -> Figures:
    pairs = zip(runs[name], runs[BASELINE], strict=True)
    over = 100 * (median(run[kind] / baseline[kind] for run, baseline in pairs) - 1)
    return {
        "name": f"{kind} over no collector, API {name}",
        "figure": over,
        "unit": "%",
        "aim": f"at most {MOST_OVER}",
        "met": over <= MOST_OVER,
    }


def _aim_calls(name: str, runs: list[Figures], pipelines: int) -> Figures:
    beside = max((run["calls"] - run["wall"] - run["close"]) / (STAGES * pipelines) for run in runs)
    return {
        "name": f"calls, {name}",
        "figure": beside,
        "unit": "a stage beside one a second",
        "aim": f"at most {MOST_CALLS}",
        "met": beside <= MOST_CALLS,
    }


if __name__ == "__main__":
    sys.exit(main())

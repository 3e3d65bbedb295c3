"""Load many components into a new dataset at the same time, many times, and count the runs that fail.

    python -m tests.chaos.first_runs --duckdb 200 --postgres 200 --processes 50

Each run is a flow in a process of its own, without retries, on threads (`--duckdb`, `--postgres`) or processes
(`--processes`, into PostgreSQL). The exit code is 1 when one fails, or has loaded anything else than each row once.
`--baseline` takes away what makes first runs safe, to show what it is for.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

LIMIT = 600.0
"""Seconds after which a run counts as one that hangs; it takes some ten, and more on a busy machine."""

BASELINES = ("nothing", "seed only", "first alone")
"""No preparation at all; the empty seed run without the rest; the first component alone, and then all others."""

KINDS = {"duckdb": ("duckdb", False), "postgres": ("postgres", False), "processes": ("postgres", True)}
"""Destination, and whether on processes, of each kind of run."""

LONGEST_TEXT = 400
"""Characters of the text of a failure."""


@dataclass(frozen=True)
class FirstRun:
    """One run into a new dataset.

    Attributes:
        number: Which of all, from 0.
        kind: One of `KINDS`.
    """

    number: int
    kind: str


def plan(counts: dict[str, int]) -> list[FirstRun]:
    """Return the runs of all kinds, those of a kind spread over the whole time."""
    spread = sorted(((turn + 0.5) / count, kind) for kind, count in counts.items() for turn in range(count))
    return [FirstRun(number, kind) for number, (_, kind) in enumerate(spread)]


def run(folder: Path, first: FirstRun, address: str, width: int, baseline: str) -> None:
    """Load the components, in this process, and write what failed."""
    from prefect.task_runners import ThreadPoolTaskRunner

    from prefect_dlt import create_run_pipeline_flow
    from prefect_dlt.errors import ComponentsFailedError
    from tests.chaos.wide import ForkServerTaskRunner, table_name, wide, wide_pipeline

    destination, on_processes = KINDS[first.kind]
    runner: Any = (ForkServerTaskRunner if on_processes else ThreadPoolTaskRunner)(max_workers=width)
    load = create_run_pipeline_flow(
        partial(wide_pipeline, folder, destination, address),
        partial(wide, width),
        decompose="parallel",
        flow_name=f"first run {first.kind}",
        task_runner=runner,
    )
    take_away(baseline)
    # Should it hang, this tells where; and the file is open as long as the process lives.
    stacks = (folder / "stacks").open("w", encoding="utf-8")
    faulthandler.dump_traceback_later(0.95 * LIMIT, file=stacks)
    failures: dict[str, str] = {}
    try:
        if baseline == "first alone":
            load(resources=[table_name(0)])
            load(resources=[table_name(number) for number in range(1, width)])
        else:
            load()
    except ComponentsFailedError as error:
        failures = error.failures
    except Exception as error:  # noqa: BLE001 - whatever it is, it is counted
        failures = {"the flow": f"{type(error).__name__}: {error}"}
    verdict = {"failures": failures, "difference": "" if failures else difference(folder, first, address, width)}
    (folder / "verdict.json").write_text(json.dumps(verdict), encoding="utf-8")


def take_away(baseline: str) -> None:
    """Take away what makes first runs safe."""
    from prefect_dlt import dataset, fan_out

    if baseline in {"nothing", "first alone"}:
        fan_out.shared_dataset = lambda *_args, **_options: contextlib.nullcontext()  # type: ignore[assignment]
    elif baseline == "seed only":
        dataset._LAZY_IMPORTS = ()
        # What is asked for before a connection is kept open.
        dataset._is_duckdb = lambda _pipeline: False


def difference(folder: Path, first: FirstRun, address: str, width: int) -> str:
    """Return what the dataset holds that it should not, or the other way round; empty for nothing."""
    from tests.chaos.wide import expected_rows, wide_pipeline

    pipeline = wide_pipeline(folder, KINDS[first.kind][0], address)
    expected = {**expected_rows(width), "_dlt_loads": width + 1, "_dlt_version": 2, "_dlt_pipeline_state": width}
    # The seed run has a load and a schema of its own.
    queries = {
        "_dlt_version": "SELECT count(DISTINCT schema_name) FROM {}",
        "_dlt_pipeline_state": "SELECT count(DISTINCT pipeline_name) FROM {} WHERE pipeline_name NOT LIKE '_seed%'",
    }
    found: dict[str, int] = {}
    with pipeline.sql_client() as client:
        for table in expected:
            query = queries.get(table, "SELECT count(*) FROM {}")
            rows = client.execute_sql(query.format(client.make_qualified_table_name(table)))
            found[table] = int(rows[0][0]) if rows else 0
    wrong = {table: (found[table], rows) for table, rows in expected.items() if found[table] != rows}
    return "; ".join(f"{table}: {rows} of {of}" for table, (rows, of) in wrong.items())


def try_out(root: Path, admin: str, first: FirstRun, width: int, baseline: str) -> dict[str, Any]:
    """Do one run in a process, a folder and a database of its own; return what came of it."""
    from tests.chaos.cases import Case
    from tests.chaos.children import fork, wait
    from tests.chaos.trials import Place, first_error

    place, case, name = Place(root, admin), Case(KINDS[first.kind][0], "append", "first", "rows"), f"run_{first.number}"
    folder, address = place.make(case, name), place.address(case, name)
    began = time.monotonic()
    child = fork(lambda: run(folder, first, address, width, baseline), folder / "log", environment(folder))
    code = wait(child, LIMIT)
    result: dict[str, Any] = {"number": first.number, "kind": first.kind, "seconds": time.monotonic() - began}
    if code == 0:
        result |= json.loads((folder / "verdict.json").read_text(encoding="utf-8"))
    else:
        text = "hangs" if code is None else first_error(folder / "log")
        result |= {"failures": {"the process": text}, "difference": ""}
        if (folder / "stacks").exists():
            result["stacks"] = (folder / "stacks").read_text(encoding="utf-8")
    place.remove(case, name)
    return result


def environment(folder: Path) -> dict[str, str]:
    """Return what a run has in its environment."""
    return {"DLT_DATA_DIR": str(folder / "dlt")}


def told(results: Sequence[dict[str, Any]], kind: str, width: int) -> str:
    """Return what came of the runs of a kind, in a line, and how often what failed."""
    of_kind = [result for result in results if result["kind"] == kind]
    failed = [result for result in of_kind if result["failures"]]
    wrong = [result for result in of_kind if result["difference"]]
    components = sum(len(result["failures"]) for result in of_kind)
    seconds = sorted(result["seconds"] for result in of_kind)
    headline = (
        f"{kind}: {len(failed)} of {len(of_kind)} runs failed, {components} of {len(of_kind) * width} components; "
        f"{len(wrong)} loaded something else; {seconds[len(seconds) // 2]:.1f} s a run"
    )
    texts = Counter(text[:LONGEST_TEXT] for result in failed for text in result["failures"].values())
    lines = [headline, *(f"  {count} x {text}" for text, count in texts.most_common(10))]
    lines += [f"  run {result['number']}: {result['difference']}" for result in wrong]
    return "\n".join(lines)


def main() -> int:
    """Run the program in folders of its own; return its exit code."""
    parser = argparse.ArgumentParser(
        "python -m tests.chaos.first_runs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for kind in KINDS:
        parser.add_argument(f"--{kind}", type=int, default=0, help=f"runs of the kind {kind}, none by default")
    parser.add_argument("--width", type=int, default=32, help="components of a run, 32 by default")
    parser.add_argument("--width-on-processes", type=int, help="those of a run on processes, as many by default")
    parser.add_argument("--workers", type=int, default=2, help="how many runs to do at a time, 2 by default")
    parser.add_argument("--baseline", choices=BASELINES, default="", help="take away what makes first runs safe")
    parser.add_argument("--out", type=Path, help="file for what came of each run, one JSON text a line")
    parser.add_argument("--api", help="address of a Prefect server's API; one is started by default")
    options = parser.parse_args()
    counts = {kind: getattr(options, kind) for kind in KINDS if getattr(options, kind)}
    from benchmarks.shared import server
    from tests.postgres import postgres_server

    with tempfile.TemporaryDirectory(prefix="first-runs-", ignore_cleanup_errors=True) as folder:
        # Read when dlt, Prefect and NumPy are imported; threads of the last would be alive when the process forks.
        os.environ.update(
            DO_NOT_TRACK="1",
            OPENBLAS_NUM_THREADS="1",
            PREFECT_HOME=f"{folder}/prefect",
            PREFECT_LOGGING_LEVEL="CRITICAL",
            PREFECT_SERVER_ANALYTICS_ENABLED="false",
            RUNTIME__DLTHUB_TELEMETRY="false",
            RUNTIME__LOG_LEVEL="CRITICAL",
        )
        running = contextlib.nullcontext(options.api) if options.api else server(Path(folder))
        with running as api, postgres_server() as make_database:
            os.environ["PREFECT_API_URL"] = api
            results = run_all(Path(folder), make_database("admin"), counts, options)
    print("\n".join(told(results, kind, width_of(kind, options)) for kind in counts))
    return 1 if any(result["failures"] or result["difference"] for result in results) else 0


def width_of(kind: str, options: argparse.Namespace) -> int:
    """Return how many components a run of a kind has."""
    _, on_processes = KINDS[kind]
    return int((on_processes and options.width_on_processes) or options.width)


def run_all(root: Path, admin: str, counts: dict[str, int], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Do all runs; return what came of each."""
    import tests.chaos.wide  # noqa: F401 - once for all runs, which are copies of this process
    from tests.chaos.children import share_out

    started = time.monotonic()
    planned = plan(counts)

    def work(first: FirstRun) -> dict[str, Any]:
        return try_out(root, admin, first, width_of(first.kind, options), options.baseline)

    results: list[dict[str, Any]] = []
    for result in share_out(planned, work, options.workers, root):
        results.append(result)
        if options.out is not None:
            with options.out.open("a", encoding="utf-8") as out:
                out.write(json.dumps(result) + "\n")
        if result["failures"] or result["difference"]:
            name, text = next(iter(result["failures"].items()), ("difference", result["difference"]))
            print(f"run {result['number']}, {result['kind']}: {name}: {text[:LONGEST_TEXT]}", flush=True)
        if len(results) % 25 == 0:
            print(f"{len(results)} of {len(planned)} runs, {time.monotonic() - started:.0f} s", flush=True)
    return results


if __name__ == "__main__":
    sys.exit(main())

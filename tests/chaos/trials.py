"""One trial: a run is killed, the next one finishes, and what the dataset holds is compared with what it should."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import dlt
import psycopg2
from dlt.pipeline.pipeline import Pipeline

from prefect_dlt import runner
from tests.chaos.cases import SETTINGS, Case, Difference, look, make_pipeline, run_options, source
from tests.chaos.children import BEGIN, fork, kill, wait
from tests.chaos.moments import Board, Moment, Span, Watch

# A run takes half a second; on a busy machine many times that.
LIMIT = 60.0


@dataclass(frozen=True)
class Kill:
    """One trial.

    Attributes:
        number: Which of all, from 0.
        case: What is loaded.
        moments: When the run is killed; a second one is for the run after that.
        finalizes: Whether what is pending is finished by a call of its own, and looked at, before there is new data.
    """

    number: int
    case: Case
    moments: tuple[Moment, ...]
    finalizes: bool


class Place:
    """Folders and databases, made from one another.

    Args:
        root: Where the folders are.
        admin: The URL of a PostgreSQL database from which others can be made.
    """

    def __init__(self, root: Path, admin: str) -> None:
        self.root = root
        self._admin = admin

    def folder(self, name: str) -> Path:
        """Return the folder of a name."""
        return self.root / name

    def address(self, case: Case, name: str) -> str:
        """Return where a case finds its database."""
        if case.destination == "duckdb":
            return str(self.folder(name) / "warehouse.duckdb")
        return urlunsplit(urlsplit(self._admin)._replace(path=f"/{name}"))

    def make(self, case: Case, name: str, template: str | None = None) -> Path:
        """Make folder and database, empty or like those of another name; return the folder."""
        if template is None:
            self.folder(name).mkdir()
        else:
            shutil.copytree(self.folder(template), self.folder(name))
        if case.destination == "postgres":
            self._execute(f'CREATE DATABASE "{name}"' + (f' TEMPLATE "{template}"' if template else ""))
        return self.folder(name)

    def remove(self, case: Case, name: str) -> None:
        """Remove folder and database."""
        shutil.rmtree(self.folder(name))
        if case.destination == "postgres":
            self._execute(f'DROP DATABASE "{name}" WITH (FORCE)')

    def _execute(self, statement: str) -> None:
        # No connection stays open: a child would have it too.
        connection = psycopg2.connect(self._admin)
        try:
            connection.autocommit = True
            connection.cursor().execute(statement)
        finally:
            connection.close()


def load(pipeline: Pipeline, case: Case, changes: int | None, *, plain: bool) -> None:
    """Run a pipeline as its user would.

    Args:
        pipeline: The pipeline.
        case: What is loaded.
        changes: How many the source has had; None to finish only what is pending.
        plain: Whether dlt does it alone, with the calls it offers for that.
    """
    data = source(case, changes) if changes is not None else None
    if not plain:
        runner(pipeline).run(data, **run_options(case))
        return
    if pipeline.has_pending_data:
        pipeline.activate()
        pipeline.normalize()
        pipeline.load()
    if data is not None:
        pipeline.run(data, **run_options(case))


def killed_run(
    place: Place, case: Case, name: str, changes: int, end: tuple[str, int] | None, board: Board, *, plain: bool
) -> None:
    """Run a pipeline that is killed from outside, or at an event."""
    folder = place.folder(name)
    watch = Watch(board, str(folder), *(end or ()))
    pipeline = make_pipeline(case, folder / "pipelines", place.address(case, name), progress=watch)
    load(pipeline, case, changes, plain=plain)
    board.phase = "after"


def finishing_run(place: Place, kill_: Kill, name: str, *, plain: bool) -> None:
    """Run a pipeline to the end after it was killed, and write what is wrong with the dataset then."""
    case, folder = kill_.case, place.folder(name)
    pipeline = make_pipeline(case, folder / "pipelines", place.address(case, name))
    turns = len(kill_.moments)
    difference = Difference()
    if kill_.finalizes:
        was_pending = pipeline.has_pending_data
        load(pipeline, case, None, plain=plain)
        # Nothing half-way: all of what a run has extracted, or nothing of it.
        is_loaded = was_pending and not pipeline.has_pending_data
        holdings = look(pipeline, case)
        found = [holdings.compare(case, case.changes(turn)) for turn in range(is_loaded, turns + 1)]
        difference = min(found, key=lambda each: each.size)
    load(pipeline, case, case.changes(turns + 1), plain=plain)
    after = look(pipeline, case).compare(case, case.changes(turns + 1))
    verdict = {
        "lost": difference.lost.total() + after.lost.total(),
        "surplus": difference.surplus.total() + after.surplus.total(),
        "detail": "; ".join(
            f"{when}: {each}" for when, each in (("finalised", difference), ("in the end", after)) if each
        ),
        "pending": pipeline.has_pending_data,
    }
    (folder / "verdict.json").write_text(json.dumps(verdict), encoding="utf-8")


def environment(folder: Path) -> dict[str, str]:
    """Return what a child has in its environment."""
    return {**SETTINGS, "DLT_DATA_DIR": str(folder / "dlt")}


def measured_run(place: Place, case: Case, name: str, changes: int, *, plain: bool) -> Span:
    """Run a pipeline that nobody kills; return how long it is."""
    board, folder = Board(), place.folder(name)
    started = time.monotonic()
    child = fork(
        lambda: killed_run(place, case, name, changes, None, board, plain=plain),
        folder / "log",
        environment(folder),
    )
    if wait(child, LIMIT) != 0:
        raise RuntimeError(f"{case} failed without being killed:\n{(folder / 'log').read_text(encoding='utf-8')}")
    return Span(board.began - started, time.monotonic() - started, board.events())


def prepare(place: Place, case: Case, *, plain: bool) -> dict[str, Any]:
    """Make the dataset that a load of the case finds, and return how long such a load is."""
    name = measured_name(case)
    if case.load == "later":
        place.make(case, f"loaded_{name}")
        measured_run(place, case, f"loaded_{name}", case.changes(0), plain=plain)
    place.make(case, name, template_name(case))
    span = measured_run(place, case, name, case.changes(1), plain=plain)
    place.remove(case, name)
    return {"name": name, "span": vars(span)}


def prepare_shared(place: Place, case: Case) -> None:
    """Make a dataset that another pipeline has loaded into."""
    name = f"shared_{case.destination}"
    folder = place.make(case, name)

    def run() -> None:
        pipeline = make_pipeline(case, folder / "elsewhere", place.address(case, name), "other")
        pipeline.run(dlt.resource([{"id": 1}], name="others"))

    if wait(fork(run, folder / "log", environment(folder)), LIMIT) != 0:
        raise RuntimeError((folder / "log").read_text(encoding="utf-8"))


def scout_run(place: Place, case: Case) -> None:
    """Run a pipeline in this process, and look at what it has loaded."""
    folder = place.make(case, scout_name(case))
    killed_run(place, case, folder.name, case.changes(1), None, Board(), plain=False)
    look(make_pipeline(case, folder / "pipelines", place.address(case, folder.name)), case)


def scout_name(case: Case) -> str:
    """Return the name of folder and database of a run that finds out what is imported."""
    return f"scout_{case.destination}_{case.variant}"


def template_name(case: Case) -> str | None:
    """Return the name of folder and database that a load of a case begins with; None for new ones."""
    if case.load == "shared":
        return f"shared_{case.destination}"
    return f"loaded_{measured_name(case)}" if case.load == "later" else None


def measured_name(case: Case) -> str:
    """Return the name of folder and database of a run that nobody kills."""
    return f"{case.combination} {case.variant}".replace(" ", "_").replace("-", "_")


def try_out(place: Place, kill_: Kill, span: Span, *, plain: bool, keep: Path | None) -> dict[str, Any]:
    """Do one trial; return what came of it.

    Args:
        place: Where it happens.
        kill_: What is loaded, and when it is killed.
        span: How long a run of its case is.
        plain: Whether dlt runs alone.
        keep: Where to keep the folder of a trial that went wrong, as it was when the run was killed and in the end.
    """
    case, name = kill_.case, f"kill_{kill_.number}"
    folder = place.make(case, name, template_name(case))
    result: dict[str, Any] = {"number": kill_.number, "phases": [], "left": [], "interrupted": 0, "stuck": ""}
    for turn, moment in enumerate(kill_.moments):
        board = Board()
        ended = run_and_kill(place, case, name, case.changes(turn + 1), moment, span, board, plain=plain)
        if ended != -signal.SIGKILL:
            hangs = "a run hangs before it is killed"
            result["stuck"] = hangs if ended is None else f"a run fails by itself: {first_error(folder / 'log')}"
        left, interrupted = left_behind(folder / "pipelines" / "shop")
        result["phases"].append(board.phase)
        result["left"].append(left)
        result["interrupted"] += interrupted
    kept = keep / name if keep else None
    if kept:
        shutil.copytree(folder, kept / "killed")
    child = fork(lambda: finishing_run(place, kill_, name, plain=plain), folder / "log", environment(folder))
    code = wait(child, LIMIT)
    verdict = {"lost": 0, "surplus": 0, "detail": "", "pending": False}
    if code == 0:
        verdict = json.loads((folder / "verdict.json").read_text(encoding="utf-8"))
        if verdict["pending"]:
            result["stuck"] = "packages are pending in the end"
    else:
        result["stuck"] = "the next run hangs" if code is None else f"the next run fails: {first_error(folder / 'log')}"
    result |= {key: verdict[key] for key in ("lost", "surplus", "detail")}
    if kept:
        if result["stuck"] or result["lost"] or result["surplus"]:
            shutil.copytree(folder, kept / "finished")
        else:
            shutil.rmtree(kept)
    place.remove(case, name)
    return result


def run_and_kill(
    place: Place, case: Case, name: str, changes: int, moment: Moment, span: Span, board: Board, *, plain: bool
) -> int | None:
    """Start a run and kill it at a moment; return how it ended."""
    folder = place.folder(name)
    end = None if moment.kind == "clock" else (moment.kind, span.nth(moment))

    def run() -> None:
        killed_run(place, case, name, changes, end, board, plain=plain)
        # A run that was faster than usual is killed all the same, after its end.
        if end is None:
            signal.pause()
        os.kill(os.getpid(), signal.SIGKILL)

    child = fork(run, folder / "log", environment(folder))
    if end is not None:
        return wait(child, LIMIT)
    time.sleep(span.at(moment))
    return kill(child)


def left_behind(working_dir: Path) -> tuple[str, int]:
    """Return what a killed run has left, and how many load jobs it had begun and not ended."""
    found: list[str] = []
    started = 0
    for stage, folder in (("extracted", "normalize/extracted"), ("normalized", "load/normalized")):
        for package in sorted(path for path in (working_dir / folder).glob("*") if path.is_dir()):
            jobs = {
                state: len(list((package / state).glob("*")))
                for state in ("new_jobs", "started_jobs", "completed_jobs", "failed_jobs", ".pending_transitions")
            }
            missing = [file for file in ("schema.json",) if not (package / file).exists()]
            marks = [
                file
                for file in ("schema_updates.json", "applied_schema_updates.json", "package_completed.json")
                if (package / file).exists()
            ]
            if stage == "normalized":
                started += jobs["started_jobs"]
            counts = " ".join(f"{state}={count}" for state, count in jobs.items() if count)
            lacks = f" without {', '.join(missing)}" if missing else ""
            found.append(f"{stage} {package.name}: {counts} {' '.join(marks)}{lacks}".rstrip())
    return " | ".join(found) or "nothing pending", started


def first_error(log: Path) -> str:
    """Return the line of a log that names the first error of the last process that wrote it."""
    text = log.read_text(encoding="utf-8", errors="replace").rpartition(BEGIN)[2]
    return next(iter(re.findall(r"(?m)^(?:[\w.]+\.[A-Z]\w+|[A-Z]\w+Error)(?:: .*)?$", text)), text[-200:])[:300]

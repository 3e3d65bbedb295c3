"""The command `prefect-dlt`: show what is pending of a pipeline, put it aside, bring it back."""

# ruff: noqa: T201 - it talks to whoever typed it

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

import dlt
from dlt.common.exceptions import DltException
from dlt.common.pipeline import get_dlt_pipelines_dir
from dlt.pipeline.pipeline import Pipeline

from prefect_dlt.discard import discarded_before, finish_discard, put_aside, restore
from prefect_dlt.errors import ConfigurationError, PrefectDltError
from prefect_dlt.lock import one_run_at_a_time
from prefect_dlt.pending import package_lines, pending_packages


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, and return its exit code: 0 when it did what it was asked to, 1 when it could not.

    Args:
        arguments: The words after its name; those of the command line by default.
    """
    options = _parser().parse_args(arguments)
    act: Callable[[argparse.Namespace], int] = options.act
    try:
        return act(options)
    except (PrefectDltError, DltException, OSError) as error:
        print(f"prefect-dlt: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="prefect-dlt", description="See to load packages that wait to be loaded.")
    commands = parser.add_subparsers(required=True, metavar="command")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("pipeline", help="name of the pipeline")
    shared.add_argument("--pipelines-dir", help="folder with the working directories; dlt's own by default")
    changes = argparse.ArgumentParser(add_help=False)
    changes.add_argument(
        "--lock-timeout", type=float, default=0.0, metavar="SECONDS", help="how long to wait for a run to end"
    )
    help_text = "show what is pending, and what was put aside"
    pending = commands.add_parser("pending", parents=[shared], help=help_text, description=help_text)
    pending.set_defaults(act=_show)
    help_text = "put aside what is pending, so that new data can be loaded; nothing is deleted"
    discard = commands.add_parser("discard", parents=[shared, changes], help=help_text, description=help_text)
    discard.add_argument("--yes", action="store_true", help="do not ask")
    discard.set_defaults(act=_discard)
    help_text = "bring back what was put aside: the next run loads it first"
    bring_back = commands.add_parser("restore", parents=[shared, changes], help=help_text, description=help_text)
    bring_back.add_argument("folder", help="name of the dated folder, as `pending` shows it")
    bring_back.set_defaults(act=_restore)
    return parser


def _working_dir(options: argparse.Namespace) -> Path:
    folder = Path(options.pipelines_dir or get_dlt_pipelines_dir())
    name: str = options.pipeline
    # A name, not a path: anything else would have a working directory somewhere else.
    if Path(name).name != name or not (folder / name / Pipeline.STATE_FILE).is_file():
        known = sorted(path.parent.name for path in folder.glob(f"*/{Pipeline.STATE_FILE}"))
        choice = f"choose one of {', '.join(known)}" if known else "there is no pipeline at all"
        elsewhere = "" if options.pipelines_dir else ", or say with --pipelines-dir where it has its working directory"
        raise ConfigurationError("pipeline", name, f"{folder} has no such pipeline; {choice}{elsewhere}")
    return folder / name


@contextmanager
def _attached(options: argparse.Namespace) -> Generator[Pipeline]:
    """Attach to the pipeline while no run is under way: one that goes on changes what would be read here."""
    working_dir = _working_dir(options)

    def say(line: str) -> None:
        print(line, file=sys.stderr)

    with one_run_at_a_time(str(working_dir), timeout=options.lock_timeout, say=say):
        yield dlt.attach(working_dir.name, str(working_dir.parent))


def _show(options: argparse.Namespace) -> int:
    # Read from the files, without dlt, which would write to them: this may be asked while a run goes on.
    working_dir = _working_dir(options)
    packages = pending_packages(working_dir)
    if not any(package.is_whole for package in packages):
        print(f"Nothing is pending of {working_dir.name}.")
    for line in package_lines(packages):
        print(line)
    for each in discarded_before(working_dir):
        print("\n".join(["", *each.lines()]))
    return 0


def _discard(options: argparse.Namespace) -> int:
    with _attached(options) as pipeline:
        for each in finish_discard(pipeline):
            print("\n".join(["A killed process had begun with this, which is finished now:", *each.lines()]))
        packages = pending_packages(Path(pipeline.working_dir))
        if not packages:
            print(f"Nothing is pending of {pipeline.pipeline_name}.")
            return 0
        if not options.yes:
            print("\n".join(package_lines(packages)))
            if not _agrees():
                print("Nothing was changed.", file=sys.stderr)
                return 1
        if discarded := put_aside(pipeline):
            print("\n".join(discarded.lines()))
        return 0


def _agrees() -> bool:
    if not sys.stdin.isatty():
        print("Nobody can be asked here: give --yes.", file=sys.stderr)
        return False
    return input("Put this aside? [y/N] ").strip().lower() in {"y", "yes"}


def _restore(options: argparse.Namespace) -> int:
    with _attached(options) as pipeline:
        restored = restore(pipeline, options.folder)
        ids = ", ".join(package.load_id for package in restored.packages if package.is_whole) or "none"
        print(f"Brought back: load packages {ids}. The next run of {pipeline.pipeline_name} loads them first.")
        if restored.state_from:
            print(
                "Rows that a run has extracted again meanwhile will be there twice where a table is appended to; "
                "`prefect-dlt discard` puts these packages aside again."
            )
        return 0

"""The demo: scaffold a project with default answers, load its data, and look at it in Prefect's UI.

Everything it makes is in `demo/`: the project, Prefect's home and dlt's data. Nothing of the user's
settings is read or changed. Run it again and it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import fcntl
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import webbrowser
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Generator
    from types import FrameType

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "demo"
NAME = "flights-demo"
PROJECT = DEMO / NAME
BIN = PROJECT / ".venv" / "bin"
UV = os.environ.get("UV", "uv")  # set by `uv run`

# dlt takes any environment variable for a setting, a plain DATASET_NAME too: only these are let in.
LET_IN = re.compile(
    r"PATH|HOME|USER|LOGNAME|SHELL|TMPDIR|TZ|LANG|LANGUAGE|LC_\w+|TERM|COLORTERM|COLUMNS|LINES"
    r"|NO_COLOR|FORCE_COLOR|DISPLAY|WAYLAND_DISPLAY|BROWSER|XDG_\w+|DBUS_SESSION_BUS_ADDRESS"
    r"|\w+_proxy|SSL_CERT_\w+|REQUESTS_CA_BUNDLE|UV_(?!PROJECT)\w+",
    re.IGNORECASE,
)
SETTINGS = {
    "DLT_DATA_DIR": str(DEMO / "dlt"),
    "PREFECT_HOME": str(DEMO / "prefect"),
    "PREFECT_PROFILES_PATH": str(DEMO / "prefect" / "profiles.toml"),
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "RUNTIME__DLTHUB_TELEMETRY": "false",
    "PYTHONUNBUFFERED": "1",
}
SERVER_START_SECONDS = 90
STOP_SECONDS = 20


class DemoError(Exception):
    """What went wrong, in words for the person who ran the demo."""


def environment(**extra: str) -> dict[str, str]:
    """Return the environment that the demo's programs see."""
    kept = {name: value for name, value in os.environ.items() if LET_IN.fullmatch(name)}
    # A proxy is for the way out: Prefect's server is on this machine.
    direct = ",".join(filter(None, [kept.get("no_proxy") or kept.get("NO_PROXY"), "127.0.0.1"]))
    return {**kept, "no_proxy": direct, "NO_PROXY": direct, **SETTINGS, **extra}


def say(text: str) -> None:
    """Tell what happens next."""
    print(f"\n== {text}", flush=True)


def run(*command: str | Path, folder: Path = PROJECT, lock: int | None = None) -> int:
    """Run a program to its end, its output visible; return its exit code.

    Args:
        command: The program and its arguments.
        folder: The folder it runs in.
        lock: A file descriptor that the program keeps open for as long as it lives.
    """
    with subprocess.Popen(
        command,
        cwd=folder,
        # A project has dlt's lines in its terminal as well; here they would hide what the demo shows.
        env=environment(RUNTIME__LOG_LEVEL="ERROR"),
        pass_fds=() if lock is None else (lock,),
        stdin=subprocess.DEVNULL,
        # Ctrl-C in a terminal would end the flow's Prefect server before the flow has told it anything.
        start_new_session=True,
    ) as program:
        try:
            return program.wait()
        except BaseException:
            program.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired, KeyboardInterrupt):  # a second Ctrl-C means now
                program.wait(STOP_SECONDS)
            raise
        finally:
            # A flow that was killed leaves its Prefect server behind.
            with suppress(ProcessLookupError):
                os.killpg(program.pid, signal.SIGKILL)


def git(*arguments: str, folder: Path) -> str | None:
    """Run git, quietly; return what it printed, or nothing when it failed."""
    done = subprocess.run(
        ["git", *arguments],
        cwd=folder,
        env=environment(),
        check=False,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip() if done.returncode == 0 else None


@contextmanager
def only_one() -> Generator[int]:
    """Hold the demo's lock; wait for it while an earlier demo, or what it left running, ends."""
    DEMO.mkdir(exist_ok=True)
    with (DEMO / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("An earlier demo is still at work; waiting for its end")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock.fileno()


def scaffold(project: Path = PROJECT) -> None:
    """Make the project, whole or not at all."""
    if project.exists():
        return
    say(f"Scaffolding {project.relative_to(ROOT)} with default answers")
    unfinished = project.parent / ".unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    tested_versions = ROOT / "constraints" / "{}.{}.txt".format(*sys.version_info)
    copier = [UV, "tool", "run", "--python", sys.executable, "--constraints", str(tested_versions)]
    # HEAD takes the checkout as it is, uncommitted changes included, rather than its last release.
    copy = ["copier", "copy", "--quiet", "--defaults", "--vcs-ref", "HEAD"]
    name = ["--data", f"project_name={NAME}"]
    if run(*copier, *copy, *name, ROOT, unfinished / NAME, folder=ROOT):
        raise DemoError("The project could not be made; the reason is above.")
    name_the_commit(unfinished / NAME / ".copier-answers.yml")
    (unfinished / NAME).rename(project)
    unfinished.rmdir()


def name_the_commit(answers: Path) -> None:
    """Make a project that was made from uncommitted changes one that `copier update` can update.

    Copier then names a commit that only its own copy of the template had.
    """
    commit = git("describe", "--tags", "--always", folder=ROOT)
    if commit is not None:
        text = answers.read_text(encoding="utf-8")
        named = re.sub(r"(?m)^_commit: .*$", f"_commit: {commit}", text)
        answers.write_text(named, encoding="utf-8")


def install(project: Path = PROJECT, lock: int | None = None) -> None:
    """Install what the project needs, and commit it all, as its user would."""
    say("Installing it; the first time takes a minute or two")
    if run(UV, "sync", "--quiet", "--no-dev", "--python", sys.executable, folder=project, lock=lock):
        raise DemoError("The project could not be installed; the reason is above.")
    commit(project)


def commit(project: Path) -> None:
    """Make the project a git repository with one commit, as `copier update` needs it."""
    own = project / ".git"  # without naming it, git would find the repository around the demo
    if git("--git-dir", str(own), "rev-parse", "--verify", "HEAD", folder=project) is not None:
        return
    shutil.rmtree(own, ignore_errors=True)
    author = ["-c", "user.name=demo", "-c", "user.email=demo@localhost", "-c", "commit.gpgsign=false"]
    steps = (["init"], ["add", "--all"], [*author, "commit", "--no-verify", "--message", "Scaffold"])
    for step in steps:
        if git(*step, folder=project) is None:
            raise DemoError(f"The project could not be committed; see what `git commit` says in {project}.")


def show(report: Path) -> None:
    """Print what this run loaded, where it is, and where to look at it."""
    found = json.loads(report.read_text(encoding="utf-8"))
    say("Done")
    print(f"{'table':<12}{'rows loaded':>14}{'rows in table':>16}{'seconds':>10}")
    for table in found["tables"]:
        seconds = "-" if table["seconds"] is None else f"{table['seconds']:.1f}"
        print(f"{table['name']:<12}{table['loaded']:>14}{table['rows']:>16,}{seconds:>10}")
    print(f"\nDatabase:              {found['database']}")
    print("Artifacts in the UI:   make demo-ui")


def load() -> None:
    """Scaffold and install the project when that is not done yet, then run its flow."""
    with only_one() as lock:
        scaffold()
        install(lock=lock)
        say("Running its flow")
        report = DEMO / "last-run.json"
        if run(BIN / "python", ROOT / "scripts" / "demo_run.py", report, lock=lock):
            raise DemoError("The flow failed; the reason is above. `make demo` tries again.")
        show(report)


def show_ui() -> None:
    """Start a Prefect server on what the demo recorded, and open its artifacts in a browser."""
    if not (DEMO / "prefect" / "prefect.db").exists():
        raise DemoError("There is nothing to look at yet. Run `make demo` first.")
    settings = environment()
    with prefect_server(PROJECT) as (address, server):
        try:
            page = f"{address}/v2/artifacts"  # of Prefect's two UIs the one that draws diagrams
            print(f"Prefect UI: {page} (Ctrl-C stops it)", flush=True)
            if sys.platform == "darwin" or {"DISPLAY", "WAYLAND_DISPLAY"} & settings.keys():
                webbrowser.open(page)
            server.wait()
        except KeyboardInterrupt:
            return  # the way to end it
    raise DemoError(f"The Prefect server ended with {server.returncode}.")


@contextmanager
def prefect_server(project: Path, **settings: str) -> Generator[tuple[str, subprocess.Popen[bytes]]]:
    """Start a Prefect server on a free port of this machine; give its address and its process, and end it afterwards.

    Args:
        project: The project whose Prefect it is.
        settings: Settings beside the demo's.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    # Without this the pages would ask the default port, 4200, whichever port they came from.
    seen = environment(**settings, PREFECT_UI_API_URL=f"{address}/api", PREFECT_API_URL=f"{address}/api")
    command = [project / ".venv" / "bin" / "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with subprocess.Popen(command, cwd=project, env=seen, stdout=subprocess.DEVNULL) as server:
        try:
            wait_for(port, server)
            yield address, server
        finally:
            server.terminate()


def wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    """Return once the server answers."""
    deadline = time.monotonic() + SERVER_START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        if is_healthy(port):
            return
        time.sleep(0.3)
    raise DemoError(f"The Prefect server did not answer within {SERVER_START_SECONDS} seconds.")


def is_healthy(port: int) -> bool:
    """Tell whether a Prefect server answers at a port of this machine."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/api/health")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def stop(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001 - what signal hands over
    """End in good order when asked to."""
    sys.exit(128 + number)


def main() -> int:
    """Run one of the two commands; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=("load", "ui"))
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    try:
        {"load": load, "ui": show_ui}[parser.parse_args().command]()
    except DemoError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0


if __name__ == "__main__":
    sys.exit(main())

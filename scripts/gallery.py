"""The gallery: run the demo and more against a real Prefect server, and take pictures of what it shows.

The pictures go to `docs/gallery/`, each of Prefect's two interfaces; docs/gallery.md shows them. Everything else that
it makes is in `build/gallery/`, and made anew each time.
"""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import demo_project as demo
from gallery_album import ARTIFACTS, EVERYTHING, PROGRESS, RUNS, GalleryError, Picture

if TYPE_CHECKING:
    from gallery_pictures import Camera

FOLDER = demo.ROOT / "build" / "gallery"
PROJECT = FOLDER / demo.NAME
PICTURES_FOLDER = demo.ROOT / "docs" / "gallery"
SETTINGS = {
    "DLT_DATA_DIR": str(FOLDER / "dlt"),
    "PREFECT_HOME": str(FOLDER / "prefect"),
    "PREFECT_PROFILES_PATH": str(FOLDER / "prefect" / "profiles.toml"),
}
RUNS_SECONDS = 600
"""Longest time until the last run is half-way; they take one minute."""


class Server:
    """What the gallery asks a Prefect server.

    Args:
        address: Of the server.
    """

    def __init__(self, address: str) -> None:
        self._api = f"{address}/api"

    def artifact(self, key: str) -> dict[str, Any] | None:
        """Return the latest artifact of a key."""
        found = self._ask("/artifacts/filter", {"artifacts": {"key": {"any_": [key]}}, "sort": "UPDATED_DESC"})
        return found[0] if found else None

    def flow_run(self, flow: str) -> dict[str, Any]:
        """Return the latest run of a flow."""
        wanted = {"flows": {"name": {"any_": [flow]}}, "sort": "START_TIME_DESC", "limit": 1}
        return self._ask("/flow_runs/filter", wanted)[0]

    def _ask(self, path: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(  # noqa: S310 - the server on this machine
            f"{self._api}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        # No proxy: it is for the way out.
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as answer:
            return json.load(answer)


def take_artifact(server: Server, photographer: Camera, picture: Picture) -> None:
    """Take the pictures of one artifact."""
    found = server.artifact(picture.of)
    if found is None:
        raise GalleryError(f"The runs made no artifact {picture.of}; see {FOLDER / 'runs.log'}.")
    photographer.take(picture, f"/artifacts/artifact/{found['id']}")


def take_the_rest(server: Server, photographer: Camera) -> None:
    """Take the pictures of what is there when all runs have ended."""
    for picture in ARTIFACTS:
        take_artifact(server, photographer, picture)
    for picture in RUNS:
        photographer.take(picture, f"/runs/flow-run/{server.flow_run(picture.of)['id']}")
    photographer.take(EVERYTHING, "/artifacts")


def wait_until_half_way(server: Server, runs: subprocess.Popen[bytes]) -> None:
    """Return once the last run is half-way."""
    deadline = time.monotonic() + RUNS_SECONDS
    while time.monotonic() < deadline and runs.poll() is None:
        found = server.artifact(PROGRESS.of)
        if found is not None and PROGRESS.shows in found["description"]:
            return
        time.sleep(0.5)
    raise GalleryError(f"The runs did not come as far as they should; see {FOLDER / 'runs.log'}.")


def hidden() -> dict[str, str]:
    """Return what pictures do not show of this machine, and what they show instead."""
    return {str(FOLDER): "/srv", str(demo.ROOT): "/srv", sys.base_prefix: "/usr"}


def forbidden() -> set[str]:
    """Return what no picture may show: this machine's name, and where its users and this checkout are."""
    folders = [demo.ROOT, Path(sys.base_prefix), Path.home()]
    return {str(Path(*folder.parts[:3])) for folder in folders} - {"/usr"} | {socket.gethostname()}


def take_pictures() -> None:
    """Make the project, run it, and take all the pictures."""
    from gallery_pictures import camera, find_browser

    find_browser()
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    PICTURES_FOLDER.mkdir(parents=True, exist_ok=True)
    demo.scaffold(PROJECT)
    demo.install(PROJECT)
    demo.say("Running its flow and more, and taking pictures")
    may_end = FOLDER / "may-end"
    with demo.prefect_server(PROJECT, **SETTINGS) as (address, _), (FOLDER / "runs.log").open("wb") as log:
        server = Server(address)
        command = [PROJECT / ".venv" / "bin" / "python", demo.ROOT / "scripts" / "gallery_runs.py", may_end]
        settings = demo.environment(**SETTINGS, PREFECT_API_URL=f"{address}/api")
        with subprocess.Popen(command, cwd=PROJECT, env=settings, stdout=log, stderr=subprocess.STDOUT) as runs:
            try:
                wait_until_half_way(server, runs)
                with camera(address, PICTURES_FOLDER, hidden(), forbidden()) as photographer:
                    take_artifact(server, photographer, PROGRESS)
                    may_end.touch()
                    runs.wait(RUNS_SECONDS)
                    take_the_rest(server, photographer)
            finally:
                runs.terminate()
        if runs.returncode:
            raise GalleryError(f"The runs failed; see {FOLDER / 'runs.log'}.")


def main() -> int:
    """Take the pictures; return the exit code."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, demo.stop)
    began = time.monotonic()
    try:
        take_pictures()
    except (GalleryError, demo.DemoError) as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 128 + signal.SIGINT
    size = sum(file.stat().st_size for file in PICTURES_FOLDER.glob("*.png")) / 1024**2
    demo.say(f"Done in {time.monotonic() - began:,.0f} s; {size:.1f} MiB in {PICTURES_FOLDER.relative_to(demo.ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

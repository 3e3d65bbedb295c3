"""A flow that is killed in the middle of its work, and run again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import pytest

from tests.template.conftest import Generate


@pytest.mark.parametrize(
    ("moment", "seconds"),
    [("extract · 0 of", 1.0), ("load · 0 of", 0.0), ("load · 0 of", 0.5)],
    ids=["in extract", "before the first load job", "in load"],
)
def test_a_killed_demo_is_finished_by_the_next_run(
    generate: Generate, tmp_path: Path, prefect_server: str, moment: str, seconds: float
) -> None:
    project = generate(source="demo")
    command = [sys.executable, "-u", "-m", "flows.load"]
    environment = {**os.environ, "DLT_DATA_DIR": str(tmp_path / "dlt"), "PREFECT_API_URL": prefect_server}

    with subprocess.Popen(
        command, cwd=project, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        lines: list[str] = []
        for line in process.stdout:
            lines.append(line)
            if moment in line:
                time.sleep(seconds)
                process.send_signal(signal.SIGKILL)
                break
        else:
            pytest.fail("".join(lines))
    assert process.returncode == -signal.SIGKILL, "".join(lines)

    again = subprocess.run(command, cwd=project, env=environment, check=False, capture_output=True, text=True)

    assert again.returncode == 0, again.stdout + again.stderr
    with duckdb.connect(str(project / "data" / "local-warehouse.duckdb"), read_only=True) as connection:
        found = connection.execute(
            "SELECT count(*), count(DISTINCT (carrier, flight, time_hour)) FROM shop_loads.flights"
        ).fetchone()
    assert found == (336_776, 336_776)

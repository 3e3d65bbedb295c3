"""A generated project attempts a failed run as often as it was answered."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.template.conftest import Generate

SHAKY_SOURCE = """
import dlt

attempts = 0


@dlt.source
def own():
    @dlt.resource
    def items():
        global attempts
        attempts += 1
        print("attempt", attempts)
        if attempts < 2:
            raise ConnectionError("the line is dead")
        yield [{"id": 1}]

    return items
"""


def test_a_source_that_fails_once_is_read_again(generate: Generate, tmp_path: Path, prefect_server: str) -> None:
    project = generate(source="empty", retry_attempts=2)
    (project / "sources" / "own.py").write_text(SHAKY_SOURCE)

    done = subprocess.run(
        [sys.executable, "-m", "flows.load"],
        cwd=project,
        env={**os.environ, "DLT_DATA_DIR": str(tmp_path / "dlt"), "PREFECT_API_URL": prefect_server},
        check=False,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "items     1" in done.stdout
    assert "attempt 2" in done.stdout + done.stderr
    assert "Attempt 1 of pipeline 'shop_loads' failed" in done.stdout + done.stderr

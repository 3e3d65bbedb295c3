"""Kill loads at many moments, let the next run finish, and count what was lost, doubled or stuck.

    python -m tests.chaos --kills 1000

Each combination of destination, write disposition and kind of load has its turn; moments are spread evenly over the
time that such a run takes, and over the points where it has just left something behind. The exit code is 1 when a row
is lost or doubled, or a package stuck.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path


def main() -> int:
    """Run the program in folders of its own."""
    with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as folder:
        # Read when dlt, Prefect and NumPy are imported; threads of the last would be alive when the process forks.
        os.environ.update(
            DO_NOT_TRACK="1",
            DLT_DATA_DIR=f"{folder}/dlt",
            OPENBLAS_NUM_THREADS="1",
            PREFECT_HOME=f"{folder}/prefect",
            PREFECT_SERVER_ANALYTICS_ENABLED="false",
            RUNTIME__DLTHUB_TELEMETRY="false",
        )
        from tests.chaos import program

        return program.main(__doc__ or "", Path(folder))


if __name__ == "__main__":
    sys.exit(main())

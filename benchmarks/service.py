"""The service against bare peers, in real processes on a real PostgreSQL, with a bar for each figure.

    python -m benchmarks.service [PART ...]

Parts: `upload` (memory and speed of a large upload), `job` (requests per second for a job), `pages` (of pseudo-labels
out of 10 million rows), `load` (storing a million pseudo-labels), `dashboard` (a job with a million of them: pages,
details, summaries, and all that opening it asks for; SQLite too), `watchers` (200 open event streams of a job that a
worker does). Needs curl, the packages of `.[dev]` and about 15 GB in /tmp. Exit code 1 if a bar is missed.
"""

import argparse
import sys
from collections.abc import Callable

from benchmarks import service_dashboard, service_job, service_labels, service_upload, service_watchers

PARTS: dict[str, Callable[[], bool]] = {
    "upload": service_upload.main,
    "job": service_job.main,
    "pages": service_labels.main_pages,
    "load": service_labels.main_load,
    "dashboard": service_dashboard.main,
    "watchers": service_watchers.main,
}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; by default all")
    parts = parser.parse_args().parts or list(PARTS)
    unknown = set(parts) - set(PARTS)
    if unknown:
        parser.error(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    met = True
    for part in parts:
        print(f"\n{part}", flush=True)
        met = PARTS[part]() and met
    sys.exit(not met)


if __name__ == "__main__":
    main()

"""One script of a user's calls, with the real `openai` client of each major, against a running service.

With SEMIEVOL_BIG=1 there is also an upload of 200 MB in parts of 32 MB, which tells its time and the API's memory:

    SEMIEVOL_BIG=1 make test ARGS="-s tests/acceptance/test_openai_clients.py -k 200"
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests.acceptance import openai_script
from tests.deployments import RECIPE, Deployment, input_files, one_machine
from tests.servers import ROOT

pytestmark = pytest.mark.slow

INSTALLED = metadata.version("openai")
OLD_MAJORS = ("1.109.1", "2.54.0")
DISTRO = "distro==1.9.0"
"""The one thing that the old majors need and the new one, which the environment has, does not."""
SECONDS = 500
MIB = 1024**2
API_GROWTH_BYTES = 100 * MIB
"""Most that the API may grow by while 200 MB come in."""


def client_folder(version: str) -> Path | None:
    """Where a major is installed; None for the one in the environment."""
    if version == INSTALLED:
        return None
    folder = ROOT / ".cache" / "openai" / version
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            _install(version, folder)
    return folder


def _install(version: str, folder: Path) -> None:
    partial = folder.with_suffix(".partial")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--upgrade"]
    done = subprocess.run(
        [*pip, f"--target={partial}", f"openai=={version}", DISTRO], capture_output=True, text=True, check=False
    )
    if done.returncode and not os.environ.get("CI"):
        pytest.skip(f"openai {version} cannot be installed here: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    partial.rename(folder)


@dataclass(frozen=True)
class Services:
    """A service with a worker, and one with small limits and none."""

    normal: Deployment
    tight: Deployment


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    folder = tmp_path_factory.mktemp("clients")
    limits = {
        "SEMIEVOL_MAX_FILE_BYTES": "2000",
        "SEMIEVOL_MAX_PROJECT_BYTES": "2000",
        "SEMIEVOL_REQUESTS_PER_MINUTE": "20",
    }
    with one_machine(folder / "normal") as normal, one_machine(folder / "tight", workers=0, **limits) as tight:
        yield Services(normal, tight)


def run_script(services: Services, version: str, **changes: Any) -> list[dict[str, Any]]:
    """What the script says, a line for each check. Each run has projects of its own."""
    normal, tight, project = services.normal, services.tight, f"v{version}".replace(".", "-")
    inputs = input_files(normal.folder / "in", unlabeled=32)
    facts = {
        "url": normal.url,
        "key": normal.new_key(project, admin=True),
        "other_key": normal.new_key(f"{project}-other", admin=True),
        "tight_url": tight.url,
        "quota_key": tight.new_key(f"{project}-quota"),
        "rate_key": tight.new_key(f"{project}-rate"),
        "labeled": str(inputs["labeled"]),
        "unlabeled": str(inputs["unlabeled"]),
        "recipe": RECIPE,
        "upload_bytes": 3 * MIB,
        "part_bytes": MIB,
    }
    folder = client_folder(version)
    done = subprocess.run(
        [sys.executable, "-W", "error", openai_script.__file__, json.dumps(facts | changes)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        env=os.environ | {"PYTHONPATH": str(folder or "")},
    )
    lines: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines, done.stderr
    assert lines[0] == {"openai": version}
    failed = "\n".join(f"{line['check']}: {line['why']}" for line in lines[1:] if not line["ok"])
    assert not failed, failed
    assert done.returncode == 0, done.stderr
    return lines[1:]


@pytest.mark.parametrize(
    "version", [*(pytest.param(version, marks=pytest.mark.long) for version in OLD_MAJORS), INSTALLED]
)
def test_client_works_unmodified(services: Services, version: str) -> None:
    lines = run_script(services, version)
    assert [line["check"] for line in lines] == [function.__name__ for function in openai_script.CHECKS]
    for line in lines:
        print(json.dumps(line))


def test_majors_are_three() -> None:
    assert [version.split(".")[0] for version in (*OLD_MAJORS, INSTALLED)] == ["1", "2", "3"]


@pytest.mark.skipif(not os.environ.get("SEMIEVOL_BIG"), reason="200 MB: set SEMIEVOL_BIG=1")
def test_upload_of_200_mb_in_parts(services: Services) -> None:
    assert services.normal.api is not None
    before = peak_bytes(services.normal.api.pid)
    changes = {"upload_bytes": 200 * 10**6, "part_bytes": 32 * MIB, "only": ["files_create", "uploads_in_parts"]}
    upload = run_script(services, INSTALLED, **changes)[-1]
    after = peak_bytes(services.normal.api.pid)
    print(f"{upload['remark']}; the API's peak went from {before / MIB:.0f} to {after / MIB:.0f} MiB")
    assert after - before < API_GROWTH_BYTES


def peak_bytes(pid: int) -> int:
    """The most memory that the process ever had."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024

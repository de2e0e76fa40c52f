"""A full disk ends a run with a message; what was committed is whole, and with room the run goes on."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.long]
KILOBYTES = (64, 700, 2000, 5000)
"""Full amid the first stage, torch's own file of a checkpoint, its move, a later stage; `campaign.py` has more."""


def test_full_disk(data: Path, undisturbed: dict[str, str], tmp_path: Path) -> None:
    inside = ["unshare", "-rm"]
    if subprocess.run([*inside, "true"], check=False, capture_output=True).returncode:
        pytest.skip("a small disk of one's own needs user namespaces (unshare -rm)")
    command = [sys.executable, "-m", "tests.faults.disk_full", str(data), str(tmp_path), *map(str, KILOBYTES)]
    told = subprocess.run([*inside, *command], check=True, capture_output=True, text=True)
    for kilobytes, found in json.loads(told.stdout).items():
        assert found["status"] == 1, (kilobytes, found["said"])
        assert "the disk is full" in found["said"]
        assert "the same command continues" in found["said"]
        assert "Traceback" not in found["said"]
        assert found["unfinished"] == []
        assert not found["handed_out"]
        assert found["status_with_room"] == 0, found["said"]
        assert found["results"] == undisturbed

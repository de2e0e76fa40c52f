"""A full disk ends a run with a message; what was committed is whole, and with more room the run goes on."""

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
    found = json.loads(told.stdout)
    for full in found["full"]:
        assert full["status"] == 1, (full["kilobytes"], full["said"])
        assert "the disk is full" in full["said"]
        assert "the same command continues" in full["said"]
        assert "Traceback" not in full["said"]
        assert full["unfinished"] == []
        assert not full["handed_out"]
    assert found["ended"]["status"] == 0, found["ended"]["said"]
    assert found["ended"]["results"] == undisturbed

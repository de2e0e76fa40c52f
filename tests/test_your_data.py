"""docs/your-data.md: its commands run, in their order, on the files that they make."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.long]
ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
QUICK = "--set=warmup.steps=4 --set=evolution.steps=4 --set=generation.n=2 --set=model.device=cpu"


def commands() -> list[list[str]]:
    """The guide's blocks as commands; a run is a short one."""
    text = (ROOT / "docs" / "your-data.md").read_text(encoding="utf-8")
    text = text.replace(".venv/bin/python", sys.executable).replace(
        ".venv/bin/semievol", f"{sys.executable} -m semievol"
    )
    programs = {"sh": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}
    blocks = BLOCK.findall(text.replace("semievol run ", f"semievol run {QUICK} "))
    return [[*programs[kind], code] for kind, code in blocks]


def test_the_commands_of_the_guide_run(tmp_path: Path) -> None:
    (tmp_path / "demo").symlink_to(ROOT / "demo")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    found = commands()
    assert len(found) == 6
    for command in found:
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, (command[-1], done.stderr[-2000:])
        assert done.stdout, command[-1]
    assert (tmp_path / "runs/tickets/adapter/adapter_model.safetensors").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"demo", "runs", "settings.yaml", "tickets"}

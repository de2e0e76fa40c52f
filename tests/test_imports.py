"""What may be imported without paying for torch."""

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = "{'torch', 'transformers', 'vllm', 'sentence_transformers', 'peft'}"


@pytest.mark.parametrize(
    "module", ["semievol.recipe", "semievol.examples", "semievol.pipeline", "semievol.fakes", "semievol.cli"]
)
def test_a_module_loads_without_torch(module: str) -> None:
    script = (
        f"import sys, {module}; loaded = {HEAVY} & set(sys.modules); sys.exit(f'loaded {{loaded}}' if loaded else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_models_load_without_what_libraries_take_along() -> None:
    """It is said not to be there while they are imported, and is there for who asks afterwards."""
    script = (
        "import sys, semievol.backends.local; taken = {'bitsandbytes', 'scipy.stats', 'sklearn'} & set(sys.modules);"
        "from scipy.stats import binomtest; sys.exit(f'loaded {taken}' if taken else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_models_load_where_transformers_has_found_these_packages() -> None:
    script = "from transformers.utils import is_scipy_available as found; found(); import semievol.backends.local"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"]])
def test_help_is_given_without_torch(tmp_path: Path, arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "semievol", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Usage" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "typer" in imported
    assert not imported & {"torch", "transformers", "vllm"}

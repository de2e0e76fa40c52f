"""The command line: `semievol run`, the service (`serve`, `worker`, `migrate`) and its client (`jobs`).

Arguments, settings and files are checked before anything heavy is imported, so a wrong path is told at once.
"""

import gc
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from semievol.jobs.cli import app as jobs_app
from semievol.signals import Terminated, exit_code_of, stoppable

if TYPE_CHECKING:
    from rich.console import Console

    from semievol.checkpoints import FolderCheckpoints
    from semievol.memory import Halvings
    from semievol.pipeline import Job
    from semievol.ports import Backend, Checkpoints
    from semievol.recipe import Recipe
    from semievol.validation.findings import Findings

_GOES_ON = "What is finished is kept: the same command continues where this one stopped."
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")

app = typer.Typer(
    name="semievol",
    help="Adapt a language model from a few labeled and many unlabeled examples.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(jobs_app, name="jobs")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with `arguments` (by default the process's own) and return its exit code."""
    try:
        app(args=list(sys.argv[1:] if arguments is None else arguments), prog_name="semievol")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"semievol {version('semievol')}")
        raise typer.Exit


@app.callback()
def _options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of no single command."""


@app.command()
def run(
    model: Annotated[str, typer.Option(help="Base model: a folder or a Hugging Face hub id.", show_default=False)],
    labeled: Annotated[
        Path, typer.Option(help="Rows with answers: .jsonl, .csv or .parquet, also .gz or .zst.", show_default=False)
    ],
    unlabeled: Annotated[Path, typer.Option(help="Rows without answers.", show_default=False)],
    output: Annotated[Path, typer.Option(help="Folder for all results; a stopped run goes on.", show_default=False)],
    validation: Annotated[
        Path | None, typer.Option(help="Labeled rows to choose the adapter by; else some are held out.")
    ] = None,
    test: Annotated[Path | None, typer.Option(help="Labeled rows to measure on, used for nothing else.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="Settings: a YAML or JSON file.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="One setting, such as selection.theta=0.5; may repeat."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    checkpoint_seconds: Annotated[
        float, typer.Option(min=0, help="Between two checkpoints of a training: what a crash can cost.")
    ] = 60,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show the result only, no progress.")] = False,
) -> None:
    """Adapt a model from a labeled and an unlabeled file into a LoRA adapter.

    The same command goes on where an earlier one stopped.

    Settings come from semievol_recipe.yaml in the model's folder, then --recipe, then --set; later ones win.
    """
    from rich.console import Console

    from semievol.errors import DiskFull, SemiEvolError
    from semievol.faults import fault_of

    console = Console(highlight=False)
    try:
        with stoppable() as stop:
            layers = read_layers(model, recipe, settings or [])
            resolved = _resolve(layers)
            check_model(model)
            check_files(labeled, unlabeled, validation, test)
            from semievol.checkpoints import FolderCheckpoints
            from semievol.pipeline import Job  # numpy and pyarrow: a second

            job = Job(model, labeled, unlabeled, resolved, seed, validation, test)
            if not quiet:
                _show_job(job, output, console, list(layers))
            checkpoints = FolderCheckpoints(output / "checkpoints", checkpoint_seconds, stop)
            _run_job(job, output, console, checkpoints, quiet=quiet)
    except (KeyboardInterrupt, Terminated) as stopped:
        _complain(f"Stopped. {_GOES_ON}")
        raise typer.Exit(exit_code_of(stopped)) from None
    except Exception as error:
        told = error if isinstance(error, SemiEvolError) else fault_of(error)
        if told is None:
            raise
        hint = f"\n{_GOES_ON}" if isinstance(told, DiskFull) else ""
        _complain(f"semievol: {told}{hint}")
        raise typer.Exit(told.exit_code) from None


@app.command()
def validate(
    model: Annotated[str, typer.Option(help="Base model: a folder or a Hugging Face hub id.", show_default=False)],
    labeled: Annotated[Path, typer.Option(help="Rows with answers.", show_default=False)],
    unlabeled: Annotated[Path | None, typer.Option(help="Rows without answers.")] = None,
    validation: Annotated[Path | None, typer.Option(help="Labeled rows to choose the adapter by.")] = None,
    test: Annotated[Path | None, typer.Option(help="Labeled rows to measure on.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="Settings: a YAML or JSON file.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One setting; may repeat.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    full: Annotated[bool, typer.Option("--full", help="Show every setting.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """Look at what a run would do with these files and settings, without doing it.

    Takes the options of `run`. All files are checked, and all that is wrong is told; the exit code is then 2.
    """
    from rich.console import Console

    given = {"labeled": labeled, "unlabeled": unlabeled, "validation": validation, "test": test}
    files = {role: path for role, path in given.items() if path is not None}
    console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=100)
    try:
        with stoppable(), console.status("Looking ...") if console.is_terminal and not as_json else nullcontext():
            found = _find(model, files, recipe, settings or [], seed)
    except (KeyboardInterrupt, Terminated) as stop:
        raise typer.Exit(exit_code_of(stop)) from None
    if as_json:
        _say(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        from semievol.validation.show import show

        show(found, console, full=full)
    raise typer.Exit(0 if found["valid"] else 2)


def _find(
    model: str, files: Mapping[str, Path], recipe_file: Path | None, settings: Sequence[str], seed: int
) -> "Findings":
    """What is wrong, all of it, and what there is to see. The engine is imported only if files and recipe are right."""
    from semievol.errors import SemiEvolError
    from semievol.validation.checking import Fault, check
    from semievol.validation.findings import findings

    recipe, layers, faults, looked = None, dict[str, dict[str, Any]](), list[Fault](), dict[str, Any]()
    try:
        layers = read_layers(model, recipe_file, settings)
        recipe = _resolve(layers)
    except SemiEvolError as error:
        faults.append(Fault.of("recipe", error))
    checked = check(files, recipe, seed)
    faults += checked.faults
    try:
        check_model(model)
        if recipe is not None and not faults:
            with _importing_engine():
                from semievol.validation.looking import look

            looked = look(model, recipe, checked)
    except SemiEvolError as error:
        faults.append(Fault.of("model", error))
    return findings(model, checked, recipe, layers, looked, faults)


def _run_job(job: "Job", output: Path, console: "Console", checkpoints: "FolderCheckpoints", *, quiet: bool) -> None:
    from dataclasses import replace

    from semievol import progress, summary
    from semievol.errors import OutOfMemory
    from semievol.estimates.history import History
    from semievol.garbage import collect_rarely
    from semievol.memory import Halvings

    collect_rarely()
    memory = output / "stages" / "memory.json"
    halvings = Halvings.read(memory)
    with console.status("Loading libraries ...") if not quiet else nullcontext():
        from semievol import pipeline

        backend = build_backend(job.model, job.recipe, checkpoints, halvings)
    history = History.of(job.model, job.recipe.model, backend.device)
    begun = any((output / "stages").glob("*/manifest.json"))
    job = replace(job, estimator=history.estimator(backend.lengths))
    try:
        with progress.display(console, job.recipe.generation.shard_size, quiet=quiet) as display:
            outcome = pipeline.run(job, backend, output, display)
    except OutOfMemory as error:
        if error.rows <= 1:
            raise
        halvings.once_more(error.phase).write(memory)
        _complain(f"semievol: {error}; a new process goes on with half as many")
        # Only a new process has all of its memory back.
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    checkpoints.clear()
    if outcome["estimate"] and not begun:  # of a run that went on from somewhere the time tells nothing
        history.add(outcome["estimate"]["actual"]["work"])
    summary.show(outcome, output, console)


def build_backend(
    model: str, recipe: "Recipe", checkpoints: "Checkpoints | None" = None, halvings: "Halvings | None" = None
) -> "Backend":
    """What generates and trains; the one place that imports torch."""
    with _importing_engine():
        from semievol.backends.local import LocalBackend

    return LocalBackend(model, recipe, checkpoints, halvings)


@contextmanager
def _importing_engine() -> Iterator[None]:
    """Imports torch and what is over it, quietly and as fast as it goes."""
    # Its warnings and bars would break the live line; what goes wrong still comes as an exception.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")
    gc.disable()  # nothing of what is imported is garbage, and looking for it takes a fifth of the time
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _show_job(job: "Job", output: Path, console: "Console", layers: Sequence[str]) -> None:
    from rich.text import Text

    where = "folder" if Path(job.model).is_dir() else "Hugging Face hub"
    facts = {"Model": f"{job.model} ({where})", "Output": str(output), "Seed": str(job.seed)}
    if layers:
        facts["Settings"] = ", then ".join(layers)
    for name, fact in facts.items():
        console.print(Text(f"{name + ':':<10}{fact}"), soft_wrap=True)
    console.print()


# --- arguments --------------------------------------------------------------------------------------------------------


def read_layers(model: str, recipe: Path | None, settings: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Where settings come from, by name, later ones winning: the model's folder, the recipe file, --set.

    Raises RecipeError.
    """
    from semievol.recipe import MODEL_RECIPE, parse_setting, read_recipe

    layers: dict[str, dict[str, Any]] = {}
    own = Path(model) / MODEL_RECIPE
    if own.is_file():
        layers[f"{own} (comes with the model)"] = read_recipe(own)
    if recipe is not None:
        layers[str(recipe)] = read_recipe(recipe)
    for setting in settings:
        layers[f"--set {setting}"] = parse_setting(setting)
    return layers


def _resolve(layers: dict[str, dict[str, Any]]) -> "Recipe":
    from semievol.recipe import Recipe

    return Recipe.resolve(*layers.values())


def check_model(model: str) -> None:
    """Raises ModelError if `model` is neither a model's folder nor written like a hub id."""
    from semievol.errors import ModelError

    folder = Path(model)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"the folder {model} holds no model: it has no config.json")
    elif folder.exists():
        raise ModelError(f"{model} is a file; --model names a model's folder or a hub id such as Qwen/Qwen3-8B")
    elif not _HUB_ID.fullmatch(model) or model.startswith("."):
        raise ModelError(
            f"there is no folder {model}; --model names a model's folder or a hub id such as Qwen/Qwen3-8B"
        )


def check_files(labeled: Path, unlabeled: Path, validation: Path | None, test: Path | None) -> None:
    """Raises DataError with the problems, by line, of the first file that cannot be used."""
    from semievol.examples import check_unlabeled, read_labeled

    for path in (labeled, validation, test):
        if path is not None:
            read_labeled(path)
    check_unlabeled(unlabeled)


# --- the service ------------------------------------------------------------------------------------------------------


@app.command()
def serve(
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; 0.0.0.0 is all.  [default: 127.0.0.1]", show_default=False)
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Port; 0 takes a free one.  [default: 8000]", show_default=False),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of all data.  [default: semievol-data]", show_default=False)
    ] = None,
    worker: Annotated[
        bool | None,
        typer.Option(
            "--worker/--no-worker",
            help="Do the jobs' work here, too.  [default: yes, unless SEMIEVOL_BROKER_URL is set]",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Run the service: the HTTP API and a worker, until Ctrl-C.

    Settings come from the environment (SEMIEVOL_...); options win over it. The first start makes an admin's key,
    prints it once, and writes it to admin.key in the data folder.
    """
    with _setup_errors():
        from worker.first_start import read_settings
        from worker.serve import serve as run_service

        plain = "text" if sys.stderr.isatty() and "SEMIEVOL_LOG_FORMAT" not in os.environ else None
        settings = read_settings(host=host, port=port, data=data, log_format=plain)
        works = not settings.broker_url if worker is None else worker
        raise typer.Exit(run_service(settings, _say, worker=works))


@app.command("api-process", hidden=True)
def api_process(fd: Annotated[int, typer.Option(help="The listening socket.")]) -> None:
    """The API alone, on a socket that is there already: a child of `serve`."""
    import socket

    from api.main import app as build_api
    from api.serving import Server

    Server(build_api()).run(sockets=[socket.socket(fileno=fd)])


@app.command()
def worker(
    queues: Annotated[str, typer.Option(help="Kinds of work to take: gpu, cpu or both.")] = "gpu,cpu",
    poll: Annotated[bool, typer.Option("--poll", help="Look into the database even if there is a broker.")] = False,
) -> None:
    """Do jobs' work: from the broker if SEMIEVOL_BROKER_URL is set, else by looking into the database."""
    with _setup_errors():
        from worker.first_start import read_settings

        settings = read_settings()
        kinds = [kind.strip() for kind in queues.split(",")]
        if not kinds or not set(kinds) <= {"gpu", "cpu"}:
            raise typer.BadParameter(f"{queues!r} is not gpu, cpu or gpu,cpu", param_hint="--queues")
        by_broker = bool(settings.broker_url) and not poll
        if not by_broker and len(set(kinds)) == 1:
            raise typer.BadParameter("a worker that polls takes all work; queues need a broker", param_hint="--queues")
        command = _celery_command(kinds) if by_broker else ["-m", "worker.local"]
        os.execv(sys.executable, [sys.executable, "-P", *command])


def _celery_command(kinds: Sequence[str]) -> list[str]:
    import secrets

    queues = ",".join(f"semievol-{kind}" for kind in kinds)
    limits = ["--concurrency=1", "--prefetch-multiplier=1", f"--hostname=semievol-{secrets.token_hex(4)}@%h"]
    return ["-m", "celery", "-A", "worker.app", "worker", *limits, "-Q", queues]


@app.command()
def migrate() -> None:
    """Bring the database (SEMIEVOL_DATABASE_URL) to this version. `serve` does it by itself for SQLite."""
    with _setup_errors():
        from worker import first_start

        settings = first_start.read_settings()
        database = first_start.open_database(settings)
        before, after = first_start.migrate(database)
        database.close()
        where = database.url.render_as_string(hide_password=True)
        _say(
            f"{where} is at version {after} already."
            if before == after
            else f"{where}: migrated from {f'version {before}' if before else 'nothing'} to version {after}."
        )


@contextmanager
def _setup_errors() -> Iterator[None]:
    """What is wrong with settings, port, folder or database is said in a line each; the exit code is 2."""
    from worker.first_start import SetupError

    try:
        yield
    except SetupError as error:
        for line in str(error).splitlines():
            _complain(f"semievol: {line}")
        raise typer.Exit(2) from None


def _say(message: str) -> None:
    print(message, flush=True)


def _complain(message: str) -> None:
    typer.echo(message, err=True)

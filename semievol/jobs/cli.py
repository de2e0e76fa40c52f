"""The commands of `semievol jobs`. Only arguments and exit codes; nothing heavy is imported before a command runs."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from semievol.jobs.session import Session

EXIT_CODES = """

Exit codes: 0 done; 1 the job failed or was cancelled; 2 wrong usage, or refused by the service; 3 the service cannot
be reached or has a fault; 130 and 143 stopped by Ctrl-C and SIGTERM, while the job goes on.
"""

app = typer.Typer(
    help="Talk to a running service: submit jobs, watch them, get what they made." + EXIT_CODES, no_args_is_help=True
)
keys_app = typer.Typer(help="API keys (needs an admin's key)." + EXIT_CODES, no_args_is_help=True)
files_app = typer.Typer(help="Files that were uploaded or made by jobs." + EXIT_CODES, no_args_is_help=True)
app.add_typer(keys_app, name="keys")
app.add_typer(files_app, name="files")

Url = Annotated[
    str | None,
    typer.Option("--url", envvar="SEMIEVOL_URL", help="Address of the service.  [default: http://127.0.0.1:8000]"),
]
Key = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        envvar="SEMIEVOL_API_KEY",
        help="API key; on the service's own machine found in the data folder (SEMIEVOL_DATA).",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Id = Annotated[str, typer.Argument(metavar="JOB", help="The job's id, ftjob-...", show_default=False)]
Metadata = Annotated[
    list[str] | None, typer.Option("--metadata", metavar="NAME=VALUE", help="May repeat.", show_default=False)
]


@app.command(epilog=EXIT_CODES)
def submit(
    model: Annotated[str, typer.Option(help="Base model by its name in the service.", show_default=False)],
    labeled: Annotated[Path, typer.Option(help="Rows with answers.", show_default=False)],
    unlabeled: Annotated[Path, typer.Option(help="Rows without answers.", show_default=False)],
    validation: Annotated[Path | None, typer.Option(help="Labeled rows to choose the adapter by.")] = None,
    test: Annotated[Path | None, typer.Option(help="Labeled rows that only measure.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="Settings: a YAML or JSON file.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One setting; may repeat.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of everything random.")] = None,
    suffix: Annotated[str | None, typer.Option(help="Part of the new model's name.")] = None,
    metadata: Metadata = None,
    review: Annotated[bool, typer.Option("--review", help="Wait after selection for a person's review.")] = False,
    follow: Annotated[bool, typer.Option("--follow/--no-follow", help="Watch the job until it is over.")] = True,
    output: Annotated[
        Path | None, typer.Option(help="Folder for adapter and report when the job has succeeded.")
    ] = None,
    url: Url = None,
    api_key: Key = None,
    as_json: Json = False,
) -> None:
    """Upload files, start a job, follow it, and download what it made."""
    from semievol.jobs import submission
    from semievol.jobs.session import session

    if output is not None and not follow:
        raise typer.BadParameter("--output needs the job to be followed; use `semievol jobs download` later")
    with session(url, api_key, as_json) as talk:
        files = {"labeled": labeled, "unlabeled": unlabeled, "validation": validation, "test": test}
        order = submission.Order(
            model=model,
            files={role: path for role, path in files.items() if path is not None},
            recipe=submission.read_settings(recipe, settings or []),
            seed=seed,
            suffix=suffix,
            metadata=submission.read_pairs(metadata or []),
            review=review,
        )
        job = submission.submit(talk.client, order, talk.console, quiet=as_json)
        _say(talk, f"Job {job['id']}")
        if not follow:
            return talk.answer(job, lambda: _say(talk, f"To see it: semievol jobs follow {job['id']}"))
        _see_through(talk, job["id"], output)
    return None


@app.command("list", epilog=EXIT_CODES)
def list_jobs(
    limit: Annotated[int, typer.Option(min=1, help="Most jobs.")] = 20,
    metadata: Metadata = None,
    url: Url = None,
    api_key: Key = None,
    as_json: Json = False,
) -> None:
    """Jobs, the newest first."""
    from semievol.client import JOBS
    from semievol.jobs import show, submission
    from semievol.jobs.session import session

    with session(url, api_key, as_json) as talk:
        wanted = {f"metadata[{name}]": value for name, value in submission.read_pairs(metadata or []).items()}
        found = list(talk.client.pages(JOBS, limit, **wanted))
        talk.answer(found, lambda: show.jobs(talk.console, found))


@app.command("show", epilog=EXIT_CODES)
def show_job(job_id: Id, url: Url = None, api_key: Key = None, as_json: Json = False) -> None:
    """One job with its stages."""
    from semievol.client import JOBS
    from semievol.jobs import show
    from semievol.jobs.session import session

    with session(url, api_key, as_json) as talk:
        found = talk.client.get(f"{JOBS}/{job_id}")
        talk.answer(found, lambda: show.job(talk.console, found))


@app.command(epilog=EXIT_CODES)
def follow(job_id: Id, url: Url = None, api_key: Key = None, as_json: Json = False) -> None:
    """Watch a job until it is over."""
    from semievol.jobs.session import session

    with session(url, api_key, as_json) as talk:
        _see_through(talk, job_id, None)


@app.command(epilog=EXIT_CODES)
def cancel(job_id: Id, url: Url = None, api_key: Key = None, as_json: Json = False) -> None:
    """End a job for good."""
    _act(job_id, "cancel", url, api_key, as_json=as_json)


@app.command(epilog=EXIT_CODES)
def pause(job_id: Id, url: Url = None, api_key: Key = None, as_json: Json = False) -> None:
    """Stop a job at its next safe point; `resume` goes on from there."""
    _act(job_id, "pause", url, api_key, as_json=as_json)


@app.command(epilog=EXIT_CODES)
def resume(job_id: Id, url: Url = None, api_key: Key = None, as_json: Json = False) -> None:
    """Go on with a paused job."""
    _act(job_id, "resume", url, api_key, as_json=as_json)


@app.command("pseudo-labels", epilog=EXIT_CODES)
def pseudo_labels(
    job_id: Id,
    decision: Annotated[str | None, typer.Option(help="accept or reject.")] = None,
    reason: Annotated[str | None, typer.Option(help="Such as confident or not_confident.")] = None,
    answer: Annotated[str | None, typer.Option(help="Rows with this answer.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most rows shown; files hold all.")] = 20,
    output: Annotated[Path | None, typer.Option(help="Write all that fit to a .jsonl or .parquet file.")] = None,
    url: Url = None,
    api_key: Key = None,
    as_json: Json = False,
) -> None:
    """What the job decided about the unlabeled rows."""
    from semievol.client import JOBS
    from semievol.jobs import show
    from semievol.jobs.session import session

    path = f"{JOBS}/{job_id}/pseudo_labels"
    wanted = {"decision": decision, "reason": reason, "answer": answer}
    if output is not None and output.suffix not in {".jsonl", ".parquet"}:
        raise typer.BadParameter("the file's name must end in .jsonl or .parquet", param_hint="--output")
    if output is not None and output.suffix == ".parquet" and any(wanted.values()):
        raise typer.BadParameter("the Parquet file holds all rows; filter into .jsonl", param_hint="--output")
    with session(url, api_key, as_json) as talk:
        if output is not None:
            size = _export(talk, path, output, wanted)
            document = {"output": str(output), "bytes": size}
            return talk.answer(document, lambda: _say(talk, f"{output}: {show.size(size)}"))
        found = list(talk.client.pages(path, limit, **wanted))
        talk.answer(found, lambda: show.labels(talk.console, found))
    return None


@app.command(epilog=EXIT_CODES)
def report(
    job_id: Id,
    html: Annotated[Path | None, typer.Option(help="Write the report's page to this file, too.")] = None,
    url: Url = None,
    api_key: Key = None,
    as_json: Json = False,
) -> None:
    """How good base, plain fine-tuning and SemiEvol are."""
    from semievol.client import JOBS
    from semievol.jobs import show, submission
    from semievol.jobs.session import session

    with session(url, api_key, as_json) as talk:
        found = talk.client.get(f"{JOBS}/{job_id}/report")
        if html is not None:
            submission.save_report(talk.client, job_id, html, html=True)
        talk.answer(found, lambda: show.report(talk.console, found))
        if html is not None:
            _say(talk, f"Page: {html}")


@app.command(epilog=EXIT_CODES)
def download(
    job_id: Id,
    output: Annotated[Path, typer.Option(help="Folder for adapter and report.", show_default=False)],
    url: Url = None,
    api_key: Key = None,
    as_json: Json = False,
) -> None:
    """Get the adapter, checked and unpacked, and the report. Goes on where an earlier download stopped."""
    from semievol.jobs.session import session

    with session(url, api_key, as_json) as talk:
        paths = _bring(talk, job_id, output)
        talk.answer(paths, lambda: _tell_paths(talk, paths))


@app.command(epilog=EXIT_CODES)
def review(
    job_id: Id,
    complete: Annotated[bool, typer.Option("--complete", help="The review is done: go on with training.")] = False,
    url: Url = None,
    api_key: Key = None,
    as_json: Json = False,
) -> None:
    """How many pseudo-labels wait for a person, and the word that the person is done."""
    from semievol.client import JOBS
    from semievol.jobs.session import session

    with session(url, api_key, as_json) as talk:
        if complete:
            job = talk.client.post(f"{JOBS}/{job_id}/review/complete")
            return talk.answer(job, lambda: _say(talk, "The review is complete; the job goes on."))
        job = talk.client.get(f"{JOBS}/{job_id}")
        waits = bool((job["semievol"].get("review") or {}).get("waiting"))
        counts = _decisions(talk, job)
        talk.answer({"waiting": waits, "decisions": counts}, lambda: _tell_review(talk, job_id, counts, waits=waits))
    return None


# --- keys and files ---------------------------------------------------------------------------------------------------


@keys_app.command("list", epilog=EXIT_CODES)
def list_keys(
    limit: Annotated[int, typer.Option(min=1, help="Most keys.")] = 100,
    url: Url = None,
    api_key: Key = None,
    as_json: Json = False,
) -> None:
    """Keys, without their secrets."""
    from semievol.jobs import show
    from semievol.jobs.session import session

    with session(url, api_key, as_json) as talk:
        found = list(talk.client.pages("/api_keys", limit))
        talk.answer(found, lambda: show.keys(talk.console, found))


@keys_app.command("create", epilog=EXIT_CODES)
def create_key(
    name: Annotated[str, typer.Argument(help="What it is for.", show_default=False)],
    project: Annotated[str | None, typer.Option(help="Project that it sees.  [default: yours]")] = None,
    admin: Annotated[bool, typer.Option("--admin", help="May manage keys and webhooks.")] = False,
    url: Url = None,
    api_key: Key = None,
    as_json: Json = False,
) -> None:
    """Make a key; it is shown this once."""
    from semievol.jobs.session import session

    with session(url, api_key, as_json) as talk:
        body = {"name": name, "project": project, "admin": admin or None}
        made = talk.client.post("/api_keys", {key: value for key, value in body.items() if value is not None})
        talk.answer(made, lambda: print(made["key"]))


@keys_app.command("revoke", epilog=EXIT_CODES)
def revoke_key(
    key_id: Annotated[str, typer.Argument(metavar="KEY", help="The key's id, as in `keys list`.", show_default=False)],
    url: Url = None,
    api_key: Key = None,
    as_json: Json = False,
) -> None:
    """Make a key worthless at once."""
    from semievol.jobs.session import session

    with session(url, api_key, as_json) as talk:
        gone = talk.client.delete(f"/api_keys/{key_id}")
        talk.answer(gone, lambda: _say(talk, f"{key_id} is revoked."))


@files_app.command("list", epilog=EXIT_CODES)
def list_files(
    limit: Annotated[int, typer.Option(min=1, help="Most files.")] = 20,
    url: Url = None,
    api_key: Key = None,
    as_json: Json = False,
) -> None:
    """Files, the newest first."""
    from semievol.jobs import show
    from semievol.jobs.session import session

    with session(url, api_key, as_json) as talk:
        found = list(talk.client.pages("/files", limit))
        talk.answer(found, lambda: show.files(talk.console, found))


@files_app.command("delete", epilog=EXIT_CODES)
def delete_file(
    file_id: Annotated[str, typer.Argument(metavar="FILE", help="The file's id, file-...", show_default=False)],
    url: Url = None,
    api_key: Key = None,
    as_json: Json = False,
) -> None:
    """Delete a file; jobs that read it already go on."""
    from semievol.jobs.session import session

    with session(url, api_key, as_json) as talk:
        gone = talk.client.delete(f"/files/{file_id}")
        talk.answer(gone, lambda: _say(talk, f"{file_id} is deleted."))


# --- shared -----------------------------------------------------------------------------------------------------------


def _say(talk: "Session", text: str) -> None:
    from semievol.jobs import show

    if not talk.as_json:
        show.say(talk.console, text)


def _act(job_id: str, action: str, url: str | None, api_key: str | None, *, as_json: bool) -> None:
    from semievol.client import JOBS
    from semievol.jobs.session import session

    with session(url, api_key, as_json) as talk:
        job = talk.client.post(f"{JOBS}/{job_id}/{action}")
        talk.answer(job, lambda: _say(talk, f"{job_id} is {job['status']}."))


def _see_through(talk: "Session", job_id: str, output: Path | None) -> None:
    """Follow the job to its end, bring home what it made, and raise the exit code."""
    from semievol.jobs import following

    talk.following = job_id
    if talk.as_json:
        job = following.wait(talk.client, job_id)
    else:
        job = following.follow(talk.client, talk.key, job_id, talk.console)
    talk.following = None
    paths = _bring(talk, job_id, output) if output is not None and job["status"] == "succeeded" else {}
    talk.answer(job | ({"downloaded": paths} if paths else {}), _ending(talk, job, paths))
    if job["status"] != "succeeded":
        raise typer.Exit(1)


def _ending(talk: "Session", job: dict[str, Any], paths: dict[str, Any]) -> Callable[[], None]:
    from semievol.client import JOBS
    from semievol.jobs import show

    def end() -> None:
        if job["status"] != "succeeded":
            error = job["error"]
            _say(
                talk, f"The job has failed: {error['message']} ({error['code']})" if error else "The job was cancelled."
            )
            return
        show.report(talk.console, talk.client.get(f"{JOBS}/{job['id']}/report"))
        if paths:
            _tell_paths(talk, paths)
        else:
            _say(talk, f"Get the adapter: semievol jobs download {job['id']} --output DIR")

    return end


def _bring(talk: "Session", job_id: str, output: Path) -> dict[str, Any]:
    from semievol.jobs import submission

    return submission.fetch(talk.client, job_id, output, talk.console, quiet=talk.as_json)


def _tell_paths(talk: "Session", paths: dict[str, Any]) -> None:
    for name, path in paths.items():
        _say(talk, f"{name.replace('_', ' ').capitalize() + ':':<14}{path}")


def _export(talk: "Session", path: str, output: Path, wanted: dict[str, Any]) -> int:
    from semievol.jobs import transfer

    if output.suffix == ".parquet":
        return transfer.save(talk.client, path, output, None, format="parquet", **wanted)
    return transfer.save(talk.client, path, output, {"Accept": "application/x-ndjson"}, **wanted)


def _decisions(talk: "Session", job: dict[str, Any]) -> dict[str, int]:
    """Decisions of the newest selection."""
    for stage in reversed(job["semievol"].get("stages") or []):
        if counts := (stage.get("facts") or {}).get("decisions"):
            return dict(counts)
    return {}


def _tell_review(talk: "Session", job_id: str, counts: dict[str, int], *, waits: bool) -> None:
    if not waits:
        _say(talk, "Nothing waits for a review.")
        return
    accepted, rejected = counts.get("accept", 0), counts.get("reject", 0)
    _say(talk, f"{accepted + rejected:,} rows wait for a review: {accepted:,} accepted, {rejected:,} rejected by now.")
    _say(talk, f"To look at them: semievol jobs pseudo-labels {job_id} --decision accept")
    _say(talk, f"When done:       semievol jobs review {job_id} --complete")

"""What all commands of `semievol jobs` share: whom they talk to, how they print, and how they end."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import typer
from rich.console import Console

from semievol.client import Client, ServiceError
from semievol.errors import SemiEvolError
from semievol.signals import Terminated, exit_code_of, stoppable

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_DATA = "semievol-data"
LOCAL = {"127.0.0.1", "localhost", "::1"}
FAILED_EXIT = 1


class NoKey(SemiEvolError):
    """There is no key to talk with."""

    code = "no_key"
    exit_code = 2


@dataclass(slots=True)
class Session:
    """A command's connection and where it prints. With `as_json` it prints one JSON document and nothing else."""

    client: Client
    key: str
    as_json: bool
    console: Console
    following: str | None = None
    """The job that goes on if the command is stopped."""

    def answer(self, document: Any, show: Callable[[], None]) -> None:
        """Print the outcome: the document as JSON, or what `show` prints."""
        if self.as_json:
            print_json(document)
        else:
            show()


@contextmanager
def session(url: str | None, key: str | None, as_json: bool) -> Iterator[Session]:
    """A connection for the time of a command; errors become messages and exit codes."""
    address = url or DEFAULT_URL
    opened: Session | None = None
    try:
        with stoppable():
            found = find_key(address, key)
            with Client(address, found) as client:
                opened = Session(client, found, as_json, Console(highlight=False))
                yield opened
    except SemiEvolError as error:
        if as_json:
            told = dict(error.told) if isinstance(error, ServiceError) else {}
            print_json(
                {"error": {"code": error.code, "param": None, **told, "message": told.get("message", str(error))}}
            )
        typer.echo(f"semievol: {error}", err=True)
        raise typer.Exit(error.exit_code) from None
    except BrokenPipeError:  # `… | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None
    except (KeyboardInterrupt, Terminated) as stop:
        job = opened.following if opened else None
        typer.echo(
            f"Stopped. The job goes on; to see it again: semievol jobs follow {job}" if job else "Stopped.", err=True
        )
        raise typer.Exit(exit_code_of(stop)) from None


def find_key(url: str, given: str | None) -> str:
    """The key to use: given, or that of the service's data folder on this machine. Raises NoKey."""
    if given:
        return given.strip()
    path = Path(os.environ.get("SEMIEVOL_DATA") or DEFAULT_DATA) / "admin.key"
    hint = "give one with --api-key or SEMIEVOL_API_KEY"
    if urlsplit(url).hostname not in LOCAL:
        raise NoKey(f"there is no API key for {url}; {hint}")
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it holds no key"
        raise NoKey(f"there is no API key: {path} cannot be read ({reason}); {hint}") from None


def print_json(document: Any) -> None:
    """One JSON document on standard output."""
    print(json.dumps(document, indent=2, ensure_ascii=False))

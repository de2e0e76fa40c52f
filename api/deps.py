"""What routes ask for: the caller, a transaction, and the parts that `main` built."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Protocol

from fastapi import Depends, Request
from sqlalchemy.orm import Session

from api.services.label_summary import Summaries
from api.services.trials import Trials
from store.database import Database
from store.objects import ObjectStore
from store.settings import Settings


class Bell(Protocol):
    """Wakes workers up after a commit. Never fails and never blocks for long: a sweep rings again."""

    def ring(self, kinds: set[str]) -> None:
        """There are ready units of these kinds (`cpu`, `gpu`)."""
        ...


@dataclass(frozen=True, slots=True)
class Services:
    """Built once in `main`, held in `app.state.services`."""

    settings: Settings
    database: Database
    objects: ObjectStore
    bell: Bell
    summaries: Summaries
    trials: Trials


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: a valid key and the project that it sees. `session`: SHA-256 of its secret, for those signed in."""

    key_id: str
    project_id: str
    admin: bool
    session: str | None = None


async def services(request: Request) -> Services:
    """The parts that `main` built. Asynchronous only because FastAPI calls others in a thread, which takes longer."""
    found: Services = request.app.state.services
    return found


ServicesDep = Annotated[Services, Depends(services)]


def session(request: Request, parts: ServicesDep) -> Iterator[Session]:
    """One transaction a request, committed before the answer is sent; GET and HEAD never wait for writers."""
    reads = request.method in {"GET", "HEAD"}
    with parts.database.read() if reads else parts.database.write() as opened:
        yield opened


SessionDep = Annotated[Session, Depends(session, scope="function")]

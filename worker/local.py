"""Workers without a broker: `python -m worker.local` asks the database for ready units. What `semievol serve` runs.

Ends in order on SIGTERM and SIGINT: runners stop at their next safe point and their units are ready again.
"""

import logging
import signal
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType

from sqlalchemy.exc import OperationalError

from store import webhooks
from store.database import Database, DatabaseError
from store.objects import open_objects
from store.settings import Settings
from worker import registry, sweep
from worker.forkserver import HEAVY, ForkServer
from worker.supervisor import Supervisor, runner_environment

log = logging.getLogger(__name__)
KINDS = ("gpu", "cpu")


class Poller:
    """`settings.slots` threads that each do one unit at a time, and one that sweeps."""

    def __init__(self, settings: Settings, kinds: Sequence[str] = KINDS) -> None:
        self.settings, self.kinds = settings, kinds
        self.database = Database(settings.database_url)
        self.objects = open_objects(settings)
        self.stopping = threading.Event()
        self.ready = threading.Event()

    def run(self) -> None:
        """Until `stopping` is set."""
        self.database.check()
        self.objects.check()
        with self.database.write() as session:
            registry.end_leftovers(session, self.settings.data)
        runners = ForkServer(runner_environment(self.settings), HEAVY if "gpu" in self.kinds else ())
        threads = [
            threading.Thread(target=self._work, args=(slot, runners), name=f"slot-{slot}")
            for slot in range(self.settings.slots)
        ]
        threads.append(threading.Thread(target=self._sweep, name="sweep"))
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            for thread in threads:
                thread.join(timeout=0.2)
                if not thread.is_alive():
                    self.stopping.set()  # one that died takes the others along
        runners.close()
        self.database.close()

    def _work(self, slot: int, runners: ForkServer) -> None:
        identity = registry.worker_id(slot)
        with self.database.write() as session:
            registry.register(session, identity, self.kinds)
        supervisor = Supervisor(
            self.settings,
            self.database,
            self.objects,
            runners=runners,
            ring=lambda kinds: self.ready.set(),
            kinds=self.kinds,
            stopping=self.stopping.is_set,
            slot=slot,
        )
        while not self.stopping.is_set():
            try:
                busy = supervisor.work_once()
            except OperationalError as error:
                log.warning("waiting for the database: %s", error.orig)
                busy = False
            if not busy:
                self.ready.wait(self.settings.poll_seconds)
                self.ready.clear()
        with self.database.write() as session:
            registry.leave(session, identity)

    def _sweep(self) -> None:
        def seen() -> None:
            for slot in range(self.settings.slots):
                registry.beat(self.database, registry.worker_id(slot), self.kinds)

        with webhooks.open_client() as client:
            looking = sweep.Sweep(self.settings, self.database, self.objects, lambda kinds: self.ready.set(), client)
            sweep.run(looking, self.stopping, seen)


def main() -> int:
    """Poll until told to stop."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for chatty in ("alembic", "httpx"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    poller = Poller(Settings())

    def stop(number: int, frame: FrameType | None) -> None:
        poller.stopping.set()
        poller.ready.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    for _ in range(60):
        try:
            poller.run()
            break
        except DatabaseError as error:
            if poller.stopping.is_set():
                break
            log.warning("%s", error)
            time.sleep(1)
    else:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

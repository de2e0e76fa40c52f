"""The doorbell: tells workers that there are ready units. The database row is the job; a lost ring only costs time.

Publishing may block or fail (Redis away, half-open, full), so a thread of its own does it and no request waits for it.
A sweep rings again for units that nobody took.
"""

import logging
import queue
import threading
from typing import Any

from api.deps import Bell
from store.settings import Settings
from store.states import QUEUES, TASK

SOCKET_SECONDS = 1
WAITING_RINGS = 64
_log = logging.getLogger("semievol.doorbell")


class SilentBell:
    """Where there is no broker, workers poll the database."""

    def ring(self, kinds: set[str]) -> None:
        """See `Bell`."""


class CeleryBell:
    """Publishes a task without arguments to the queue of each kind, from a daemon thread."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._rings: queue.Queue[str] = queue.Queue(WAITING_RINGS)
        threading.Thread(target=self._publish, name="doorbell", daemon=True).start()

    def ring(self, kinds: set[str]) -> None:
        """See `Bell`. A full queue means that enough rings are on their way, or that the broker is away."""
        for kind in sorted(kinds):
            try:
                self._rings.put_nowait(kind)
            except queue.Full:
                _log.warning("a ring for %s workers was dropped; the sweep will ring", kind)

    def _publish(self) -> None:
        while True:
            kind = self._rings.get()
            try:
                self._app.send_task(TASK, queue=QUEUES[kind], ignore_result=True, retry=False)
            except Exception as error:  # noqa: BLE001  -- the thread's outermost frame; drivers raise many types
                _log.warning("the broker did not take a ring for %s workers: %s", kind, type(error).__name__)


def build_bell(settings: Settings) -> Bell:
    """The bell that the settings ask for."""
    if not settings.broker_url:
        return SilentBell()
    from celery import Celery  # noqa: PLC0415  -- slow to import, and only needed here

    app = Celery("semievol", broker=settings.broker_url, set_as_current=False)
    # Without socket timeouts a half-open Redis would hold the thread for good.
    app.conf.broker_transport_options = {"socket_timeout": SOCKET_SECONDS, "socket_connect_timeout": SOCKET_SECONDS}
    app.conf.task_ignore_result = True
    return CeleryBell(app)

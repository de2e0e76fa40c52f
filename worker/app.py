"""Workers under Celery: a message is a doorbell and nothing else; the database says what there is to do.

Start: `celery -A worker.app worker --concurrency 1 --prefetch-multiplier 1 -Q semievol-gpu,semievol-cpu`, one worker
for each GPU. Messages are acknowledged early: the row decides, so a lost one costs a sweep and a repeated one nothing.
"""

import ctypes
import logging
import multiprocessing
import os
import signal
import sys
import threading
from functools import cache
from typing import Any

import redis
from celery import Celery, signals
from kombu import Exchange, Queue  # type: ignore[attr-defined]
from kombu.exceptions import OperationalError as BrokerError

from store import webhooks
from store.database import Database, DatabaseError
from store.objects import open_objects
from store.settings import Settings
from store.states import QUEUES, TASK
from worker import registry, sweep
from worker.forkserver import HEAVY, ForkServer
from worker.supervisor import Supervisor, runner_environment

log = logging.getLogger(__name__)
PR_SET_PDEATHSIG = 1
STOPPING = multiprocessing.get_context("fork").Event()
"""Set in the main process, seen in its pool child: a warm shutdown shall not wait for hours of work."""


def _queue(name: str) -> Any:
    """A queue that only messages of its own name reach; left to Celery, all would share one exchange."""
    return Queue(name, Exchange(name, type="direct"), routing_key=name)  # type: ignore[no-untyped-call]


def _celery(settings: Settings) -> Celery:
    made = Celery("semievol", broker=settings.broker_url)
    made.conf.update(
        task_ignore_result=True,
        task_acks_late=False,
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        broker_transport_options={"socket_timeout": 5, "socket_connect_timeout": 5},
        task_queues=[_queue(name) for name in QUEUES.values()],
        task_default_queue=QUEUES["cpu"],
    )
    return made


app = _celery(Settings())


@cache
def _parts() -> tuple[Settings, Database]:
    """Of this process; made after the fork."""
    settings = Settings()
    return settings, Database(settings.database_url)


def ring(kinds: set[str]) -> None:
    """Tell the queues of these kinds. With the broker away nothing is lost: a sweep rings again."""
    for kind in kinds:
        try:
            app.send_task(TASK, queue=QUEUES[kind], retry=False)
        except (BrokerError, OSError) as error:
            log.warning("the doorbell of %s is not heard: %s", kind, error)


@app.task(name=TASK)  # type: ignore[untyped-decorator]
def work() -> None:
    """Do ready units of the queues that this worker serves until there are none."""
    while not STOPPING.is_set() and _supervisor().work_once():
        pass


@cache
def _supervisor() -> Supervisor:
    """Of this pool child."""
    settings, database = _parts()
    kinds = _kinds()
    runners = ForkServer(runner_environment(settings), HEAVY if "gpu" in kinds else ())
    return Supervisor(
        settings, database, open_objects(settings), runners=runners, ring=ring, kinds=kinds, stopping=STOPPING.is_set
    )


def _kinds() -> tuple[str, ...]:
    served = set(app.amqp.queues.consume_from)
    return tuple(kind for kind, queue in QUEUES.items() if queue in served)


@signals.celeryd_init.connect  # type: ignore[untyped-decorator]
def _check(**_: Any) -> None:
    """Refuse to start over a database of another version or a broker that throws messages away."""
    settings, database = _parts()
    try:
        database.check()
        open_objects(settings).check()
        check_broker(settings.broker_url)
    except (DatabaseError, OSError, BrokerUnfit) as error:
        sys.exit(f"semievol worker: {error}")
    finally:
        database.close()  # no connection may be shared over the fork


class BrokerUnfit(Exception):
    """The broker may lose messages; the message says what to set."""


def check_broker(url: str) -> None:
    """Raises BrokerUnfit. A broker that is away is waited for, so it is no error here."""
    try:
        with redis.Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2) as client:
            policy = client.config_get("maxmemory-policy").get("maxmemory-policy")
    except redis.RedisError as error:
        log.warning("the broker's settings cannot be read yet: %s", error)
        return
    if policy not in (None, "noeviction"):
        raise BrokerUnfit(f"Redis evicts its queue under maxmemory-policy {policy}; set noeviction")


@signals.worker_process_init.connect  # type: ignore[untyped-decorator]
def _child_starts(**_: Any) -> None:
    """A pool child, which is the worker: it does not outlive its main process, and its runner does not outlive it.

    It gives signs of life from a thread, as it may wait for a message as long as it likes.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    settings, database = _parts()
    with database.write() as session:
        registry.end_leftovers(session, settings.data)
        registry.register(session, registry.worker_id(), _kinds())
    signs = (database, registry.worker_id(), _kinds(), settings.sweep_seconds)
    threading.Thread(target=registry.beat_forever, args=signs, daemon=True, name="beat").start()


@signals.worker_ready.connect  # type: ignore[untyped-decorator]
def _main_is_ready(**_: Any) -> None:
    """Sweep beside the pool, and end what an earlier worker of this machine left."""
    settings = Settings()
    database = Database(settings.database_url)
    database.check()
    with database.write() as session:
        registry.end_leftovers(session, settings.data)
    stopping = threading.Event()
    signals.worker_shutting_down.connect(lambda **_: stopping.set(), weak=False)

    looking = sweep.Sweep(settings, database, open_objects(settings), ring, webhooks.open_client())
    threading.Thread(target=sweep.run, args=(looking, stopping), daemon=True, name="sweep").start()


@signals.worker_shutting_down.connect  # type: ignore[untyped-decorator]
def _main_ends(**_: Any) -> None:
    STOPPING.set()


@signals.worker_shutdown.connect  # type: ignore[untyped-decorator]
def _pool_has_ended(**_: Any) -> None:
    settings, database = _parts()
    with database.write() as session:
        registry.end_leftovers(session, settings.data)


@signals.setup_logging.connect  # type: ignore[untyped-decorator]
def _log(**_: Any) -> None:
    logging.basicConfig(
        level=os.environ.get("LOGLEVEL", "INFO"), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )

"""What all tests share: hypothesis without deadlines, the same examples in every run, and Ctrl-C that is heard."""

import os
import signal

from hypothesis import HealthCheck, settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# A shell that runs the tests in the background has them ignore SIGINT, and their children with them.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The machine may be shared, so time is no criterion; derandomised, a failure is the same in every run.
settings.register_profile(
    "default", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("default")

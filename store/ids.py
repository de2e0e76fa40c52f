"""Ids as the OpenAI API writes them."""

import secrets


def new_id(prefix: str) -> str:
    """`file-…`, `upload_…`, `part_…`, `ftjob-…`: 24 random hexadecimal digits after the prefix."""
    return f"{prefix}{secrets.token_hex(12)}"


def event_id(job_id: str, number: int) -> str:
    """The public id of a job's event; sorts as the events do."""
    return f"ftevent-{job_id.removeprefix('ftjob-')}-{number:08d}"


def event_number(job_id: str, public_id: str) -> int | None:
    """The number in an event's public id; None if it is not an id of this job's events."""
    prefix = f"ftevent-{job_id.removeprefix('ftjob-')}-"
    number = public_id.removeprefix(prefix)
    return int(number) if public_id.startswith(prefix) and number.isascii() and number.isdigit() else None

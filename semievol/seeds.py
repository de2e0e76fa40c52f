"""Seeds as functions of what they are for, never of the clock, a batch or a worker."""

import hashlib


def seed_of(*parts: str | int) -> int:
    """A 63-bit seed from its parts, for example (job seed, row id, collaborator, round)."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1

"""The demo: two generated tasks and a tiny base model pre-trained for them (no part of the library)."""

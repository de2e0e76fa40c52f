"""What a job will take, before it starts: tokens, seconds and GPU memory. Pure, and without an engine."""

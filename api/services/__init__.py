"""What routes do, as functions of a session and values."""

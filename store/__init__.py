"""What the API and the workers share: rows, states, files and objects. No FastAPI, no Celery, no torch."""

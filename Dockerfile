# syntax=docker/dockerfile:1
# Three images from one file; docs/operating.md says how they are run:
#   docker build --target api .          HTTP, migrations, the client `semievol jobs`; no torch
#   docker build --target worker-cpu .   the work, with torch for CPUs
#   docker build --target worker-gpu .   the work, with torch for CUDA, vLLM, and bitsandbytes for models in 4 bits
# Only the build stages have compilers, and nothing of them but /opt/venv reaches an image.

ARG PYTHON_VERSION=3.11


# --- build ------------------------------------------------------------------------------------------------------------

FROM python:${PYTHON_VERSION}-slim AS build
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1
# Every package of constraints.txt has a wheel for x86-64; elsewhere one may have to be compiled.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends build-essential \
    && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /source
COPY constraints.txt pyproject.toml ./

FROM build AS wheel
COPY README.md LICENSE NOTICE ./
COPY api api
COPY migrations migrations
COPY semievol semievol
COPY store store
COPY worker worker
RUN pip wheel --no-deps --wheel-dir /wheel .

# pyproject.toml has one list of dependencies, torch among them. The API needs these only; tests/test_deployment.py
# imports it with nothing else in reach.
FROM build AS build-api
RUN pip install --constraint constraints.txt \
    alembic \
    boto3 \
    celery \
    fastapi \
    httpx \
    jinja2 \
    prometheus-client \
    'psycopg[binary]' \
    pydantic \
    pydantic-settings \
    python-multipart \
    pyyaml \
    redis \
    rich \
    sqlalchemy \
    starlette \
    tokenizers \
    typer \
    uvicorn
COPY --from=wheel /wheel /wheel
RUN pip install --no-deps /wheel/*.whl

# The list of pyproject.toml as a file of its own, so that a change of our code does not install torch again.
FROM build AS build-worker
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
    > requirements.txt

# Torch alone comes from PyTorch's index, which has the CPU build; everything else from the registry.
FROM build-worker AS build-worker-cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --constraint constraints.txt --no-deps --index-url "$TORCH_INDEX" torch
RUN pip install --constraint constraints.txt --requirement requirements.txt
COPY --from=wheel /wheel /wheel
RUN pip install --no-deps /wheel/*.whl

# `--build-arg ENGINE=` leaves vLLM out.
FROM build-worker AS build-worker-gpu
ARG ENGINE=vllm
RUN pip install --constraint constraints.txt --requirement requirements.txt bitsandbytes ${ENGINE}
COPY --from=wheel /wheel /wheel
RUN pip install --no-deps /wheel/*.whl


# --- images -----------------------------------------------------------------------------------------------------------

FROM python:${PYTHON_VERSION}-slim AS runtime
LABEL org.opencontainers.image.title="SemiEvol" \
      org.opencontainers.image.description="Semi-supervised fine-tuning as a service" \
      org.opencontainers.image.licenses="Apache-2.0"
# The folders are made here so that new volumes over them belong to the user.
RUN groupadd --gid 10001 semievol \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin semievol \
    && install --directory --owner=10001 --group=10001 --mode=0700 /data /objects /models
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/models \
    SEMIEVOL_DATA=/data \
    SEMIEVOL_OBJECTS=/objects
VOLUME ["/data", "/objects"]
WORKDIR /data
STOPSIGNAL SIGTERM
USER 10001:10001
ENTRYPOINT ["semievol"]

FROM runtime AS api
COPY --from=build-api /opt/venv /opt/venv
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
CMD ["serve", "--no-worker", "--host", "0.0.0.0"]

# Asks the database whether this container's worker wrote there of late. `celery inspect ping` asks through the broker,
# and a worker that has stopped taking messages can still answer it.
FROM runtime AS worker
COPY <<'PYTHON' /opt/worker_seen.py
"""Exits 0 if a worker of this machine was seen within three minutes."""

import socket
import sys

from sqlalchemy import func, select

from store.database import Database, now
from store.models import Worker
from store.settings import Settings

mine = Worker.id.startswith(f"{socket.gethostname()}:", autoescape=True)
with Database(Settings().database_url).read() as session:
    age = session.scalar(select(now() - func.max(Worker.seen_at)).where(mine))
sys.exit(age is None or age > 180)
PYTHON

VOLUME ["/models"]
HEALTHCHECK --interval=60s --timeout=20s --start-period=120s --retries=3 CMD ["python", "/opt/worker_seen.py"]
CMD ["worker"]

FROM worker AS worker-cpu
COPY --from=build-worker-cpu /opt/venv /opt/venv

FROM worker AS worker-gpu
COPY --from=build-worker-gpu /opt/venv /opt/venv
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

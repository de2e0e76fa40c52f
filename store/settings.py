"""Every setting of the service, from the environment (`SEMIEVOL_…`). No default secrets."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

GIB = 1024**3


class BaseModelEntry(BaseModel):
    """A base model that jobs may name: a folder, or a hub repository at a revision."""

    source: str
    revision: str | None = None


class Settings(BaseSettings):
    """One class for API, worker and command line. Field descriptions are the documentation."""

    model_config = SettingsConfigDict(env_prefix="SEMIEVOL_", env_nested_delimiter="__", extra="forbid")

    data: Path = Field(Path("semievol-data"), description="Folder of SQLite file, objects, caches and admin.key.")
    database_url: str = Field("", description="SQLAlchemy URL; empty: SQLite in the data folder.")
    objects: str = Field("", description="Folder or s3://bucket/prefix for all bulk data; empty: in the data folder.")
    s3_endpoint: str | None = Field(None, description="Address of an S3-compatible server; empty: Amazon's.")
    s3_presigned: bool = Field(False, description="Answer content requests with a redirect to a presigned URL.")
    broker_url: str = Field("", description="Redis URL of the Celery broker; empty: workers poll the database.")
    models: dict[str, BaseModelEntry] = Field(
        default_factory=dict,
        description='Allowed base models by public name: {"qwen3-8b": {"source": "Qwen/Qwen3-8B", "revision": "…"}}.',
    )
    embedder: str | None = Field(
        None, description="Retrieval model of jobs that name none: a hub id or folder; empty: the recipe's default."
    )
    retrievers: list[str] = Field(
        default_factory=list, description="Further sentence-transformers models that a recipe may name."
    )
    max_file_bytes: int = Field(8 * GIB, gt=0, description="Largest file, in one request or as an upload in parts.")
    max_part_bytes: int = Field(64 * 1024**2, gt=0, description="Largest part of an upload.")
    max_body_bytes: int = Field(1024**2, gt=0, description="Largest JSON body.")
    max_project_bytes: int = Field(100 * GIB, gt=0, description="Bytes of all files of a project, unless it says else.")
    max_active_jobs: int = Field(100, gt=0, description="Unfinished jobs of a project, unless it says else.")
    requests_per_minute: int = Field(0, ge=0, description="Requests of one key in a minute; 0: any number.")
    lease_seconds: float = Field(60, gt=0, description="How long a worker owns a unit without renewing it.")
    grace_seconds: float = Field(8, ge=0, description="Between SIGTERM and SIGKILL of a runner.")
    poll_seconds: float = Field(0.5, gt=0, description="How often an idle worker looks for ready units.")
    sweep_seconds: float = Field(15, gt=0, description="How often lost leases and unheard doorbells are looked for.")
    max_attempts: int = Field(5, gt=0, description="Attempts of a unit that infrastructure made fail.")
    slots: int = Field(1, gt=0, description="Units that a polling worker does at once; one per GPU.")
    checkpoint_seconds: float = Field(60, gt=0, description="Between two checkpoints of a training.")
    cache_bytes: int = Field(50 * GIB, ge=0, description="Room for a worker's copies of remote objects.")
    threads: int = Field(0, ge=0, description="CPU threads of a runner; 0: as many as torch likes.")
    webhook_private_addresses: bool = Field(False, description="Whether webhooks may go to private addresses.")
    log_format: Literal["json", "text"] = "json"
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000

    @field_validator("data", mode="after")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @model_validator(mode="after")
    def _defaults_in_the_data_folder(self) -> Self:
        if not self.database_url:
            self.database_url = f"sqlite:///{self.data / 'semievol.db'}"
        if not self.objects:
            self.objects = str(self.data / "objects")
        return self

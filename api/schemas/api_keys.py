"""API keys. The secret is in one answer only: that to its creation."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from api.schemas.common import Body


class KeyCreate(Body):
    """A new key. Without a project it is of the caller's."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=100)]
    project: Annotated[str, StringConstraints(pattern="^[A-Za-z0-9_.-]{1,64}$")] | None = None
    admin: bool = False
    expires_at: Annotated[int, Field(ge=0, le=2**40, description="Unix seconds; never if left out.")] | None = None

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"name": "laptop", "project": "default", "admin": False}]}
    )


class KeyView(BaseModel):
    """A key without its secret."""

    id: str
    object: Literal["api_key"] = "api_key"
    name: str
    project: str
    admin: bool
    created_at: int
    expires_at: int | None
    revoked_at: int | None
    last_used_at: int | None


class NewKeyView(KeyView):
    """A key and, this once, its secret."""

    key: str

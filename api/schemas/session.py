"""Sessions of browsers."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from api.schemas.common import Body


class SessionCreate(Body):
    """Signing in."""

    api_key: Annotated[str, Field(max_length=200, description="A valid key; the session opens what it opens.")]

    model_config = ConfigDict(json_schema_extra={"examples": [{"api_key": "sk-0123456789abcdef-secret"}]})


class SessionKey(BaseModel):
    """The key that is asked with."""

    id: str
    name: str
    admin: bool


class SessionView(BaseModel):
    """Who asks. `expires_at`: when the session ends; null for those who send their key."""

    object: Literal["session"] = "session"
    key: SessionKey
    project: str
    expires_at: int | None


class SessionEnded(BaseModel):
    """The session is over."""

    object: Literal["session"] = "session"
    deleted: Literal[True] = True

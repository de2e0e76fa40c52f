"""Models as the OpenAI API writes them."""

from typing import Literal

from pydantic import BaseModel


class ModelView(BaseModel):
    """A base model that jobs may name, or an adapter that a job made."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class ModelList(BaseModel):
    """All models that the caller may use."""

    object: Literal["list"] = "list"
    data: list[ModelView]

"""Errors as the OpenAI API writes them: `{"error": {"message", "type", "param", "code"}}`.

A message says what is wrong, where, and what would be right.

ApiError
├── BadRequest          400
├── Unauthorized        401
├── Forbidden           403
├── NotFound            404
├── Conflict            409, never worth a retry
├── TooLarge            413
├── Unprocessable       422
├── TooMany             429
└── Unavailable         503
"""

from typing import ClassVar


class ApiError(Exception):
    """Root: an answer other than success."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"

    def __init__(self, message: str, *, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message, self.code, self.param = message, code, param

    def headers(self) -> dict[str, str]:
        """Headers that go with it."""
        return {}

    def body(self) -> dict[str, dict[str, str | None]]:
        """The JSON body, all four keys always there."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


class BadRequest(ApiError):
    """The request makes no sense as it is."""

    status, type = 400, "invalid_request_error"


class Unauthorized(ApiError):
    """No key, or none that is valid."""

    status, type = 401, "authentication_error"

    def headers(self) -> dict[str, str]:
        """See `ApiError`."""
        return {"WWW-Authenticate": "Bearer"}


class Forbidden(ApiError):
    """The key is valid and may not do this."""

    status, type = 403, "permission_error"


class NotFound(ApiError):
    """There is no such thing, or it is another project's."""

    status, type = 404, "invalid_request_error"


class Conflict(ApiError):
    """The thing is not in a state that allows this."""

    status, type = 409, "invalid_request_error"

    def headers(self) -> dict[str, str]:
        """See `ApiError`."""
        return {"x-should-retry": "false"}


class TooLarge(ApiError):
    """More bytes than allowed."""

    status, type = 413, "invalid_request_error"


class Unprocessable(ApiError):
    """Well-formed, and not to be done."""

    status, type = 422, "invalid_request_error"


class TooMany(ApiError):
    """Over a limit of rate or quota."""

    status, type = 429, "rate_limit_error"


class Unavailable(ApiError):
    """Something that the service needs is away."""

    status, type = 503, "server_error"

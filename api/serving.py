"""uvicorn, told of the streams: it waits for answers to end before it does, and a stream ends with its job only."""

import socket

import uvicorn
from fastapi import FastAPI

from api.services.event_stream import Hub

GRACE_SECONDS = 3
"""How long answers may take to end, those that nobody reads among them."""


class Server(uvicorn.Server):
    """Serves one application; when it is to end, event streams end first."""

    def __init__(self, app: FastAPI) -> None:
        config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=GRACE_SECONDS)
        super().__init__(config)
        self.hub: Hub = app.state.hub

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn."""
        self.hub.close()
        await super().shutdown(sockets)

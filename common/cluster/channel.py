"""Messages between processes: one JSON object per line over a socket, never waiting."""

from __future__ import annotations

import json
import socket
from typing import Any

_MOST = 1 << 20  # bytes of a message: who sends more is not one of us


class Channel:
    """One end of a connection.

    Attributes:
        closed: whether the other end is gone; what it sent before can still be received.
    """

    def __init__(self, connection: socket.socket):
        """Takes over a connected socket."""
        connection.setblocking(False)
        self._socket = connection
        self._out = self._in = b""
        self.closed = False

    def send(self, **message: Any) -> None:
        """Sends a message, or as much of it as there is room for; `flush` sends the rest."""
        self._out += json.dumps(message).encode() + b"\n"
        self.flush()

    def flush(self) -> None:
        """Sends what has not been sent yet, as far as there is room."""
        try:
            while self._out and not self.closed:
                self._out = self._out[self._socket.send(self._out) :]
        except BlockingIOError:
            pass
        except OSError:
            self.closed = True

    def receive(self) -> list[dict[str, Any]]:
        """Returns the messages that have come whole."""
        try:
            while data := self._socket.recv(1 << 16):
                self._in += data
                if len(self._in) > _MOST:
                    break
            self.closed = True
        except BlockingIOError:
            pass
        except OSError:
            self.closed = True
        *lines, self._in = self._in.split(b"\n")
        try:
            messages = [json.loads(line) for line in lines]
        except ValueError:
            messages = [None]
        if not all(isinstance(message, dict) for message in messages):
            self.closed = True  # not one of us
            return []
        return messages

    def close(self) -> None:
        """Ends the connection."""
        self.closed = True
        self._socket.close()

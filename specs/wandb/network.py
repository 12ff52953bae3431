"""A proxy that lets nothing through: it notes who wants to leave the machine."""

from __future__ import annotations

import socket
import threading

#: Programs that speak HTTP, W&B's service among them, take the addresses of proxies from these.
PROXY_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")
REFUSAL = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class RefusingProxy:
    """Listens on this machine only; `requests` holds the first line of each request."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._refuse, daemon=True).start()

    def _refuse(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:  # closed
                return
            with connection:
                connection.settimeout(1)
                try:
                    request = connection.recv(1024)
                    connection.sendall(REFUSAL)
                except OSError:
                    request = b""
                self.requests.append(request.partition(b"\r\n")[0].decode(errors="replace"))

    def close(self) -> None:
        """Listen no longer."""
        self._socket.close()

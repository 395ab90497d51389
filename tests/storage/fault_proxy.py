"""An HTTP proxy before the tests' S3 server that misbehaves on request."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

CONDITIONS = ("if-match", "if-none-match")
REFUSALS = {"throttle": 503, "refuse": 409, "deny": 403, "lack": 501}
Fault = str
"""pass; throttle, refuse, deny, lack (see REFUSALS); reset (nothing done, no answer); deaf (done, no answer); cut (half
the body arrives); blind (conditional headers dropped)."""


class FaultProxy:
    """Forwards requests to the S3 server; `fault(method, path)` chooses what goes wrong, and `done(method, path)` is called
    when the server has carried a request out and its answer has not been passed on."""

    def __init__(self, upstream: str) -> None:
        self.fault: Callable[[str, str], Fault] = lambda method, path: "pass"
        self.done: Callable[[str, str], None] = lambda method, path: None
        self.seen: list[tuple[str, str, Fault]] = []
        proxy, target = self, urlsplit(upstream)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                pass

            def _forward(self) -> None:
                if self.headers.get("Expect", "").lower() == "100-continue":
                    self.close_connection = True
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                fault = proxy.fault(self.command, self.path)
                proxy.seen.append((self.command, self.path, fault))
                if fault in REFUSALS:
                    self._answer(REFUSALS[fault], {}, b"")
                    return
                if fault == "reset":
                    self.close_connection = True
                    self.connection.close()
                    return
                headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
                if fault == "blind":
                    headers = {
                        name: value for name, value in headers.items() if name.lower() not in ("if-match", "if-none-match")
                    }
                connection = http.client.HTTPConnection(target.hostname or "", target.port, timeout=60)
                connection.request(self.command, self.path, body, headers)
                answer = connection.getresponse()
                content = answer.read()
                connection.close()
                proxy.done(self.command, self.path)
                if fault == "deaf":
                    self.close_connection = True
                    self.connection.close()
                    return
                self._answer(answer.status, dict(answer.getheaders()), content, cut=fault == "cut")

            def _answer(self, status: int, headers: dict[str, str], content: bytes, cut: bool = False) -> None:
                self.send_response(status)
                skipped = ("content-length", "transfer-encoding", "connection", "date", "server")
                for name, value in headers.items():
                    if name.lower() not in skipped:
                        self.send_header(name, value)
                length = next((value for name, value in headers.items() if name.lower() == "content-length"), len(content))
                self.send_header("Content-Length", str(length))
                self.end_headers()
                if self.command == "HEAD":
                    return
                self.wfile.write(content[: len(content) // 2] if cut else content)
                if cut:
                    self.wfile.flush()
                    self.close_connection = True
                    self.connection.close()

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _forward  # noqa: N815

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def first(self, method: str, ending: str, fault: Fault, times: int = 1) -> None:
        """Let the fault befall the first `times` requests of this method whose path (with query) contains the ending."""
        left = [times]

        def chosen(seen_method: str, path: str) -> Fault:
            if left[0] and seen_method == method and ending in path:
                left[0] -= 1
                return fault
            return "pass"

        self.fault = chosen

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()

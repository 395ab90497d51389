"""moto's S3 server with the one promise of S3 that it lacks: `python tests/s3_server.py PORT`, on 127.0.0.1.

moto looks whether a condition holds (If-None-Match, If-Match) and then stores the object, in two steps and several threads.
Under load two of several writers are then told, rarely, that they made the same new object, which S3 rules out and commits
rely on. Here requests that change something are answered one after another, each as soon as it has arrived whole.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable
from threading import Lock
from typing import TYPE_CHECKING

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import run_simple

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment


def in_turn(application: WSGIApplication) -> WSGIApplication:
    """Return the application with PUT, POST and DELETE answered one at a time, each after its body has arrived."""
    turn = Lock()

    def answer(environment: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environment["REQUEST_METHOD"] not in ("PUT", "POST", "DELETE"):
            return application(environment, start_response)
        if environment.get("CONTENT_LENGTH"):
            body = environment["wsgi.input"].read(int(environment["CONTENT_LENGTH"]))
            environment["wsgi.input"] = io.BytesIO(body)
        with turn:
            return application(environment, start_response)

    return answer


def main() -> None:
    """Serve until the process is terminated."""
    application = in_turn(DomainDispatcherApplication(create_backend_app))
    run_simple("127.0.0.1", int(sys.argv[1]), application, threaded=True, request_handler=MotoRequestHandler)


if __name__ == "__main__":
    main()

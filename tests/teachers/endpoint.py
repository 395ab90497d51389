"""A small HTTP server that speaks the OpenAI protocol, well or badly, on a free port of 127.0.0.1, in a thread."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

KEY = "sk-the-key-of-the-test"
MODEL = "tiny"


@dataclass
class Endpoint:
    """What the server was asked, and how it answers.

    Attributes:
        answer: from (prompt, how often that prompt was asked before) to what is sent back.
        bodies, headers: of every request, in order of arrival.
        in_flight, most_in_flight: requests being answered, now and at most so far.
    """

    answer: Callable[[str, int], Any]
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0
    models: Any = field(default_factory=lambda: {"data": [{"id": MODEL}]})

    def asked(self, prompt: str) -> int:
        """Return how often a prompt was asked."""
        return sum(prompt_of(body) == prompt for body in self.bodies)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.headers.append(dict(request.headers))
        body = await request.json()
        prompt = prompt_of(body)
        before = self.asked(prompt)
        self.bodies.append(body)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            answer = self.answer(prompt, before)
            if isinstance(answer, Awaitable):
                answer = await answer
            return await answer(request) if callable(answer) else web.json_response(answer)
        finally:
            self.in_flight -= 1

    async def list_models(self, request: web.Request) -> web.StreamResponse:
        self.headers.append(dict(request.headers))
        return await self.models(request) if callable(self.models) else web.json_response(self.models)


def prompt_of(body: dict[str, Any]) -> str:
    return str(body["messages"][0]["content"] if "messages" in body else body["prompt"])


def said(text: str | None, finish_reason: str | None = "stop", tokens: tuple[int, int] = (7, 3), **message: Any) -> Any:
    """Return an answer of both kinds, chat and completions."""
    return {
        "choices": [{"message": {"content": text, **message}, "text": text, "finish_reason": finish_reason}],
        "usage": {"prompt_tokens": tokens[0], "completion_tokens": tokens[1]},
    }


def status(http: int, message: str = "", headers: dict[str, str] | None = None, **error: str) -> Any:
    async def send(_: web.Request) -> web.StreamResponse:
        body = json.dumps({"error": {"message": message, **error}}) if message else ""
        return web.Response(status=http, text=body, headers=headers, content_type="application/json")

    return send


def raw(content: bytes) -> Any:
    async def send(_: web.Request) -> web.StreamResponse:
        return web.Response(body=content)

    return send


def half(reset: bool) -> Any:
    """Send the first half of an answer; then close the connection, or reset it."""
    content = json.dumps(said("a half of an answer")).encode()

    async def send(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(len(content))})
        await response.prepare(request)
        await response.write(content[: len(content) // 2])
        transport = request.transport
        assert transport is not None
        if reset:
            linger = struct.pack("ii", 1, 0)
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            transport.abort()
        else:
            transport.close()
        return response

    return send


async def nothing(_: web.Request) -> web.StreamResponse:
    """Never answer."""
    await asyncio.sleep(3600)
    raise AssertionError("nobody waits so long")


@contextmanager
def serving(answer: Callable[[str, int], Any]) -> Iterator[Endpoint]:
    """Serve until the end of the block."""
    endpoint = Endpoint(answer)
    ready, loop = threading.Event(), asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", endpoint.handle)
        app.router.add_post("/v1/completions", endpoint.handle)
        app.router.add_get("/v1/models", endpoint.list_models)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        assert site._server is not None
        endpoint.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}/v1"
        ready.set()
        await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    try:
        assert ready.wait(30), "the endpoint did not start"
        yield endpoint
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()

"""A small chat server that answers, or fails, by script: the faults that real servers have, on demand."""

import json
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Script = Callable[[int, str], "Reply"]
"""(how often this very question was asked before, the last message) -> what the server does."""


@dataclass(frozen=True)
class Reply:
    """One answer."""

    status: int = 200
    text: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    sleep: float = 0.0
    hang_up: bool = False
    dribble: float = 0.0
    """Seconds between bytes."""


def good(first_preferred: float, **changes: Any) -> Reply:
    """An answer whose log-probabilities give this preference for the first answer."""
    return answered(math.log(0.8 * first_preferred), math.log(0.8 * (1 - first_preferred)), **changes)


def answered(first: float, second: float, **changes: Any) -> Reply:
    """An answer with these log-probabilities of the two names."""
    top = [
        {"token": "m", "logprob": first},
        {"token": "M", "logprob": second},
        {"token": "the", "logprob": math.log(0.1)},
    ]
    choice = {
        "index": 0,
        "finish_reason": "length",
        "message": {"role": "assistant", "content": "m"},
        "logprobs": {"content": [{"token": "m", "logprob": top[0]["logprob"], "top_logprobs": top}]},
    }
    usage = {"prompt_tokens": 100, "completion_tokens": 1, "total_tokens": 101}
    answer = {"id": "x", "object": "chat.completion", "created": 0, "model": "scripted-1", "usage": usage}
    return Reply(text=json.dumps({**answer, "choices": [{**choice, **changes}]}))


@dataclass
class Served:
    """What happened at the server."""

    url: str
    asked: Counter[str] = field(default_factory=Counter)
    """Requests by question."""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    """With their queries."""
    largest_at_once: int = 0


@contextmanager
def serve(script: Script) -> Iterator[Served]:
    """A server on loopback for the time of the block."""
    lock = threading.Lock()
    at_once = 0

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            nonlocal at_once
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            question = body["messages"][-1]["content"]
            with lock:
                at_once += 1
                served.largest_at_once = max(served.largest_at_once, at_once)
                before = served.asked[question]
                served.asked[question] += 1
                served.bodies.append(body)
                served.paths.append(self.path)
            try:
                self._reply(script(before, question))
            finally:
                with lock:
                    at_once -= 1

        def _reply(self, reply: Reply) -> None:
            time.sleep(reply.sleep)
            if reply.hang_up:
                self.close_connection = True
                return
            content = reply.text.encode()
            self.send_response(reply.status)
            for name, value in {"Content-Type": "application/json", **reply.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            for place in range(0, len(content), 1 if reply.dribble else max(1, len(content))):
                self.wfile.write(content[place : place + 1] if reply.dribble else content)
                time.sleep(reply.dribble)

        def log_message(self, *_: Any) -> None:
            """Silent."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            """A client that is gone is no news."""

    server = Server(("127.0.0.1", 0), Handler)
    served = Served(f"http://127.0.0.1:{server.server_address[1]}/v1")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()

"""`gpo report --watch`: the page of a run that is at work, served on loopback and made anew when the run has news.

Only 127.0.0.1 is listened on, and only requests that name a loopback host are answered, so that a page of the web that
resolves its own name to 127.0.0.1 reads nothing. There are two addresses: the page, and the newest version there is.
A page carries its own version, taken before anything else is read: what is written meanwhile is news to it.
"""

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from gpo.errors import UserError
from gpo.journal import RunDirectory
from gpo.printable import printable
from gpo.report.page import render
from gpo.report.selection import select_prompts
from gpo.report.story import tell

LOOPBACK = "127.0.0.1"
NAMES = (LOOPBACK, "localhost")
QUIET_SECONDS = 10.0
"""Between two versions of the page, or ten times what making one takes, whichever is longer."""
AGAIN_SECONDS = 5
"""After which a browser asks again for a page that could not be made."""


class LivePage:
    """The newest page; threads of the server share it."""

    def __init__(self, directory: RunDirectory, prompts: int) -> None:
        self._directory = directory
        self._prompts = prompts
        self._lock = threading.Lock()
        self._state = ""
        self._html = ""
        self._next = 0.0

    def version(self) -> str:
        """Changes when the page shown is no longer the newest."""
        with self._lock:
            return self._state if time.monotonic() < self._next else self._on_disk()

    def html(self) -> str:
        """The page, made anew where the run has news; raises UserError for files that cannot be read."""
        with self._lock:
            state = self._on_disk()
            if state != self._state and time.monotonic() >= self._next:
                started = time.monotonic()
                selection = select_prompts(self._directory, self._prompts)
                self._html = render(tell(self._directory), selection, live=state)
                self._state = state
                self._next = time.monotonic() + max(QUIET_SECONDS, 10 * (time.monotonic() - started))
            return self._html

    def _on_disk(self) -> str:
        """What stands in the files that grow: their sizes and times."""
        names = ("run.json", "journal.jsonl", "metrics.jsonl")
        return " ".join(_stamp(self._directory.root / name) for name in names)


def _stamp(file: Path) -> str:
    try:
        found = file.stat()
    except FileNotFoundError:
        return "none"
    return f"{found.st_mtime_ns}:{found.st_size}"


class _Handler(BaseHTTPRequestHandler):
    page: LivePage

    def do_GET(self) -> None:
        """`/` and `/version`; all else is not there."""
        host = (self.headers.get("Host") or "").rpartition(":")[0] or self.headers.get("Host")
        if host not in NAMES:
            self._answer(421, "text/plain", f"expected a request to {LOOPBACK}")
        elif self.path == "/version":
            self._answer(200, "text/plain", self.page.version())
        elif self.path == "/":
            self._answer_page()
        else:
            self._answer(404, "text/plain", "only / is here")

    def _answer_page(self) -> None:
        try:
            page = self.page.html()
        except (UserError, OSError) as error:
            # A file may be gone for a moment (a run that starts afresh), or be mended soon.
            self._answer(503, "text/plain", f"no page at this moment: {printable(str(error))}", again=True)
        else:
            self._answer(200, "text/html", page)

    def _answer(self, status: int, kind: str, text: str, again: bool = False) -> None:
        """`again`: the browser asks once more by itself."""
        body = text.encode("utf-8")
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("X-Frame-Options", "DENY")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        if again:
            self.send_header("Refresh", str(AGAIN_SECONDS))
        try:
            self.end_headers()
            self.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the reader closed or loaded the page anew

    def log_message(self, format: str, *args: object) -> None:
        """Requests are no news."""


def make_server(directory: RunDirectory, port: int, prompts: int) -> ThreadingHTTPServer:
    """A server of the run's page on loopback, not yet serving; port 0: a free one. Raises UserError when taken."""
    handler = type("Handler", (_Handler,), {"page": LivePage(directory, prompts)})
    try:
        return ThreadingHTTPServer((LOOPBACK, port), handler)
    except OSError as error:
        raise UserError(
            f"--port {port}: cannot be listened on ({error.strerror}); choose another, or 0 for a free one"
        ) from None

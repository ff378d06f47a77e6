"""The daemon's HTTP surface: ``/livez``, ``/readyz``, ``/metrics``, ``/status``; POST ``/query`` and ``/compact``."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

import orjson
import structlog
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from schemas.config import HttpConfig
from schemas.errors import ConfigError, DependencyError, FacetstreamError, NotFoundError, UsageError

log = structlog.get_logger(__name__)

_MAX_BODY: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Routes:
    """What the server answers with.

    Attributes:
        live, ready: (good, document).
        status: a document.
        posts: path -> takes the request's document, returns the reply's.
    """

    live: Callable[[], tuple[bool, dict[str, Any]]]
    ready: Callable[[], tuple[bool, dict[str, Any]]]
    status: Callable[[], dict[str, Any]]
    posts: Mapping[str, Callable[[dict[str, Any]], Any]]


class HttpServer:
    """Serves on threads of its own until closed.

    Raises:
        ConfigError: if the address cannot be taken.
    """

    def __init__(self, config: HttpConfig, registry: CollectorRegistry, routes: Routes) -> None:
        class Handler(_Handler):
            pass

        Handler.registry, Handler.routes = registry, routes
        try:
            self._server = ThreadingHTTPServer((config.host, config.port), Handler)
        except OSError as error:
            raise ConfigError(
                f"cannot listen on http.host {config.host} port {config.port}: {error}; "
                "set http.port (0 picks a free one)"
            ) from error
        self._server.daemon_threads = True
        # The interval bounds how long closing takes.
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="http", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Where it listens."""
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}"

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    registry: CollectorRegistry
    routes: Routes
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:  # http.server's name
        path = self.path.partition("?")[0]
        if path == "/metrics":
            self._send(200, generate_latest(self.registry), CONTENT_TYPE_LATEST)
        elif path in {"/livez", "/readyz"}:
            good, document = self.routes.live() if path == "/livez" else self.routes.ready()
            self._json(200 if good else 503, document)
        elif path == "/status":
            self._json(200, self.routes.status())
        else:
            self._json(404, {"error": f"no such path {path}"})

    def do_POST(self) -> None:  # http.server's name
        answer = self.routes.posts.get(self.path.partition("?")[0])
        try:
            document = self._document()
            if answer is None:
                raise NotFoundError(f"no such path {self.path}")
            self._json(200, answer(document))
        except (UsageError, ValueError) as error:
            self._json(400, {"error": str(error)})
        except NotFoundError as error:
            self._json(404, {"error": str(error)})
        except DependencyError as error:
            self._json(503, {"error": str(error)})
        except FacetstreamError as error:
            self._json(409, {"error": str(error)})
        except Exception as error:  # a defect: whoever asked learns of it, and the daemon goes on
            log.exception("http_request_failed", path=self.path)
            self._json(500, {"error": f"{type(error).__name__}: {error}"})

    def _document(self) -> dict[str, Any]:
        """The request's JSON object."""
        try:
            length = int(self.headers.get("Content-Length") or 0)
            if not 0 <= length <= _MAX_BODY:
                raise UsageError(f"a body of {length} bytes; at most {_MAX_BODY} are taken")
        except (UsageError, ValueError):
            self.close_connection = True  # what is left of the body would pass for the next request
            raise
        document = orjson.loads(self.rfile.read(length) or b"{}")
        if not isinstance(document, dict):
            raise UsageError("the body must be a JSON object")
        return document

    def _json(self, status: int, document: Any) -> None:
        self._send(status, orjson.dumps(document), "application/json")

    def _send(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # http.server's name
        log.debug("http", request=format % args)

"""Stands in for GitHub's REST API: answers what it was told, and remembers what it was asked to write."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

REPOSITORY = "owner/dllm-kernels"


@dataclass
class Api:
    """`answers`: of a path below the repository, without its query. Unknown paths are 404, as on GitHub."""

    answers: dict[str, Any] = field(default_factory=dict)
    written: list[tuple[str, str, Any]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def __enter__(self) -> Api:
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.removeprefix(f"/repos/{REPOSITORY}/")
                api.asked.append(path)
                self._answer(api.answers.get(path.partition("?")[0]))

            def do_POST(self) -> None:
                path = self.path.removeprefix(f"/repos/{REPOSITORY}/")
                fields = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                api.written.append((self.command, path, fields))
                self._answer({"id": len(api.written)})

            do_PATCH = do_POST  # noqa: N815 - as the server looks for it

            def _answer(self, content: Any) -> None:
                self.send_response(404 if content is None else 200)
                self.end_headers()
                self.wfile.write(json.dumps(content).encode())

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

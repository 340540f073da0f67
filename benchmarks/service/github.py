"""GitHub's REST API, as far as the service needs it, with the token and the repository of a workflow's environment."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

TIMEOUT_S = 30


class GitHub:
    """One repository, seen with one token."""

    def __init__(self, api: str, repository: str, token: str) -> None:
        self.repository = repository
        self._url = f"{api.rstrip('/')}/repos/{repository}"
        self._token = token

    @classmethod
    def of_environment(cls) -> GitHub:
        """As a workflow's step has it.

        Raises:
            ValueError: a variable is not set.
        """
        names = ("GITHUB_API_URL", "GITHUB_REPOSITORY", "GITHUB_TOKEN")
        missing = [name for name in names if not os.environ.get(name)]
        if missing:
            raise ValueError(f"expected {', '.join(missing)} in the environment, as in a step of a workflow")
        return cls(*(os.environ[name] for name in names))

    def get(self, path: str, **query: str | int) -> Any:
        """What the API answers.

        Raises:
            RuntimeError: it cannot be reached, or refuses.
        """
        return self._ask("GET", f"{path}?{urllib.parse.urlencode(query)}" if query else path)

    def post(self, path: str, **fields: Any) -> Any:
        """Create."""
        return self._ask("POST", path, fields)

    def patch(self, path: str, **fields: Any) -> Any:
        """Change."""
        return self._ask("PATCH", path, fields)

    def _ask(self, method: str, path: str, fields: dict[str, Any] | None = None) -> Any:
        request = urllib.request.Request(
            f"{self._url}/{path}",
            method=method,
            data=None if fields is None else json.dumps(fields).encode(),
            headers={
                "Accept": "application/vnd.github+json",
                "Authorization": f"Bearer {self._token}",
                "Content-Type": "application/json",
                "User-Agent": self.repository,
                "X-GitHub-Api-Version": "2022-11-28",
            },
        )
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"GitHub refused {method} {path}: {error.code} {error.reason}") from error
        except (OSError, ValueError) as error:
            raise RuntimeError(f"GitHub did not answer {method} {path}: {error}") from error

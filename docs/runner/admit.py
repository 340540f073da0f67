"""The GPU runner's own door: jobs of main, and of pull-request runs that a reviewer of the environment `gpu` approved.

A pull request can change its workflow, and take the approval out of it; what runs here it cannot change. Exit code 0
lets the job in; admit.sh takes any other for a no. Standard library alone: the host needs Python 3.8 and no more. A
private repository needs a token that may read `actions`, in /etc/gpu-runner/token.
"""

import contextlib
import http.client
import json
import os
import pathlib
import sys
import urllib.request

MAIN = "refs/heads/main"
ENVIRONMENT = "gpu"
TOKEN = pathlib.Path("/etc/gpu-runner/token")


def refusal(event, ref, approvals):
    """Why such a job may not run, or None. `approvals` gives what reviewers said of its run."""
    if event in ("push", "schedule", "workflow_dispatch"):
        return None if ref == MAIN else f"{event} on {ref}: expected {MAIN}"
    if event != "pull_request":
        return f"{event}: expected a pull request, or {MAIN}"
    for one in approvals():
        if one["state"] == "approved" and ENVIRONMENT in [of["name"] for of in one["environments"]]:
            return None
    return f"no reviewer of the environment {ENVIRONMENT} has approved this run"


def approvals_of_this_run():
    url = "{GITHUB_API_URL}/repos/{GITHUB_REPOSITORY}/actions/runs/{GITHUB_RUN_ID}/approvals".format(**os.environ)
    headers = {"Accept": "application/vnd.github+json", "X-GitHub-Api-Version": "2022-11-28"}
    with contextlib.suppress(FileNotFoundError, PermissionError):  # none for this user, as of a public repository
        headers["Authorization"] = "Bearer " + TOKEN.read_text().strip()
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as answer:
        return json.load(answer)


def main():
    try:
        why = refusal(os.environ["GITHUB_EVENT_NAME"], os.environ["GITHUB_REF"], approvals_of_this_run)
    except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException) as error:
        why = f"GitHub could not be asked about its approval: {error!r}"
    if why is None:
        print("This job may run here.")
        return 0
    print(f"This job may not run here: {why}")
    return 1


if __name__ == "__main__":
    sys.exit(main())

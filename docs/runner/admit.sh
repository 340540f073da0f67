#!/bin/bash
# ACTIONS_RUNNER_HOOK_JOB_STARTED names this file: GitHub's runner calls it before the first step of every job.
# Of the job's environment admit.py gets what GitHub sets itself, and no more. Whatever but a yes comes of it, the runner's
# worker ends with the job that it has: steps with `if: always()` would run after a hook that fails.
# Python in the background: a trap waits for what is in front, and the runner kills a hook 10 s after it asked it to end.
trap 'builtin kill -KILL "$PPID"' TERM INT HUP
/usr/bin/env -i PATH=/usr/bin:/bin GITHUB_API_URL="$GITHUB_API_URL" GITHUB_REPOSITORY="$GITHUB_REPOSITORY" \
    GITHUB_EVENT_NAME="$GITHUB_EVENT_NAME" GITHUB_REF="$GITHUB_REF" GITHUB_RUN_ID="$GITHUB_RUN_ID" \
    /usr/bin/python3 -I "$(dirname "$0")/admit.py" &
if wait "$!"; then
    exit 0
fi
builtin kill -KILL "$PPID"
exit 1

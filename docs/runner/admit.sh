#!/bin/bash
# ACTIONS_RUNNER_HOOK_JOB_STARTED names this file: GitHub's runner calls it before the first step of every job.
# Of the job's environment it takes over what GitHub sets itself, and no more. `exec`, so that admit.py's parent is the
# runner's worker.
exec /usr/bin/env -i PATH=/usr/bin:/bin GITHUB_API_URL="$GITHUB_API_URL" GITHUB_REPOSITORY="$GITHUB_REPOSITORY" \
    GITHUB_EVENT_NAME="$GITHUB_EVENT_NAME" GITHUB_REF="$GITHUB_REF" GITHUB_RUN_ID="$GITHUB_RUN_ID" \
    /usr/bin/python3 -I "$(dirname "$0")/admit.py"

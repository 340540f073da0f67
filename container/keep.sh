#!/bin/sh
# keep.sh FILE FOLDER: copies a file that a container wrote, once the container has ended. In its place may lie a link to
# anything that this user may read, and an upload would follow it.
set -eu
most=67108864 # bytes of a record, as in benchmarks/service/artefacts.py
if [ -L "$1" ] || [ ! -f "$1" ]; then
    echo "error: $1: expected a plain file" >&2
    exit 2
fi
if [ "$(wc -c <"$1")" -gt "$most" ]; then
    echo "error: $1: expected at most $most bytes" >&2
    exit 2
fi
mkdir -p "$2"
cp "$1" "$2/"

#!/bin/sh
# keep.sh FILE FOLDER: copies a file that a container wrote. In its place may lie a link to anything that this user may
# read, and an upload would follow it. The copy is looked at too: a container that outlives its client could still change
# what lies there.
set -eu
most=67108864 # bytes of a record, as in benchmarks/service/artefacts.py

refuse() {
    echo "error: $1: expected a plain file of at most $most bytes" >&2
    exit 2
}

is_bearable() {
    [ ! -L "$1" ] && [ -f "$1" ] && [ "$(wc -c <"$1")" -le "$most" ]
}

is_bearable "$1" || refuse "$1"
mkdir -p "$2"
kept=$2/$(basename "$1")
cp -P "$1" "$kept"
is_bearable "$kept" || {
    rm -rf "$kept"
    refuse "$1"
}

#!/bin/sh
# What a container of the image does: one command, in this shell's place, so that signals and exit codes are its own.
set -eu

usage() {
    cat <<'END'
docker run [--gpus all] [--user "$(id -u):$(id -g)"] --volume "$PWD/results:/results" IMAGE [COMMAND]

  (none)              check, measure, judge, add to the history, publish the dashboard: what `make bench` does;
                      options alone go to it, as in: IMAGE --quick
  compare BASE HEAD   two commits side by side, and the verdict
  gate RECORD         judge a record
  history ...         what the history says
  asv ...             asv, on the history in /results/asv
  serve [--port N]    the dashboard, over HTTP (default port 8000 of the container)
  doctor              is this machine fit to measure on, and what to mend
  test [ARGS]         the tests, or those that pytest's arguments name
  help                this text
  anything else       a command of `python -m benchmarks`: run, verify, report, dashboard, codegen, selftest, ...

Paths are those in /results. Commits are those the image was built with; one that it lacks is named by its hash, with
--volume REPOSITORY:/repository:ro. Exit codes: 0 pass, 1 regression, 2 usage or environment error, 3 inconclusive.
END
}

fail() {
    echo "error: $1" >&2
    exit 2
}

case ${1-} in
"") command=bench ;;
-h | --help | help)
    usage
    exit 0
    ;;
-*) command=bench ;;
*)
    command=$1
    shift
    ;;
esac

# asv's environments and pages are this container's, its results everybody's.
mkdir -p /tmp/asv 2>/dev/null || fail "/tmp: expected to be writable; of a read-only container make it so with --tmpfs /tmp"
if mkdir -p "$DLLM_KERNELS_OUTPUT/asv" 2>/dev/null && [ -w "$DLLM_KERNELS_OUTPUT/asv" ] && [ -w "$DLLM_KERNELS_OUTPUT" ]; then
    # Containers share no /tmp: those that share results take turns on a GPU by locks beside them.
    export DLLM_KERNELS_LOCKS="$DLLM_KERNELS_OUTPUT/.locks"
    [ -d "$DLLM_KERNELS_LOCKS" ] || mkdir -m 1777 "$DLLM_KERNELS_LOCKS" 2>/dev/null || [ -d "$DLLM_KERNELS_LOCKS" ]
else
    case $command in
    doctor | gate | report | serve | test | verify) ;;
    *) fail "$DLLM_KERNELS_OUTPUT: user $(id -u) cannot write to it; make the folder, mount it (--volume \"\$PWD/results:$DLLM_KERNELS_OUTPUT\"), and run as its owner (--user \"\$(id -u):\$(id -g)\")" ;;
    esac
fi
ln -sfn "$DLLM_KERNELS_OUTPUT/asv" /tmp/asv/results

if [ -e /repository ]; then
    GIT_ALTERNATE_OBJECT_DIRECTORIES=$(git -C /repository rev-parse --path-format=absolute --git-path objects 2>/dev/null) ||
        fail "/repository: expected a git repository, and not a worktree of one"
    export GIT_ALTERNATE_OBJECT_DIRECTORIES
fi

case $command in
asv | bench | compare | doctor | run | selftest | test)
    [ -e /dev/nvidiactl ] || [ -e /dev/dxg ] ||
        echo "No GPU in this container (--gpus all gives it the host's): this is the CPU path." >&2
    ;;
esac

case $command in
asv)
    # asv would ask what machine this is, and keep results by the container's name.
    python -c "from benchmarks.history import machine; machine.register(machine.this_machine())" || exit 2
    exec python -m asv "$@"
    ;;
serve)
    port=8000
    if [ $# -gt 0 ]; then
        [ "$1" = --port ] && [ $# -eq 2 ] || fail "serve: expected nothing or --port N; got $*"
        port=$2
    fi
    [ -e "$DLLM_KERNELS_OUTPUT/dashboard/index.html" ] ||
        fail "$DLLM_KERNELS_OUTPUT/dashboard: no dashboard yet; the image without a command makes one, from a record \`dashboard\` does"
    echo "The dashboard is on port $port of this container; --publish $port:$port brings it to http://localhost:$port/" >&2
    exec python -m http.server --bind 0.0.0.0 --directory "$DLLM_KERNELS_OUTPUT/dashboard" "$port"
    ;;
test) exec python -m pytest -p no:cacheprovider "$@" ;;
esac
cd "$DLLM_KERNELS_OUTPUT"
exec python -m benchmarks "$command" "$@"

#!/bin/sh
# Builds the image of what a checkout is at: container/build.sh CHECKOUT NAME [arguments of `docker build` ...]
#
# From a repository of its own, which a worktree and a checkout alike become: it holds every commit, branch and tag, and
# neither edits nor anything that git ignores, nor what a checkout's configuration may hold.
set -eu

cd "$1"
name=$2
shift 2
revision=$(git rev-parse HEAD)
[ -z "$(git status --porcelain)" ] ||
    echo "The image holds commit $revision; what is not committed is left out." >&2

context=$(mktemp -d)
trap 'rm -rf "$context"' EXIT
trap 'exit 130' INT TERM
# --local takes all objects, also of commits that were fetched under no name.
git clone --quiet --local --no-checkout --origin checkout "$PWD" "$context"
git -C "$context" checkout --quiet --detach "$revision"
git -C "$context" fetch --quiet --update-shallow checkout '+refs/heads/*:refs/heads/*' '+refs/remotes/*:refs/remotes/*'
git -C "$context" remote remove checkout

docker build --tag "$name" \
    --build-arg REVISION="$revision" \
    --build-arg VERSION="$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' dllm_kernels/__init__.py)" \
    --build-arg CREATED="$(git log -1 --format=%cI)" \
    "$@" "$context"

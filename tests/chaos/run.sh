#!/usr/bin/env bash
# `make chaos`: breaks real processes, containers and emulators by seed, and prints what came of it. ARGS go to the program
# (--help lists them).
set -euo pipefail
# shellcheck source=infra/dev/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../infra/dev/lib.sh"
cd "$ROOT"
infra/dev/toolchain.sh
infra/dev/docker.sh
docker image inspect quayside/agent-python >/dev/null 2>&1 || infra/agents/build.sh
found=$(infra/dev/emulators.sh)
while IFS='=' read -r name value; do export "$name=$value"; done <<<"$found"
if [ "$(id -u)" -ne 0 ]; then
  note "not root: the engine itself is not stopped, and no disk runs full (sudo make chaos does all of it)"
fi
say "Building"
exec cargo test --locked --quiet --test chaos -- "$@"

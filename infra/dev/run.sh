#!/usr/bin/env bash
# `make run`: from a clone to a running Quayside. Arguments go to `quayside up`.
set -euo pipefail
# shellcheck source=infra/dev/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
started=$EPOCHREALTIME

"$ROOT/infra/dev/toolchain.sh"
"$ROOT/infra/dev/docker.sh"
use_this_engine
"$ROOT/infra/dev/oci.sh" --if-possible

# The image waits for the network, the compiler for the processor: side by side they cost little more than one.
in_background agent-image "$ROOT/infra/agents/build.sh"
cd "$ROOT"
if [ ! -d "${CARGO_TARGET_DIR:-target}/debug" ]; then
  say "Building Quayside (a first build compiles every dependency: a few minutes)"
else
  say "Building Quayside"
fi
cargo build --bin quayside || fail "the build failed: the lines above say why"
join agent-image || fail "the agent image could not be built: the lines above say why"
say "Quayside and the agent image are ready ($(since "$started"))"

exec "${CARGO_TARGET_DIR:-target}/debug/quayside" up "$@"

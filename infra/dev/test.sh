#!/usr/bin/env bash
# `make test`: sets everything up and runs every check, in order; the first failure ends it with a line that names it.
set -euo pipefail
# shellcheck source=infra/dev/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"
begun=$EPOCHREALTIME
TARGET=${CARGO_TARGET_DIR:-$ROOT/target}
summary=()

# stage TITLE COMMAND...
stage() {
  local title=$1 started=$EPOCHREALTIME
  shift
  say "$title"
  "$@" </dev/null || fail "make test stopped at '$title' after $(since "$started")"
  summary+=("$(printf '%10s  %s' "$(since "$started")" "$title")")
}

browser_tests() {
  local found=("$ROOT"/tests/browser/*.test.*)
  [ -e "${found[0]}" ] || { note "tests/browser has no tests"; return 1; }
  (cd "$ROOT/tests/browser" && node --test --test-reporter=spec)
}

# export_lines COMMAND...: the NAME=value lines that it prints.
export_lines() {
  local found name value
  found=$("$@")
  while IFS='=' read -r name value; do export "$name=$value"; done <<<"$found"
}

# The long form of chaos and the program of the benchmark are no part of `cargo test`, and so none of --all-targets.
lints() {
  cargo clippy --locked --workspace --all-targets -- -D warnings &&
    cargo clippy --locked --test chaos --bin claims --features bench -- -D warnings
}

rules_tests() { (cd "$ROOT/tests/rules" && node --test --test-reporter=spec); }

stage 'Toolchain' infra/dev/toolchain.sh
stage 'Docker engine' infra/dev/docker.sh
use_this_engine
stage 'Containers without an engine' infra/dev/oci.sh --with-gvisor
# These wait for the network and are needed late; the compiler uses the time.
in_background agent-image infra/agents/build.sh
in_background browser infra/dev/browser.sh
in_background schemathesis infra/dev/schemathesis.sh
in_background firebase infra/dev/firebase.sh

stage "Google's emulators" infra/dev/emulators.sh
export_lines infra/dev/emulators.sh

stage 'cargo fmt' cargo fmt --all --check
stage 'cargo clippy' lints
stage 'Agent image (built meanwhile)' join agent-image
stage 'The agent python' python3 -B -W error -m unittest discover -s infra/agents/python
stage 'The arithmetic of the benchmark' python3 -B -W error -m unittest discover -s tests/bench
stage 'cargo build' cargo build --locked --bin quayside
QUAYSIDE_BIN=$(realpath "$TARGET")/debug/quayside
export QUAYSIDE_BIN
# What takes both cores for minutes runs by itself: beside it, every wait of the others would be long.
stage 'cargo test' cargo test --locked --workspace -- --skip sim:: --skip model:: --skip chaos:: --skip hostile::weight::
stage 'The simulator and the model' cargo test --locked --test quayside -- sim:: model::
stage 'Hostile programs without an engine' env QUAYSIDE_TEST_RUNNER=oci cargo test --locked --test quayside -- hostile:: --skip hostile::weight:: --skip hostile::gvisor::
stage 'CPU between containers, and beside them' cargo test --locked --test quayside -- hostile::weight:: --test-threads=1
stage 'Chaos, a short round for each backend' cargo test --locked --test quayside -- chaos::

stage 'Browser and its packages (installed meanwhile)' join browser
CHROMIUM=$(find_browser)
export CHROMIUM
use_node
stage "Firebase's packages (installed meanwhile)" join firebase
export_lines infra/dev/firebase.sh
stage 'Security rules of Firestore' rules_tests
stage 'The page in Chromium' browser_tests

stage 'schemathesis (installed meanwhile)' join schemathesis
ST=$(infra/dev/schemathesis.sh)
export ST
stage 'The API against its OpenAPI document' tests/api/schemathesis.sh

stage 'The images and docker-compose.yml' tests/images/check.sh

if have cargo-deny; then
  # Advisories need a database from the network and change without us; they are checked apart.
  stage 'cargo deny' cargo deny check bans licenses sources
else
  note "cargo deny was not run: cargo-deny is not installed (cargo install --locked cargo-deny)"
fi

say "All checks passed ($(since "$begun"))"
printf '%s\n' "${summary[@]}" >&2

#!/usr/bin/env bash
# Measures Quayside against its peers: see README.md beside this file. `make bench` calls it.
# It prepares what the measurement needs, then hands over to bench.py; arguments go there (--help lists them).
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=infra/dev/lib.sh
. "$HERE/../../infra/dev/lib.sh"

IMAGE=quayside/agent-python
VENV=$CACHE/bench-venv
MODULES=$CACHE/bench-node

need_debian_packages() {
  local missing=()
  have python3 || missing+=(python3)
  have wrk || missing+=(wrk)
  have redis-server || missing+=(redis-server)
  have bwrap || missing+=(bubblewrap)
  { have node && have npm; } || missing+=(nodejs npm)
  [ "${#missing[@]}" -gt 0 ] || return 0
  can_apt || fail "the benchmark needs ${missing[*]}: install them (Debian and Ubuntu: sudo apt-get install ${missing[*]}), then run this again"
  apt_install "${missing[@]}"
  # The package starts a Redis for the whole machine; nobody asked for that one, the measurement has its own.
  if [[ " ${missing[*]} " == *" redis-server "* && -d /run/systemd/system ]]; then
    as_root systemctl --quiet disable --now redis-server || true
  fi
}

need_node_modules() {
  local peer=$HERE/peers/b_bullmq
  cmp -s "$peer/package-lock.json" "$MODULES/installed.json" && return 0
  say "Installing peer B's packages from npm into $MODULES"
  rm -rf "$MODULES"
  mkdir -p "$MODULES"
  cp "$peer/package.json" "$peer/package-lock.json" "$MODULES"
  # Without the packages' own scripts: what they would compile (dockerode over ssh) is not used here.
  npm ci --prefix "$MODULES" --ignore-scripts --no-audit --no-fund --loglevel=error >&2 ||
    fail "npm could not install $peer/package-lock.json: the lines above say why"
  # Last, so that an interrupted installation is done again.
  cp "$peer/package-lock.json" "$MODULES/installed.json"
}

need_image() {
  docker image inspect "$IMAGE" >/dev/null 2>&1 && return 0
  say "Building the image $IMAGE"
  "$ROOT/infra/agents/build.sh" || fail "the image $IMAGE could not be built: the lines above say why"
}

need_programs() {
  local named
  for named in "${QUAYSIDE_BIN:-}" "${QUAYSIDE_CLAIMS_BIN:-}"; do
    [ -z "$named" ] || [ -x "$named" ] || fail "$named is not a program: QUAYSIDE_BIN or QUAYSIDE_CLAIMS_BIN names it"
  done
  [ -z "${QUAYSIDE_BIN:-}" ] || [ -z "${QUAYSIDE_CLAIMS_BIN:-}" ] || return 0
  say "Building the release binaries"
  (cd "$ROOT" && cargo build --release --features bench --bin quayside --bin claims)
  local target
  target=$(realpath "${CARGO_TARGET_DIR:-$ROOT/target}")/release
  QUAYSIDE_BIN=${QUAYSIDE_BIN:-$target/quayside}
  QUAYSIDE_CLAIMS_BIN=${QUAYSIDE_CLAIMS_BIN:-$target/claims}
}

for argument in "$@"; do
  case $argument in -h | --help) exec python3 -B "$HERE/bench.py" --help ;; esac
done
have python3 || need_debian_packages
# Before anything is installed or built: a wrong argument is told at once.
python3 -B "$HERE/bench.py" --check "$@"
need_debian_packages
python_venv "$VENV" "$HERE/requirements.txt"
need_node_modules
"$ROOT/infra/dev/docker.sh"
need_image
need_programs
"$VENV/bin/python" -B -m unittest --quiet "$HERE/test_report.py"
# exec: Ctrl-C and SIGTERM reach the driver itself, which stops what it started.
exec "$VENV/bin/python" -B "$HERE/bench.py" --binary "$QUAYSIDE_BIN" --claims "$QUAYSIDE_CLAIMS_BIN" \
  --image "$IMAGE" --modules "$MODULES/node_modules" "$@"

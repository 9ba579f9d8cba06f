#!/usr/bin/env bash
# Measures Quayside against the design it replaces: see README.md beside this file. `make bench` calls it.
# It prepares what the measurement needs, then hands over to bench.py; arguments go there (--help lists them).
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=infra/dev/lib.sh
. "$HERE/../../infra/dev/lib.sh"

IMAGE=quayside/agent-python
VENV=$CACHE/bench-venv

need_debian_packages() {
  local missing=()
  have wrk || missing+=(wrk)
  have redis-server || missing+=(redis-server)
  python3 -c 'import ensurepip' 2>/dev/null || missing+=(python3 python3-venv)
  [ "${#missing[@]}" -gt 0 ] || return 0
  can_apt || fail "the benchmark needs ${missing[*]}: install them (Debian and Ubuntu: sudo apt-get install ${missing[*]}), then run this again"
  apt_install "${missing[@]}"
  # The package starts a Redis for the whole machine; nobody asked for that one, the measurement has its own.
  if [[ " ${missing[*]} " == *" redis-server "* && -d /run/systemd/system ]]; then
    as_root systemctl --quiet disable --now redis-server || true
  fi
}

need_venv() {
  local stamp=$VENV/requirements.txt
  cmp -s "$HERE/requirements.txt" "$stamp" && return 0
  say "Installing the peers' Python packages into $VENV"
  rm -rf "$VENV"
  python3 -m venv "$VENV"
  "$VENV/bin/pip" install --quiet --disable-pip-version-check -r "$HERE/requirements.txt" ||
    fail "pip could not install $HERE/requirements.txt: the lines above say why"
  # Last, so that an interrupted installation is done again.
  cp "$HERE/requirements.txt" "$stamp"
}

need_image() {
  docker image inspect "$IMAGE" >/dev/null 2>&1 && return 0
  say "Building the image $IMAGE"
  "$ROOT/infra/agents/build.sh" || fail "the image $IMAGE could not be built: the lines above say why"
}

need_binary() {
  if [ -n "${QUAYSIDE_BIN:-}" ]; then
    [ -x "$QUAYSIDE_BIN" ] || fail "QUAYSIDE_BIN names $QUAYSIDE_BIN, which is not a program"
    return 0
  fi
  say "Building the release binary"
  (cd "$ROOT" && cargo build --release --bin quayside)
  QUAYSIDE_BIN=$(realpath "${CARGO_TARGET_DIR:-$ROOT/target}")/release/quayside
}

for argument in "$@"; do
  case $argument in -h | --help) exec python3 -B "$HERE/bench.py" --help ;; esac
done
have python3 || need_debian_packages
python3 -B "$HERE/bench.py" --check "$@"
need_debian_packages
need_venv
"$ROOT/infra/dev/docker.sh"
need_image
need_binary
# exec: Ctrl-C and SIGTERM reach the driver itself, which stops what it started.
exec "$VENV/bin/python" -B "$HERE/bench.py" --binary "$QUAYSIDE_BIN" --image "$IMAGE" "$@"

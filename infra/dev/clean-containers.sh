#!/usr/bin/env bash
# `make clean-containers`: removes the containers that Quayside left on this machine, and no others. Those of a worker that
# is running are among them.
set -euo pipefail
# shellcheck source=infra/dev/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

STATE=/run/quayside/containers

if have docker && docker version >/dev/null 2>&1; then
  docker ps --all --quiet --filter label=dev.quayside.instance | xargs --no-run-if-empty docker rm --force --volumes
fi

# The groups of containers without an engine, in every hierarchy, innermost first.
groups() { find /sys/fs/cgroup -mindepth 2 -depth -type d -path '*/quayside/*' 2>/dev/null || true; }

# Processes in them, each once.
processes() {
  local group
  groups | while read -r group; do cat "$group/cgroup.procs" 2>/dev/null || true; done | sort -nu
}

# Ends all of them, frozen or not. True when none is left.
end_all() {
  local left group
  left=$(processes)
  [ -n "$left" ] || return 0
  # shellcheck disable=SC2086 # each id is a word
  as_root kill -KILL $left 2>/dev/null || true
  groups | while read -r group; do
    if [ -e "$group/freezer.state" ]; then echo THAWED | as_root tee "$group/freezer.state" >/dev/null; fi
    if [ -e "$group/cgroup.freeze" ]; then echo 0 | as_root tee "$group/cgroup.freeze" >/dev/null; fi
  done
  return 1
}

if [ -n "$(groups)" ] || [ -d "$STATE" ]; then
  can_root || fail "containers without an engine are root's: run this as root"
  wait_for 10 end_all || fail "some processes did not end: $(processes | tr '\n' ' ')"
  groups | while read -r group; do as_root rmdir "$group"; done
  as_root rm -rf --one-file-system "$STATE"
fi

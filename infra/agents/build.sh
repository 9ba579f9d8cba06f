#!/usr/bin/env bash
# Builds the agent images: infra/agents/build.sh [--fresh] [python]
#
# quayside/agent-python:3.11 stands on python:3.11-slim where a registry answers, and otherwise on the same
# Python from Debian's packages. An image that was built from the same inputs is kept; --fresh builds anyway.
# QUAYSIDE_OFFLINE=1 asks no registry, QUAYSIDE_DEBIAN_MIRROR names another mirror than deb.debian.org.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=infra/dev/lib.sh
. "$HERE/../dev/lib.sh"

export DOCKER_HOST=${DOCKER_HOST:-unix:///var/run/docker.sock}
INPUTS_LABEL=dev.quayside.inputs
REGISTRY_BASE=python:3.11-slim
DEBIAN_BASE=quayside/python-base:3.11
DEBIAN_SUITE=bookworm # its python3 is 3.11
# Python and the small tools that the slim image has too: people's programs call them.
DEBIAN_PACKAGES=python3,tzdata,ca-certificates,netbase,base-files,libc-bin,dash,bash,coreutils,findutils,grep,sed,mawk,gzip,tar,util-linux
REGISTRY_PATIENCE=10 # seconds until the registry must have answered; the download itself may take longer
FRESH=no

hash_of() { cat "$@" | sha256sum | cut -c1-16; }

# inputs_of IMAGE: what the image was built from; empty when there is no such image.
inputs_of() { docker image inspect --format "{{index .Config.Labels \"$INPUTS_LABEL\"}}" "$1" 2>/dev/null || true; }
is_built_from() { [ "$FRESH" = no ] && [ "$(inputs_of "$1")" = "$2" ]; }

registry_began_or_gave_up() { grep -q 'Pulling from' "$1" || ! kill -0 "$2" 2>/dev/null; }

# The first line of a pull comes once the registry has answered, so the wait for it tells "no registry" from "slow line".
pull_registry_base() {
  local log=$LOGS/pull.log pid
  [ "${QUAYSIDE_OFFLINE:-0}" != 1 ] || return 1
  : >"$log"
  docker pull "$REGISTRY_BASE" >"$log" 2>&1 &
  pid=$!
  if wait_for "$REGISTRY_PATIENCE" registry_began_or_gave_up "$log" "$pid" && grep -q 'Pulling from' "$log"; then
    say "Pulling $REGISTRY_BASE"
    wait "$pid" && return
    tail -n 3 "$log" >&2
  fi
  kill "$pid" 2>/dev/null || true
  wait "$pid" 2>/dev/null || true
  return 1
}

debian_inputs() {
  { printf '%s\n' "$DEBIAN_SUITE" "$DEBIAN_PACKAGES" && declare -f build_debian_base && cat "$HERE/trim-rootfs.sh"; } | hash_of
}

build_debian_base() {
  local started=$EPOCHREALTIME log=$LOGS/rootfs.log id
  if ! have mmdebstrap || [ ! -e /usr/share/keyrings/debian-archive-keyring.gpg ]; then
    can_apt || fail "no registry gives $REGISTRY_BASE, and building it from Debian's packages needs mmdebstrap: run 'docker pull $REGISTRY_BASE' where there is a network, or install mmdebstrap and debian-archive-keyring"
    apt_install mmdebstrap debian-archive-keyring
  fi
  can_root || fail "no registry gives $REGISTRY_BASE, and building it from Debian's packages needs root: run 'docker pull $REGISTRY_BASE' where there is a network"
  say "No registry answers: building the same from Debian's packages ($DEBIAN_SUITE)"
  TREE=$(mktemp -d)
  trap 'as_root rm -rf "$TREE"' EXIT
  # Packages are unpacked, not configured: trim-rootfs.sh makes up for the little that their scripts would have done.
  # The tag comes last, so that a half-made image is never taken for the base.
  if ! {
    as_root mmdebstrap --variant=extract --include="$DEBIAN_PACKAGES" --skip=output/dev --format=directory \
      "$DEBIAN_SUITE" "$TREE" ${QUAYSIDE_DEBIAN_MIRROR:+"$QUAYSIDE_DEBIAN_MIRROR"} &&
      as_root "$HERE/trim-rootfs.sh" "$TREE" &&
      id=$(as_root tar -C "$TREE" --numeric-owner -c . | docker import \
        --change "LABEL $INPUTS_LABEL=$(debian_inputs)" --change 'ENV LANG=C.UTF-8' \
        --change 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' -) &&
      docker tag "$id" "$DEBIAN_BASE"
  } >"$log" 2>&1; then
    tail -n 15 "$log" >&2
    fail "the base image could not be built: the lines above say why (all of it: $log)"
  fi
  note "$DEBIAN_BASE made in $(since "$started")"
}

# The first of: the registry's image when it is here, our own when it is here, the registry, Debian's packages.
choose_base() {
  if [ "$FRESH" = no ]; then
    if docker image inspect "$REGISTRY_BASE" >/dev/null 2>&1; then BASE=$REGISTRY_BASE && return; fi
    if is_built_from "$DEBIAN_BASE" "$(debian_inputs)"; then BASE=$DEBIAN_BASE && return; fi
  fi
  if pull_registry_base; then
    BASE=$REGISTRY_BASE
  else
    build_debian_base
    BASE=$DEBIAN_BASE
  fi
}

build_python() {
  local image=quayside/agent-python inputs started=$EPOCHREALTIME log=$LOGS/agent-python.log
  inputs=$(hash_of "$HERE/python/Dockerfile" "$HERE/python/main.py" "$HERE/trim-rootfs.sh" "$HERE/build.sh")
  if is_built_from "$image:3.11" "$inputs" && is_built_from "$image:latest" "$inputs"; then
    return
  fi
  choose_base
  say "Building $image:3.11 on $BASE"
  # Nothing in it needs a network, and an engine without a bridge has none to give.
  if ! docker build --network none --build-arg "BASE=$BASE" --label "$INPUTS_LABEL=$inputs" \
    -t "$image:3.11" -t "$image:latest" "$HERE/python" >"$log" 2>&1; then
    tail -n 15 "$log" >&2
    fail "$image could not be built: the lines above say why (all of it: $log)"
  fi
  # What the tags pointed at before; images that a container still uses stay.
  docker image prune --force --filter "label=$INPUTS_LABEL" >/dev/null 2>&1 || true
  say "The agent image $image:3.11 is ready ($(since "$started"))"
}

main() {
  local agents=()
  while [ $# -gt 0 ]; do
    case $1 in
      --fresh) FRESH=yes ;;
      python) agents+=("$1") ;;
      *) fail "unknown agent or option '$1': infra/agents/build.sh [--fresh] [python]" ;;
    esac
    shift
  done
  docker version >/dev/null 2>&1 || fail "no Docker engine answers at $DOCKER_HOST: infra/dev/docker.sh sets one up"
  local agent
  for agent in "${agents[@]:-python}"; do "build_$agent"; done
}

main "$@"

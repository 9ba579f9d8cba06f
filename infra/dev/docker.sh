#!/usr/bin/env bash
# Makes sure that a Docker engine answers: installs Debian's when there is none, starts it when it sleeps.
set -euo pipefail
# shellcheck source=infra/dev/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

DEFAULT_SOCKET=/var/run/docker.sock
# The socket that the worker uses, not whatever context the docker client happens to be set to.
export DOCKER_HOST=${DOCKER_HOST:-unix://$DEFAULT_SOCKET}
MINIMUM_API=1.41 # Docker 20.10
PID_FILE=/var/run/docker.pid
DAEMON_LOG=/var/log/quayside-dockerd.log

engine_api() { timeout 10 docker version --format '{{.Server.APIVersion}}' 2>/dev/null; }
answers() { have docker && engine_api >/dev/null; }

daemon_lives() {
  local pid
  # A crash leaves the file behind, and its number may be another process's by now.
  pid=$(cat "$PID_FILE" 2>/dev/null) && [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = dockerd ]
}

check_version() {
  local api
  api=$(engine_api)
  if [ "$(printf '%s\n' "$MINIMUM_API" "$api" | sort -V | head -n 1)" != "$MINIMUM_API" ]; then
    fail "the Docker engine at $DOCKER_HOST speaks API $api, Quayside needs $MINIMUM_API: upgrade to Docker 20.10 or later"
  fi
}

install_engine() {
  if ! can_apt; then
    fail "no Docker engine here: install Docker Engine 20.10 or later (Debian and Ubuntu: sudo apt-get install docker.io; others: https://docs.docker.com/engine/install/), then run this again"
  fi
  local packages=(docker.io)
  # Without its parser the engine leaves AppArmor out, although the kernel offers it.
  if grep -qs Y /sys/module/apparmor/parameters/enabled && ! have apparmor_parser; then packages+=(apparmor); fi
  apt_install "${packages[@]}"
}

# The client is a package of its own from Debian 13 on.
install_client() {
  can_apt || fail "the docker command is missing: install Docker's client (Debian 13: sudo apt-get install docker-cli), then run this again"
  apt_install docker-cli
}

# launch FLAGS...: dockerd in a session of its own, so that it outlives this script and its terminal.
launch() {
  local pid
  # The lock on descriptor 9 is this script's; a daemon that inherited it would hold it for good.
  # shellcheck disable=SC2016
  pid=$(as_root bash -c 'log=$1; shift; setsid nohup dockerd "$@" >"$log" 2>&1 </dev/null & echo $!' \
    launch "$DAEMON_LOG" "$@" 9>&-)
  wait_for 60 answers_or_gone "$pid" || true
  answers
}
answers_or_gone() { answers || [ ! -d "/proc/$1" ]; }

start_engine() {
  can_root || fail "the Docker engine at $DOCKER_HOST does not answer: start it (sudo systemctl start docker, or sudo dockerd), then run this again"
  if [ -d /run/systemd/system ]; then
    say "Starting the Docker engine (systemctl start docker)"
    as_root systemctl start docker || true
    wait_for 60 answers && return
    as_root journalctl -u docker -n 15 --no-pager >&2 || true
    fail "docker.service did not start: the lines above say why (systemctl status docker)"
  fi

  # The package's own script may have started one a moment ago.
  if daemon_lives && wait_for 30 answers; then return; fi
  say "Starting the Docker engine (dockerd, its log is $DAEMON_LOG)"
  launch && return
  if grep -qiE 'iptables|nftables|netfilter|bridge|ip_forward' "$DAEMON_LOG"; then
    note "it could not set up its network here; trying again without a bridge:"
    note "containers without network work as usual, agents with network access do not"
    launch --bridge=none --iptables=false --ip6tables=false && return
  fi
  tail -n 15 "$DAEMON_LOG" >&2
  fail "dockerd did not start: the lines above say why (all of it: $DAEMON_LOG). It needs root, cgroups and the overlay file system; inside a container it needs --privileged"
}

main() {
  if answers; then
    check_version
    return
  fi
  if [ "$DOCKER_HOST" != "unix://$DEFAULT_SOCKET" ] && [ "$DOCKER_HOST" != "unix:///run/docker.sock" ]; then
    have docker || install_client
    answers || fail "no Docker engine answers at DOCKER_HOST=$DOCKER_HOST: start that one, or unset DOCKER_HOST to use the local engine"
  fi
  # Two of these at once would start two daemons.
  exec 9>"$LOGS/docker.lock"
  flock 9
  if have docker && [[ $(docker version 2>&1) == *"permission denied"* ]]; then
    fail "the Docker engine runs, but $(id -un) may not use it: sudo usermod -aG docker $(id -un), log in again, then run this again"
  fi
  local started=$EPOCHREALTIME
  have dockerd || answers || install_engine
  have docker || install_client
  answers || start_engine
  check_version
  say "The Docker engine answers: $(docker version --format '{{.Server.Version}}, API {{.Server.APIVersion}}') ($(since "$started"))"
}

main

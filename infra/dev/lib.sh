# shellcheck shell=bash
# Shared by the set-up scripts: progress lines, privileges, Debian packages, work in the background. Sourced, never run.

# shellcheck disable=SC2034 # the scripts that source this one use it
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# What the scripts keep between two calls (virtual environments, logs) stays outside the checkout.
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/quayside
LOGS=$CACHE/logs
mkdir -p "$LOGS"
# Daemons and rustup's cargo live there, and a plain user's path often leaves them out.
PATH=$PATH:/usr/sbin:/sbin:$HOME/.cargo/bin

if [ -t 2 ] && [ -z "${NO_COLOR:-}" ]; then
  BOLD=$'\e[1m' RED=$'\e[31m' PLAIN=$'\e[0m'
else
  BOLD='' RED='' PLAIN=''
fi

# Progress goes to standard error, so that a script may answer its caller on standard output.
say() { printf '%s==>%s %s\n' "$BOLD" "$PLAIN" "$*" >&2; }
note() { printf '    %s\n' "$*" >&2; }
fail() {
  printf '%serror:%s %s\n' "$RED" "$PLAIN" "$*" >&2
  exit 1
}

[ -n "${EPOCHREALTIME:-}" ] || fail "this is bash ${BASH_VERSION:-}, the set-up scripts need bash 5 or later: install it, then run this again"

have() { command -v "$1" >/dev/null 2>&1; }

can_root() { [ "$(id -u)" -eq 0 ] || { have sudo && sudo -n true 2>/dev/null; }; }

as_root() {
  if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo -n "$@"; fi
}

# Seconds since an earlier `$EPOCHREALTIME`, with one decimal.
since() {
  local now=${EPOCHREALTIME/[.,]/} then=${1/[.,]/}
  local tenths=$(((now - then) / 100000))
  printf '%d.%d s' $((tenths / 10)) $((tenths % 10))
}

# wait_for SECONDS COMMAND...: true as soon as the command succeeds, false when the time is over.
wait_for() {
  local end=$((SECONDS + $1))
  shift
  until "$@"; do
    [ "$SECONDS" -lt "$end" ] || return 1
    sleep 0.1
  done
}

can_apt() { have apt-get && can_root; }

apt_update() {
  say "Refreshing Debian's package lists"
  # A third-party source that does not answer makes this fail although Debian's own lists are there;
  # whether they are is what the install afterwards shows.
  as_root apt-get -q -o Acquire::Retries=2 -o Acquire::http::Timeout=20 update >"$LOGS/apt-update.log" 2>&1 || true
}

apt_try() {
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 \
    -o Acquire::Retries=2 install --no-install-recommends "$@" </dev/null 2>&1 |
    tee "$LOGS/apt-install.log" | sed -n -u -e 's/^Get:/    &/p' -e 's/^Setting up .*/    &/p' >&2
}

# apt_install PACKAGE...: Debian packages without what they merely recommend. Old lists name files that
# the mirror has dropped, so a failure refreshes the lists once.
apt_install() {
  local started=$EPOCHREALTIME fresh=no
  say "Installing from Debian: $*"
  # Set-up scripts run side by side; apt's own lock does not cover the lists and the downloads.
  exec 8>"$LOGS/apt.lock"
  flock 8
  if [ -z "$(find /var/lib/apt/lists -maxdepth 1 -name '*_Packages*' -print -quit 2>/dev/null)" ]; then
    apt_update
    fresh=yes
  fi
  if ! apt_try "$@"; then
    if [ "$fresh" = yes ] || ! { apt_update && apt_try "$@"; }; then
      tail -n 15 "$LOGS/apt-install.log" >&2
      fail "apt-get could not install $*: the lines above say why (all of it: $LOGS/apt-install.log)"
    fi
  fi
  exec 8>&-
  note "installed in $(since "$started")"
}

# python_venv DIRECTORY REQUIREMENTS: a virtual environment with exactly what the file pins.
python_venv() {
  local directory=$1 requirements=$2
  cmp -s "$requirements" "$directory/installed.txt" && return
  if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
    can_apt || fail "python3 with venv is missing: install it (Debian and Ubuntu: sudo apt-get install python3-venv), then run this again"
    apt_install python3-venv
  fi
  say "Installing $(basename "$requirements") from PyPI into $directory"
  rm -rf "$directory"
  python3 -m venv "$directory"
  "$directory/bin/pip" install --quiet --disable-pip-version-check -r "$requirements" >&2 ||
    fail "pip could not install $requirements: the lines above say why"
  # Last, so that an installation that was interrupted is done again.
  cp "$requirements" "$directory/installed.txt"
}

# The worker is to use the engine that docker.sh found.
use_this_engine() {
  [ -z "${DOCKER_HOST:-}" ] || export QUAYSIDE__RUNNER__DOCKER_HOST="${QUAYSIDE__RUNNER__DOCKER_HOST:-$DOCKER_HOST}"
}

# Node for the tests of the page: browser.sh puts one here where the machine's is missing or too old.
NODE_PREFIX=$CACHE/node
use_node() { [ ! -x "$NODE_PREFIX/node_modules/.bin/node" ] || PATH=$NODE_PREFIX/node_modules/.bin:$PATH; }
node_major() { node --version 2>/dev/null | sed -n 's/^v\([0-9]*\).*/\1/p'; }

# The browser for the tests of the page; an empty line when there is none.
find_browser() { command -v chromium || command -v chromium-browser || command -v google-chrome || true; }

# in_background NAME COMMAND...: starts it with its output in a log; `join NAME` waits for it and shows the log if it failed.
declare -A BACKGROUND=()
in_background() {
  local name=$1
  shift
  noted "$name" "$@" </dev/null &
  BACKGROUND[$name]=$!
}
noted() {
  local name=$1 started=$EPOCHREALTIME
  shift
  "$@" >"$LOGS/$name.log" 2>&1 || return
  # Nothing to do is no news.
  [[ $(since "$started") == 0.* ]] || say "Meanwhile: $name is ready ($(since "$started"))"
}
join() {
  wait "${BACKGROUND[$1]}" && return
  cat "$LOGS/$1.log" >&2
  return 1
}

#!/usr/bin/env bash
# Installs what the tests of the rules and of the signed-in page need besides Google's emulators: Firebase's SDK, its
# rules library and its Auth emulator, as tests/rules/package-lock.json pins them. Prints where they are:
#   FIREBASE_MODULES  the node_modules folder
#   FIREBASE_SDK      the SDK as the page loads it, for any static server (its files name each other, not Google's host)
# With `serve [SDK_PORT [AUTH_PORT [PROJECT]]]` it serves that copy and an Auth emulator on 127.0.0.1 until it is stopped.
set -euo pipefail
# shellcheck source=infra/dev/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

PINNED=$ROOT/tests/rules
HOME_OF_FIREBASE=$CACHE/firebase
MODULES=$HOME_OF_FIREBASE/node_modules
SDK=$HOME_OF_FIREBASE/sdk

use_node
if ! have node || ! have npm || [ "$(node_major)" -lt 20 ]; then
  "$ROOT/infra/dev/browser.sh"
  use_node
fi

exec 7>"$LOGS/firebase.lock"
flock 7
if ! cmp -s "$PINNED/package-lock.json" "$HOME_OF_FIREBASE/installed-lock.json"; then
  say "Installing Firebase's SDK, rules library and Auth emulator from npm into $HOME_OF_FIREBASE (350 MB)"
  mkdir -p "$HOME_OF_FIREBASE"
  cp "$PINNED/package.json" "$PINNED/package-lock.json" "$HOME_OF_FIREBASE/"
  # Nothing needs to run when a package is installed, and what is optional is for other platforms and services.
  (cd "$HOME_OF_FIREBASE" && npm ci --ignore-scripts --omit=optional --no-audit --no-fund --loglevel=error) >&2 ||
    fail "npm could not install the packages of tests/rules/package.json: the lines above say why"
  rm -rf "$SDK"
  mkdir "$SDK"
  for name in app auth firestore; do
    # The files on Google's content network import each other by their full address.
    sed -E 's#https://www\.gstatic\.com/firebasejs/[0-9.]+/#./#g' "$MODULES/firebase/firebase-$name.js" >"$SDK/firebase-$name.js"
  done
  # Last, so that an installation that was interrupted is done again.
  cp "$PINNED/package-lock.json" "$HOME_OF_FIREBASE/installed-lock.json"
fi
exec 7>&-

if [ "${1:-}" = serve ]; then
  export FIREBASE_MODULES=$MODULES FIREBASE_SDK=$SDK
  exec node "$ROOT/infra/dev/firebase.mjs" "${@:2}"
fi
echo "FIREBASE_MODULES=$MODULES"
echo "FIREBASE_SDK=$SDK"

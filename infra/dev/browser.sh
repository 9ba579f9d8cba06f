#!/usr/bin/env bash
# What the tests of the page need: Chromium, a font with Korean letters, Node and the packages of tests/browser.
set -euo pipefail
# shellcheck source=infra/dev/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

TESTS=$ROOT/tests/browser
MINIMUM_NODE=20

use_node
packages=()
have node || packages+=(nodejs)
have npm || packages+=(npm)
[ -n "$(find_browser)" ] || packages+=(chromium)
have fc-list || packages+=(fontconfig)
# Without one the screenshots show boxes where the Korean text is.
have fc-list && [ -n "$(fc-list :lang=ko)" ] || packages+=(fonts-nanum)
if [ "${#packages[@]}" -gt 0 ]; then
  can_apt || fail "the tests of the page need ${packages[*]}: install them (Debian and Ubuntu: sudo apt-get install ${packages[*]}), then run this again"
  apt_install "${packages[@]}"
fi

if [ "$(node_major)" -lt "$MINIMUM_NODE" ]; then
  # Debian 12's is 18; the npm registry has newer ones, as an ordinary package.
  say "Node.js here is $(node --version), the tests of the page need $MINIMUM_NODE or later: installing one into $NODE_PREFIX"
  npm install --prefix "$NODE_PREFIX" --no-audit --no-fund --loglevel=error "node@$MINIMUM_NODE" >&2 ||
    fail "npm could not install node@$MINIMUM_NODE: the lines above say why; Node.js $MINIMUM_NODE or later from https://nodejs.org does as well"
  use_node
fi

if ! cmp -s "$TESTS/package-lock.json" "$TESTS/node_modules/.installed-lock.json"; then
  say "Installing the packages of tests/browser (npm ci)"
  # The browser comes from Debian, so nothing needs to run when a package is installed.
  (cd "$TESTS" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error) >&2
  # Last, so that an installation that was interrupted is done again.
  cp "$TESTS/package-lock.json" "$TESTS/node_modules/.installed-lock.json"
fi

#!/usr/bin/env bash
# Checks for the Rust toolchain that rust-toolchain.toml names and for a C compiler (SQLite is compiled in).
set -euo pipefail
# shellcheck source=infra/dev/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

wanted=$(sed -n 's/^channel *= *"\([0-9.]*\)".*/\1/p' "$ROOT/rust-toolchain.toml")
get_rust="install it with rustup (https://rustup.rs: curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh), then run this again"

for program in cargo rustc; do
  have "$program" || fail "$program is missing, Quayside needs Rust $wanted: $get_rust"
done

# The first call in this folder may make rustup download the pinned toolchain; its progress is for the user.
cd "$ROOT"
found=$(rustc --version) || fail "rustc does not start here: run 'rustup toolchain install $wanted', then this again"
found=$(cut -d' ' -f2 <<<"$found")
if [ "$(printf '%s\n' "$wanted" "$found" | sort -V | head -n 1)" != "$wanted" ]; then
  fail "rustc is $found, Quayside needs $wanted or later: $get_rust"
fi

if ! have cc; then
  can_apt || fail "a C compiler is missing: install one (Debian and Ubuntu: sudo apt-get install gcc libc6-dev), then run this again"
  apt_install gcc libc6-dev
fi

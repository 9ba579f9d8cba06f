#!/usr/bin/env bash
# Installs the pinned schemathesis outside the checkout and prints the path of its command.
set -euo pipefail
# shellcheck source=infra/dev/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

have python3 || { can_apt && apt_install python3 python3-venv; } ||
  fail "python3 is missing: install Python 3.10 or later, then run this again"
python_venv "$CACHE/schemathesis" "$(dirname "${BASH_SOURCE[0]}")/schemathesis.txt"
echo "$CACHE/schemathesis/bin/st"

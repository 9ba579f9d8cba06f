#!/usr/bin/env bash
# Makes sure that containers can be started without an engine: a runtime, an init, and what reads and unpacks images.
# With --with-gvisor its runtime, too, which the tests need.
# With --if-possible a machine where that cannot be is no failure: `[runner] kind = "auto"` takes Docker there.
set -euo pipefail
# shellcheck source=infra/dev/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# Program and the Debian package that brings it.
NEEDED=(crun:crun tini-static:tini skopeo:skopeo umoci:umoci)
if [ "${1:-}" = --with-gvisor ]; then
  NEEDED+=(runsc:runsc)
  shift
fi

cannot() {
  [ "${1:-}" != --if-possible ] || { note "$2"; exit 0; }
  fail "$2"
}

missing=()
for entry in "${NEEDED[@]}"; do
  program=${entry%%:*}
  # Any runtime will do, this one starts fastest.
  if [ "$program" = crun ] && { have crun || have runc; }; then continue; fi
  have "$program" || missing+=("${entry##*:}")
done
if [ ${#missing[@]} -gt 0 ]; then
  can_apt || cannot "${1:-}" "containers without an engine need ${missing[*]}: install them, or leave [runner] kind = \"docker\""
  apt_install "${missing[@]}"
fi

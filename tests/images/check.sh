#!/usr/bin/env bash
# Checks the images and the compose file without building anything, in seconds: that they parse, that what is copied is
# there and gets into the build context, and that nothing secret does. tests/images/try.sh builds and runs them.
set -euo pipefail
# shellcheck source=infra/dev/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../infra/dev/lib.sh"
TOOLS=$CACHE/images
python_venv "$TOOLS" "$ROOT/tests/images/requirements.txt"
cd "$ROOT"

hadolint() { "$TOOLS/bin/hadolint" "$@"; }
schema() { "$TOOLS/bin/check-jsonschema" --builtin-schema vendor.compose-spec "$@"; }
rules() { "$TOOLS/bin/python" -B tests/images/rules.py "$@"; }

hadolint infra/docker/Dockerfile infra/agents/python/Dockerfile || fail "hadolint found the lines above"
schema docker-compose.yml >&2 || fail "docker-compose.yml is no compose file: the lines above say why"
rules "$ROOT" || fail "the lines above say what is wrong with the images"

# Docker's own opinion, where its plugins are installed. Both read files only.
if docker compose version >/dev/null 2>&1; then
  docker compose --file docker-compose.yml config --quiet || fail "docker compose does not take docker-compose.yml"
else
  note "docker compose is not installed: docker-compose.yml was checked against its schema only"
fi
if docker buildx version >/dev/null 2>&1; then
  docker buildx bake --file infra/docker/docker-bake.hcl --print default compose release >"$LOGS/bake.json" 2>"$LOGS/bake.log" ||
    { cat "$LOGS/bake.log" >&2; fail "docker buildx does not take infra/docker/docker-bake.hcl"; }
else
  note "docker buildx is not installed: of docker-bake.hcl only the targets' names were checked"
fi

# A check that finds nothing wrong in something wrong checks nothing.
broken=$(mktemp -d)
trap 'rm -rf "$broken"' EXIT
must_fail() {
  local what=$1
  shift
  if "$@" >"$LOGS/must-fail.log" 2>&1; then fail "the checks did not notice $what"; fi
}
printf 'FROM debian:latest\nRUNN true\n' >"$broken/Dockerfile"
must_fail "an unknown instruction" hadolint "$broken/Dockerfile"
sed 's/^    read_only:/    read_onyl:/; s/^  read_only:/  read_onyl:/; s/^    image:/    imgae:/' docker-compose.yml >"$broken/docker-compose.yml"
must_fail "an unknown key in the compose file" schema "$broken/docker-compose.yml"
"$TOOLS/bin/python" -B tests/images/rules_test.py 2>"$LOGS/rules-test.log" || { cat "$LOGS/rules-test.log" >&2; fail "tests/images/rules_test.py"; }

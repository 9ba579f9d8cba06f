#!/usr/bin/env bash
# Compares the running API with its own OpenAPI document: no server error, no answer and no refusal that the document
# does not tell of. QUAYSIDE_BIN is the binary, ST the command of schemathesis; SEED and EXAMPLES try other ones.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
: "${QUAYSIDE_BIN:=target/debug/quayside}"
ST=${ST:-$(infra/dev/schemathesis.sh)}
SEED=${SEED:-1}

folder=$(mktemp -d)
server=
cleanup() {
  if [ -n "$server" ]; then
    kill "$server" 2>/dev/null || true
    wait "$server" 2>/dev/null || true
  fi
  rm -rf "$folder"
}
trap cleanup EXIT

# Runs end at once, so that waits and event streams do too; no quota is in the way.
cat >"$folder/quayside.toml" <<TOML
[api]
bind = "127.0.0.1:0"
default_agent = "quick"
[backend]
data_dir = "$folder/data"
[worker]
slots = 4
warm_memory = "0B"
prove_limits = false
[limits]
queued_per_user = 100000
running_per_user = 1000
streams_per_user = 1000
[agents.quick]
image = "quayside/agent-python:3.11"
command = ["true"]
output = "text"
memory = "16MiB"
TOML

echo "==> Starting $QUAYSIDE_BIN" >&2
"$QUAYSIDE_BIN" up --config "$folder/quayside.toml" >"$folder/out" 2>"$folder/log" &
server=$!
url=
for _ in $(seq 200); do
  url=$(sed -n 's/.*"url":"\([^"]*\)".*/\1/p' "$folder/out")
  [ -n "$url" ] && break
  kill -0 "$server" 2>/dev/null || break
  sleep 0.1
done
if [ -z "$url" ]; then
  cat "$folder/log" >&2
  echo "error: the server did not start; its log is above" >&2
  exit 1
fi

echo "==> schemathesis against $url, seed $SEED" >&2
# Without ignored_auth: in the `header` mode the name in X-User-Id is believed, there is no wrong one.
if ! "$ST" --config-file tests/api/schemathesis.toml run "$url/openapi.json" --checks all --exclude-checks ignored_auth \
  --phases examples,coverage,fuzzing,stateful --max-examples "${EXAMPLES:-50}" --seed "$SEED" --request-timeout 90 \
  --generation-database none --header 'X-User-Id: schemathesis' --header "Authorization: Bearer $(cat "$folder/data/admin.key")"; then
  echo "error: the API and its document disagree; SEED=$SEED repeats it. The server's last words:" >&2
  tail -n 20 "$folder/log" >&2
  exit 1
fi
if grep -E '"severity":"ERROR"|panicked' "$folder/log" >&2; then
  echo "error: the server logged the errors above; SEED=$SEED repeats it" >&2
  exit 1
fi

#!/usr/bin/env bash
# `make run-google`: the production layout on one machine, as processes: Google's Pub/Sub and Firestore emulators, one
# API, one worker. With --sign-in the page signs in at a Firebase Auth emulator and listens to Firestore itself.
# Ctrl-C stops all of them. What the emulators hold is gone with them.
set -euo pipefail
# shellcheck source=infra/dev/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

PUBSUB_PORT=${PUBSUB_PORT:-8085}
FIRESTORE_PORT=${FIRESTORE_PORT:-8086}
SDK_PORT=${SDK_PORT:-9098}
AUTH_PORT=${AUTH_PORT:-9099}
PROJECT=demo-quayside
sign_in=no
case "${1:-}" in
  '') ;;
  --sign-in) sign_in=yes ;;
  *) fail "unknown argument '$1': there is --sign-in and nothing else" ;;
esac

"$ROOT/infra/dev/toolchain.sh"
"$ROOT/infra/dev/docker.sh"
use_this_engine
in_background agent-image "$ROOT/infra/agents/build.sh"
found=$("$ROOT/infra/dev/emulators.sh") || exit 1
while IFS='=' read -r name value; do printf -v "$name" '%s' "$value"; done <<<"$found"
cd "$ROOT"
say "Building Quayside (a first build compiles every dependency: a few minutes)"
cargo build --bin quayside || fail "the build failed: the lines above say why"
join agent-image || fail "the agent image could not be built: the lines above say why"

processes=()
# In the order they were started: the API and the worker drain before the emulators go.
stop() {
  trap - EXIT INT TERM
  local process
  for process in $(printf '%s\n' "${processes[@]}" | tac); do
    kill -TERM "$process" 2>/dev/null && wait "$process" 2>/dev/null || true
  done
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# run NAME COMMAND...: in a session of its own, so that Ctrl-C at the terminal reaches it through `stop` only.
run() {
  local name=$1
  shift
  setsid "$@" >"$LOGS/$name.log" 2>&1 &
  processes+=($!)
}
answers() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
# ready NAME PORT
ready() { wait_for 60 answers "$2" || fail "$1 does not answer on port $2: see $LOGS/$1.log"; }
for port in "$PUBSUB_PORT" "$FIRESTORE_PORT"; do
  ! answers "$port" || fail "port $port is taken: stop what listens there, or set PUBSUB_PORT and FIRESTORE_PORT"
done

say "Starting the emulators (logs in $LOGS)"
run pubsub-emulator java -Xmx512m -XX:+UseSerialGC -cp "${PUBSUB_EMULATOR_SHIM:+$PUBSUB_EMULATOR_SHIM:}$PUBSUB_EMULATOR_JAR" \
  com.google.cloud.pubsub.testing.v1.Main --host=127.0.0.1 --port="$PUBSUB_PORT"
run firestore-emulator java -Xmx512m -XX:+UseSerialGC -cp "$FIRESTORE_EMULATOR_JAR" \
  com.google.cloud.datastore.emulator.firestore.CloudFirestore --host=127.0.0.1 --port="$FIRESTORE_PORT" \
  --rules="$ROOT/infra/firestore/firestore.rules"
ready pubsub-emulator "$PUBSUB_PORT"
ready firestore-emulator "$FIRESTORE_PORT"
export PUBSUB_EMULATOR_HOST=127.0.0.1:$PUBSUB_PORT FIRESTORE_EMULATOR_HOST=127.0.0.1:$FIRESTORE_PORT
export QUAYSIDE__BACKEND__KIND=google QUAYSIDE__GOOGLE__PROJECT_ID=$PROJECT
if [ "$sign_in" = yes ]; then
  run firebase "$ROOT/infra/dev/firebase.sh" serve "$SDK_PORT" "$AUTH_PORT" "$PROJECT"
  # Its packages may have to be installed first.
  wait_for 600 answers "$AUTH_PORT" || fail "the Auth emulator does not answer on port $AUTH_PORT: see $LOGS/firebase.log"
  export FIREBASE_AUTH_EMULATOR_HOST=127.0.0.1:$AUTH_PORT
  export QUAYSIDE__API__AUTH=tokens QUAYSIDE__GOOGLE__FIREBASE_SDK=http://127.0.0.1:$SDK_PORT
fi
quayside=${CARGO_TARGET_DIR:-target}/debug/quayside
run worker "$quayside" worker
setsid "$quayside" api &
processes+=($!)
note "Worker log: $LOGS/worker.log"
wait -n "${processes[@]}" || true
fail "one of the processes ended: the lines above or the logs in $LOGS say why"

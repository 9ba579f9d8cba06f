#!/usr/bin/env bash
# Builds the images and runs docker-compose.yml with them: tests/images/try.sh [--real]
#
# A run must complete, what the compose file forbids must be forbidden, and stopping must lose nothing. With --real
# everything is built as it is shipped, which needs a registry and compiles for minutes. Without it the base images are
# stand-ins made from Debian's packages and the program is $QUAYSIDE_BIN (default: target/debug/quayside).
set -euo pipefail
# shellcheck source=infra/dev/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../infra/dev/lib.sh"
cd "$ROOT"
REAL=no
case "${1:-}" in
  '') ;;
  --real) REAL=yes ;;
  *) fail "unknown argument '$1': there is --real and nothing else" ;;
esac
for plugin in buildx compose; do
  docker "$plugin" version >/dev/null 2>&1 || fail "docker has no $plugin here: install its plugin (Debian 13: docker-$plugin), then run this again"
done

export TAG=try QUAYSIDE_TAG=try COMPOSE_PROJECT_NAME=quayside-try QUAYSIDE_PORT=0 # a free one
DOCKER_GID=$(stat -L -c %g /var/run/docker.sock)
export DOCKER_GID
WORK=$(mktemp -d)
leave() {
  local code=$?
  if [ "$code" -ne 0 ]; then docker compose logs --no-color --tail 10 >&2 || true; fi
  docker compose down --volumes --timeout 40 >"$LOGS/compose-down.log" 2>&1 || true
  # The build cache keeps what the next time can use.
  docker image ls --quiet --filter 'reference=quayside/*:try' --filter 'reference=quayside-standin/*' | sort -u |
    xargs --no-run-if-empty docker image rm --force >"$LOGS/images-rm.log" 2>&1 || true
  as_root rm -rf "$WORK"
  exit "$code"
}
trap leave EXIT

# tree NAME PACKAGES: unpacked packages, without their scripts.
tree() {
  as_root mmdebstrap --variant=extract --include="$2" --skip=output/dev --format=directory \
    bookworm "$WORK/$1" ${QUAYSIDE_DEBIAN_MIRROR:+"$QUAYSIDE_DEBIAN_MIRROR"} >"$LOGS/$1.log" 2>&1 || { tail "$LOGS/$1.log" >&2; fail "mmdebstrap could not unpack $2"; }
}
# import NAME CHANGE...: the tree as an image.
import() {
  local name=$1 changes=() change
  shift
  for change in "$@"; do changes+=(--change "$change"); done
  as_root tar -C "$WORK/$name" --numeric-owner -c . | docker import "${changes[@]}" - "quayside-standin/$name" >"$LOGS/import.log"
}
stand_ins() {
  local java program=${QUAYSIDE_BIN:-target/debug/quayside} path=/usr/sbin:/usr/bin:/sbin:/bin line
  [ -x "$program" ] || fail "$program is not there: run 'cargo build --bin quayside' first"
  have mmdebstrap || apt_install mmdebstrap
  say "Making stand-ins for the base images from Debian's packages"
  tree runtime libc6,libgcc-s1,libstdc++6,ca-certificates,base-files
  # The root certificates, which the clients load even for an emulator, and no shell: as in the original.
  cat "$WORK"/runtime/usr/share/ca-certificates/mozilla/*.crt | as_root tee "$WORK/runtime/etc/ssl/certs/ca-certificates.crt" >/dev/null
  (cd "$WORK/runtime" && as_root rm -rf bin sbin usr/bin usr/sbin)
  import runtime 'USER 65532:65532' "ENV PATH=/usr/local/bin:$path"
  tree jdk openjdk-17-jdk-headless,dash,grep,coreutils,curl
  java=/usr/lib/jvm/java-17-openjdk-$(dpkg --print-architecture)/bin
  import jdk "ENV PATH=$java:$path"
  mkdir -p "$WORK/binary/out/data" "$WORK/sdk/google-cloud-sdk/platform/"{pubsub-emulator/lib,cloud-firestore-emulator}
  cp "$program" "$WORK/binary/out/quayside"
  import binary
  while IFS= read -r line; do
    case $line in
      PUBSUB_EMULATOR_JAR=*) cp "${line#*=}" "$WORK/sdk/google-cloud-sdk/platform/pubsub-emulator/lib/" ;;
      FIRESTORE_EMULATOR_JAR=*) cp "${line#*=}" "$WORK/sdk/google-cloud-sdk/platform/cloud-firestore-emulator/cloud-firestore-emulator.jar" ;;
    esac
  done < <(infra/dev/emulators.sh)
  printf 'FROM quayside-standin/jdk\nCOPY google-cloud-sdk /google-cloud-sdk\n' >"$WORK/sdk.Dockerfile"
  docker buildx build --quiet --load --file "$WORK/sdk.Dockerfile" --tag quayside-standin/emulators "$WORK/sdk" >"$LOGS/import.log"
  export RUNTIME_IMAGE=quayside-standin/runtime BINARY=quayside-standin/binary
  export JDK_IMAGE=quayside-standin/jdk EMULATORS_IMAGE=quayside-standin/emulators
}

[ "$REAL" = yes ] || stand_ins
infra/agents/build.sh
say "Building the images"
docker buildx bake --load --file infra/docker/docker-bake.hcl compose >"$LOGS/bake.log" 2>&1 || { tail -n 30 "$LOGS/bake.log" >&2; fail "the images could not be built"; }
say "docker compose up"
docker compose up --detach --no-build >"$LOGS/compose-up.log" 2>&1 || { cat "$LOGS/compose-up.log" >&2; fail "the containers did not start"; }
ADDRESS=$(docker compose port api 8080)
[[ $ADDRESS == 127.0.0.1:* ]] || fail "the API is published on $ADDRESS"

api() { curl --silent --max-time 60 --header 'X-User-Id: me' --header 'Content-Type: application/json' "http://$ADDRESS$1" "${@:2}"; }
answers() { [[ $(api "$1") == *"$2"* ]]; }
inspect() { docker inspect --format "$2" "$(docker compose ps --all --quiet "$1")"; }
wait_for 60 answers /readyz '"status":"ok"' || fail "the API does not become ready"
docker compose exec -T worker quayside doctor >&2 || fail "quayside doctor in the worker found the lines above"

say "A run"
reply=$(api '/api/conversation?wait=30' --data '{"message":"print(6 * 7)"}')
[[ $reply == *'"status":"completed"'*'"text":"42\n"'* ]] || fail "the run did not complete: $reply"
[[ $reply != *'"cpuMillis":null'* ]] || fail "the worker sees nothing of its containers' control groups: $reply"

say "What is forbidden"
for service in api worker pubsub firestore; do
  pid=$(inspect "$service" '{{.State.Pid}}')
  grep -q '^CapEff:[[:space:]]*0*$' "/proc/$pid/status" || fail "$service has capabilities"
  grep -q '^NoNewPrivs:[[:space:]]*1$' "/proc/$pid/status" || fail "$service could gain rights"
  grep -q '^Uid:[[:space:]]*65532' "/proc/$pid/status" || fail "$service does not run as 65532"
  [ "$(inspect "$service" '{{.HostConfig.ReadonlyRootfs}}')" = true ] || fail "$service could write to its root"
done
if docker compose exec -T api /bin/sh -c true >/dev/null 2>&1; then fail "there is a shell in the API's image"; fi

say "Stopping the worker while it works, and starting it again"
run=$(api /api/conversation --data '{"message":"import time\nfor i in range(60): print(i, flush=True); time.sleep(1)"}' | sed -n 's/.*"id":"\(run_[^"]*\)".*/\1/p')
wait_for 30 answers "/api/runs/$run" '"status":"in_progress"' || fail "the run $run does not start"
docker compose stop worker >"$LOGS/compose-stop.log" 2>&1
[ "$(inspect worker '{{.State.ExitCode}}')" = 0 ] || fail "the worker did not drain in its time: exit code $(inspect worker '{{.State.ExitCode}}')"
answers "/api/runs/$run" '"outcome":"drained"' || fail "the run was not handed back: $(api "/api/runs/$run")"
docker compose start worker >"$LOGS/compose-start.log" 2>&1
wait_for 60 answers "/api/runs/$run" '"status":"in_progress"' || fail "the run was not taken up again: $(api "/api/runs/$run")"
api "/api/runs/$run/cancel" --request POST >/dev/null
wait_for 30 answers "/api/runs/$run" '"status":"cancelled"' || fail "the run was not cancelled"
say "The images work"

#!/usr/bin/env bash
# Finds or installs Google's Pub/Sub and Firestore emulators and Java, and prints where they are, one NAME=path a line:
#   PUBSUB_EMULATOR_JAR, PUBSUB_EMULATOR_SHIM (a class path that goes in front of the jar; empty when it needs none),
#   FIRESTORE_EMULATOR_JAR
# What is set already, to files that exist, is taken as it is.
set -euo pipefail
# shellcheck source=infra/dev/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

SOURCE=$ROOT/infra/dev/pubsub-emulator
SHIM=$CACHE/pubsub-emulator-shim
MINIMUM_JAVA=11
PUBSUB=${PUBSUB_EMULATOR_JAR:-}
FIRESTORE=${FIRESTORE_EMULATOR_JAR:-}

java_major() { java -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p' | head -n 1; }
java_serves() { have java && [ "$(java_major)" -ge "$MINIMUM_JAVA" ] 2>/dev/null; }
# Whether apt knows where to get a package.
candidate() { [[ $(LC_ALL=C apt-cache policy "$1" 2>/dev/null) == *'Candidate: '[0-9]* ]]; }

install_java() {
  can_apt || fail "the emulators and the class that mends one of them need a JDK (java and javac), $MINIMUM_JAVA or later: install one, for example from https://adoptium.net, then run this again"
  local package=openjdk-17-jdk-headless
  candidate "$package" || package=default-jdk-headless
  apt_install "$package"
}

# Folders that Google's packages, installers and images use; gcloud itself is asked last, it takes a second.
sdk_roots() {
  printf '%s\n' "${CLOUDSDK_ROOT_DIR:-}" /usr/lib/google-cloud-sdk /usr/share/google-cloud-sdk /opt/google-cloud-sdk \
    /usr/local/google-cloud-sdk /google-cloud-sdk "$HOME/google-cloud-sdk"
  if have gcloud; then
    dirname "$(dirname "$(readlink -f "$(command -v gcloud)")")"
    [ "${1:-}" != ask ] || gcloud info --format='value(installation.sdk_root)' 2>/dev/null || true
  fi
}

# find_jars [ask]: fills in what is still missing.
find_jars() {
  local root jar
  while read -r root; do
    [ -n "$root" ] || continue
    for jar in "$root"/platform/pubsub-emulator/lib/cloud-pubsub-emulator-*-all.jar; do
      [ -f "$PUBSUB" ] || [ ! -f "$jar" ] || PUBSUB=$jar
    done
    jar=$root/platform/cloud-firestore-emulator/cloud-firestore-emulator.jar
    [ -f "$FIRESTORE" ] || [ ! -f "$jar" ] || FIRESTORE=$jar
  done < <(sdk_roots "${1:-}")
  [ -f "$PUBSUB" ] && [ -f "$FIRESTORE" ]
}

install_emulators() {
  local packages=() components=()
  [ -f "$PUBSUB" ] || { packages+=(google-cloud-cli-pubsub-emulator) && components+=(pubsub-emulator); }
  [ -f "$FIRESTORE" ] || { packages+=(google-cloud-cli-firestore-emulator) && components+=(cloud-firestore-emulator); }
  if can_apt && candidate "${packages[0]}"; then
    apt_install "${packages[@]}"
  elif have gcloud; then
    say "Installing with gcloud: ${components[*]}"
    gcloud components install --quiet "${components[@]}" >"$LOGS/gcloud-components.log" 2>&1 ||
      tail -n 5 "$LOGS/gcloud-components.log" >&2
  fi
  find_jars ask || fail "Google's emulators are missing (${components[*]}). Install them with the Google Cloud CLI: 'gcloud components install ${components[*]}', or, where the CLI came from Google's Debian packages, 'sudo apt-get install ${packages[*]}' (https://cloud.google.com/sdk/docs/install#deb); or set PUBSUB_EMULATOR_JAR and FIRESTORE_EMULATOR_JAR. Then run this again"
}

# The stamp names the jar and the source that the compiled class is for.
stamp() { printf '%s\n' "$PUBSUB" && stat -L -c '%s %Y' "$PUBSUB" && cat "$SOURCE/io/grpc/InternalStatus.java"; }

needs_shim() { [[ $(javap -cp "$PUBSUB" io.grpc.InternalStatus 2>/dev/null) != *' asRuntimeException('* ]]; }

compile_shim() {
  [ "$(stamp)" != "$(cat "$SHIM/stamp" 2>/dev/null)" ] || return 0
  have javac || install_java
  # Test runs that start side by side compile once.
  exec 9>"$LOGS/emulators.lock"
  flock 9
  [ "$(stamp)" != "$(cat "$SHIM/stamp" 2>/dev/null)" ] || return 0
  rm -rf "$SHIM"
  mkdir -p "$SHIM"
  if needs_shim; then
    say "Compiling the class that mends the Pub/Sub emulator"
    mkdir "$SHIM/classes"
    javac -nowarn -cp "$PUBSUB" -d "$SHIM/classes" "$SOURCE/io/grpc/InternalStatus.java" >&2 ||
      fail "javac could not compile $SOURCE/io/grpc/InternalStatus.java: the lines above say why"
  fi
  # Last, so that a compilation that was interrupted is done again.
  stamp >"$SHIM/stamp"
}

find_jars || find_jars ask || install_emulators
java_serves || install_java
java_serves || fail "java here is $(java_major), the emulators need $MINIMUM_JAVA or later: install one and put it first in PATH, then run this again"
compile_shim
echo "PUBSUB_EMULATOR_JAR=$PUBSUB"
if [ -d "$SHIM/classes" ]; then echo "PUBSUB_EMULATOR_SHIM=$SHIM/classes"; else echo "PUBSUB_EMULATOR_SHIM="; fi
echo "FIRESTORE_EMULATOR_JAR=$FIRESTORE"

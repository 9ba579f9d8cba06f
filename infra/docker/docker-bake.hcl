# docker buildx bake -f infra/docker/docker-bake.hcl [GROUP]     from the root of the repository
#
#   default     api and worker, for this machine's architecture, into the local engine
#   compose     the same and the two emulators: what docker-compose.yml starts
#   release     api and worker for amd64 and arm64, with provenance and a list of ingredients; add --push

variable "REGISTRY" { default = "quayside" }        # for example europe-docker.pkg.dev/PROJECT/quayside
variable "TAG" { default = "dev" }
variable "REVISION" { default = "" }                # the commit
variable "CREATED" { default = "" }                 # RFC 3339; empty where a build must come out the same twice
variable "SOURCE" { default = "https://github.com/quayside-run/quayside" }

# Empty: the Dockerfile's own. A mirror's address, or a digest (IMAGE@sha256:...), goes here.
variable "RUST_IMAGE" { default = "" }
variable "RUNTIME_IMAGE" { default = "" }
variable "JDK_IMAGE" { default = "" }
variable "EMULATORS_IMAGE" { default = "" }
variable "BINARY" { default = "" }

function "names" {
  params = [name]
  result = notequal(REVISION, "") ? ["${REGISTRY}/${name}:${TAG}", "${REGISTRY}/${name}:${REVISION}"] : ["${REGISTRY}/${name}:${TAG}"]
}

group "default" { targets = ["api", "worker"] }
group "compose" { targets = ["api", "worker", "pubsub-emulator", "firestore-emulator"] }
group "release" { targets = ["api-release", "worker-release"] }

target "_image" {
  context    = "."
  dockerfile = "infra/docker/Dockerfile"
  args = {
    RUST_IMAGE      = notequal(RUST_IMAGE, "") ? RUST_IMAGE : null
    RUNTIME_IMAGE   = notequal(RUNTIME_IMAGE, "") ? RUNTIME_IMAGE : null
    JDK_IMAGE       = notequal(JDK_IMAGE, "") ? JDK_IMAGE : null
    EMULATORS_IMAGE = notequal(EMULATORS_IMAGE, "") ? EMULATORS_IMAGE : null
    BINARY          = notequal(BINARY, "") ? BINARY : null
  }
  labels = {
    "org.opencontainers.image.licenses" = "Apache-2.0"
    "org.opencontainers.image.source"   = SOURCE
    "org.opencontainers.image.revision" = REVISION
    "org.opencontainers.image.created"  = CREATED
  }
}

# Needs a builder that makes images of several platforms: docker buildx create --use
target "_release" {
  platforms = ["linux/amd64", "linux/arm64"]
  attest    = ["type=provenance,mode=max", "type=sbom"]
  # The crates are in Cargo.lock, not in the finished image.
  args = { BUILDKIT_SBOM_SCAN_CONTEXT = "true" }
}

target "api" {
  inherits = ["_image"]
  target   = "api"
  tags     = names("api")
}

target "worker" {
  inherits = ["_image"]
  target   = "worker"
  tags     = names("worker")
}

target "pubsub-emulator" {
  inherits = ["_image"]
  target   = "pubsub-emulator"
  tags     = names("pubsub-emulator")
}

target "firestore-emulator" {
  inherits = ["_image"]
  target   = "firestore-emulator"
  tags     = names("firestore-emulator")
}

target "api-release" { inherits = ["api", "_release"] }
target "worker-release" { inherits = ["worker", "_release"] }

# Two commands matter to a newcomer: `make run` and `make test`. Both install what is missing and say what they do.
.DEFAULT_GOAL := help
.PHONY: help run run-google compose test bench chaos image images fmt lint clean-containers

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## Set up, build and start Quayside on this machine (ARGS="..." go to `quayside up`)
	@exec infra/dev/run.sh $(ARGS)

run-google: ## The production layout on this machine: emulators of Pub/Sub and Firestore, API, worker (ARGS=--sign-in: with Firebase sign-in)
	@exec infra/dev/run-google.sh $(ARGS)

compose: ## The same as containers: docker compose up, which needs a registry (ARGS="..." go to it)
	@infra/dev/docker.sh && DOCKER_GID=$${DOCKER_GID:-$$(stat -L -c %g /var/run/docker.sock 2>/dev/null || echo 0)} docker compose up --build $(ARGS)

test: ## Set up and run every check
	@exec infra/dev/test.sh

bench: ## Measure beside the peers (ARGS="..." go to tests/bench/run.sh)
	@exec tests/bench/run.sh $(ARGS)

chaos: ## Kill, freeze, cut off and fill up real processes by seed, with figures (ARGS="..." go to tests/chaos/run.sh; --help)
	@exec tests/chaos/run.sh $(ARGS)

image: ## Build the agent image (ARGS=--fresh builds it anew)
	@infra/dev/docker.sh && infra/agents/build.sh $(ARGS)

images: ## Build the images of the API and the worker, which needs a registry (ARGS="..." go to docker buildx bake)
	@infra/dev/docker.sh && docker buildx bake --file infra/docker/docker-bake.hcl $(ARGS)

fmt: ## Format the Rust code
	@cargo fmt --all

lint: ## Check formatting, clippy and the shell scripts
	@cargo fmt --all --check
	@cargo clippy --workspace --all-targets -- -D warnings
	@if command -v shellcheck >/dev/null; then shellcheck -x .ci/run $$(git ls-files '*.sh'); \
	  else echo "shellcheck is not installed: the shell scripts were not checked"; fi

clean-containers: ## Remove the containers that Quayside left on this machine, and no others
	@exec infra/dev/clean-containers.sh

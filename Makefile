# What can be done with this repository; `make` alone prints the list.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.NOTPARALLEL:

# The one list of Debian packages: libraries to build against, tools that the tests use.
PACKAGES := librocksdb-dev liblmdb-dev libuv1-dev libsystemd-dev libmicrohttpd-dev libinih-dev \
    libisal-dev libssl-dev zlib1g-dev libzstd-dev libcurl4-openssl-dev pkg-config redis-tools \
    curl python3 python3-venv systemd-container debhelper chrpath lintian man-db \
    bash-completion zsh fish prometheus prometheus-alertmanager etcd-server etcd-client

SWIFT ?= swift
# Every import must be a declared dependency. The same flags everywhere, so that nothing is built
# twice.
SWIFT_FLAGS := --explicit-target-dependency-import-check error
LINTED := Sources Tests Package.swift
# What `--version` says of a build: the commit, and whether files differ from it.
REVISION = $(shell git describe --always --dirty --exclude='*' 2>/dev/null || echo unknown)
# For `make sim`, `make bench` and `make test`: ARGS="--seed 7".
ARGS ?=

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: deps
deps: ## install the Debian packages that are missing
	@set -e; missing=(); \
	for package in $(PACKAGES); do \
	    status=$$(dpkg-query -W -f '$${Status}' "$$package" 2>/dev/null || true); \
	    [[ "$$status" == "install ok installed" ]] || missing+=("$$package"); \
	done; \
	if ! command -v $(SWIFT) >/dev/null; then \
	    echo "deps: no Swift toolchain: install Swift 6.3 or newer from https://swift.org/install" >&2; \
	    exit 1; \
	fi; \
	if [[ $${#missing[@]} -eq 0 ]]; then echo "deps: everything is there"; exit 0; fi; \
	echo "deps: missing: $${missing[*]}"; \
	if ! command -v apt-get >/dev/null; then \
	    echo "deps: no apt-get here: install the equivalents of these packages by hand" >&2; exit 1; \
	fi; \
	as_root=(); \
	if [[ $$(id -u) -ne 0 ]]; then \
	    if ! command -v sudo >/dev/null; then \
	        echo "deps: neither root nor sudo: have root run: apt-get install $${missing[*]}" >&2; \
	        exit 1; \
	    fi; \
	    as_root=(sudo); \
	fi; \
	"$${as_root[@]}" apt-get update -q; \
	"$${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y \
	    --no-install-recommends "$${missing[@]}"; \
	if [[ -d /run/systemd/system ]]; then \
	    for service in etcd-server:etcd prometheus:prometheus \
	        prometheus-alertmanager:prometheus-alertmanager; do \
	        [[ " $${missing[*]} " == *" $${service%:*} "* ]] || continue; \
	        echo "deps: tests start $${service#*:} themselves: the package's service is switched off"; \
	        "$${as_root[@]}" systemctl disable --now "$${service#*:}.service"; \
	    done; \
	fi

# What is delivered, each stamped with the revision that it was built from.
PROGRAMS := kvnode kvrouter kvcontrollerd kvctl kvbench

.PHONY: build
build: ## build the programs, optimised, into .build/release
	$(SWIFT) build -c release $(SWIFT_FLAGS)
	@scripts/stamp-revision "$(REVISION)" \
	    $(addprefix .build/release/,$(PROGRAMS))

.PHONY: debug
debug: ## build programs and tests, unoptimised, into .build/debug
	$(SWIFT) build --build-tests $(SWIFT_FLAGS)

.PHONY: test
test: lint debug test-swift test-integration ## lint, build, and run every test

# The pieces of `make test`, for those who know what they want; `test` runs them in this order.
.PHONY: test-swift
test-swift: debug
	$(SWIFT) test --skip-build $(SWIFT_FLAGS) $(ARGS)

.PHONY: test-integration
test-integration: debug
	@set -e; \
	if [[ ! -d Tests/integration ]]; then exit 0; fi; \
	if [[ ! -x .build/venv/bin/python ]]; then python3 -m venv .build/venv; fi; \
	.build/venv/bin/pip install --quiet --disable-pip-version-check \
	    -r Tests/integration/requirements.txt; \
	RANGEKEEPER_BIN="$$($(SWIFT) build --show-bin-path $(SWIFT_FLAGS))" \
	    .build/venv/bin/python -m pytest -n 2 --dist loadfile Tests/integration

.PHONY: lint
lint: ## check the format of all Swift sources
	$(SWIFT) format lint --strict --parallel --recursive $(LINTED)

.PHONY: format
format: ## format all Swift sources in place
	$(SWIFT) format --in-place --parallel --recursive $(LINTED)

.PHONY: playground
playground: deps build ## a whole cluster on this machine, in the foreground, under ./playground
	exec .build/release/kvctl playground up --dir playground --with-prometheus

.PHONY: sim
sim: ## the simulator; ARGS="..." goes to kvsim
	$(SWIFT) build -c release $(SWIFT_FLAGS) --product kvsim
	.build/release/kvsim $(ARGS)

.PHONY: scale
scale: ## memory and time of a map of 1,000,000 shards and of a controller of 1,000 groups
	$(SWIFT) build -c release $(SWIFT_FLAGS) --product kvsim
	.build/release/kvsim map
	.build/release/kvsim controller

.PHONY: scale-metadata
scale-metadata: build ## controllers taking over, and a restore, at 1,000,000 shards; ARGS="--kills 3"
	scripts/metadata-scale.py embedded --binaries .build/release $(ARGS)
	scripts/metadata-scale.py etcd --binaries .build/release $(ARGS)
	scripts/metadata-scale.py restore --binaries .build/release $(ARGS)

.PHONY: bench
bench: build ## puts and gets beside those of Redis, on this machine (needs redis-server)
	scripts/bench.sh .build/release

.PHONY: failover
failover: build ## how long clients wait when a leader is killed or stopped; ARGS="--kills 100"
	scripts/failover.py --binaries .build/release $(ARGS)

# Release programs hold the Swift run-time library; they are built beside those of `make build`,
# which would be built anew otherwise. Debug packages take `make debug` as it is.
CONFIGURATION ?= release
DEB := .build/deb/$(CONFIGURATION)
.PHONY: deb
deb: ## Debian packages, below .build/deb; CONFIGURATION=debug packages what `make debug` built
	@set -e; \
	if [[ $(CONFIGURATION) == release ]]; then \
	    flags=(-c release --static-swift-stdlib --scratch-path .build/static $(SWIFT_FLAGS)); \
	    for program in $(PROGRAMS); do \
	        $(SWIFT) build "$${flags[@]}" --product $$program; \
	    done; \
	    binaries="$$($(SWIFT) build "$${flags[@]}" --show-bin-path)"; \
	else \
	    binaries="$$($(SWIFT) build $(SWIFT_FLAGS) --show-bin-path)"; \
	fi; \
	scripts/packages.sh "$$binaries" $(DEB)

.PHONY: clean
clean: ## remove everything that was built
	rm -rf .build

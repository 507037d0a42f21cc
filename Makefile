# `make run` shows Stanch on a fresh machine, `make test` runs the tests; each installs what it needs.
SHELL      := /bin/bash
GO         ?= go
CACHE      ?= $(or $(STANCH_CACHE),$(HOME)/.cache/stanch)
DATA       ?= $(CURDIR)/.cache/data
# Static builds run on this machine, in the test images, and in the tests.
export CGO_ENABLED := 0
# Programs contain no path of the machine that builds them. The tests use the same flags, and share what was compiled.
export GOFLAGS := -trimpath -buildvcs=false $(GOFLAGS)
LAB        := $(CACHE)/lab/state.json
TOOL       := $(GO) tool -modfile=tools/go.mod
VERSION    ?= $(shell git describe --always --abbrev=12 --dirty 2>/dev/null || echo dev)
LDFLAGS    := -s -w -X main.version=$(VERSION)
PACKAGES   := containerd runc containernetworking-plugins iptables iproute2 busybox-static python3-venv
# The power-loss tests record system calls.
PACKAGES   += strace
# Benign loads that no rule may report: a compiler, a web server, a database.
PACKAGES   += gcc libc6-dev git make nginx-light redis-server redis-tools apache2-utils procps curl python3
# The baseline for the cost of the sensor.
BENCH      := bpftrace

.PHONY: help run stop build images lab-images setup test test-short mutation bench check lint generate fuzz soak clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: build ## build, start Stanch, run one drill, leave Stanch running
	@bash scripts/run.sh "$(DATA)"

stop: ## stop the Stanch that `make run` left running
	@pid=$$(cat "$(DATA)/pid" 2>/dev/null) && kill $$pid && echo stopped || echo "Stanch is not running"

build: bin/stanch bin/stanch-sensor ## build both programs (the first build embeds Temporal and takes minutes)

SOURCES := $(shell find bpf sensors playbooks activities workflows worker cmd deploy -name '*.go' -o -name '*.o' -o -name '*.yaml' -o -path 'deploy/chart/*' -type f 2>/dev/null) go.mod go.sum

bin/stanch: $(SOURCES)
	@echo "building bin/stanch; the first build compiles the embedded Temporal and takes about 5 to 10 minutes on two cores"
	@bash scripts/progress.sh $(GO) build -ldflags "$(LDFLAGS)" -o $@ ./cmd/stanch

bin/stanch-sensor: $(SOURCES)
	@$(GO) build -ldflags "$(LDFLAGS)" -o $@ ./cmd/stanch-sensor

images: ## build the container images for amd64 and arm64, and the chart, in dist/; REGISTRY=HOST/PATH also pushes them
	@$(GO) run ./deploy/images -version "$(VERSION)" -out dist $(if $(REGISTRY),-push "$(REGISTRY)") $(if $(SOURCE),-source "$(SOURCE)")

# What the lab runs: the images of this machine's platform only.
lab-images: $(SOURCES)
	@$(GO) run ./deploy/images -version "$(VERSION)" -out dist/lab -platforms linux/$$($(GO) env GOARCH)

setup: ## install test prerequisites (Debian packages, moto_server, YAML language server), build the lab's Kubernetes node
	@bash scripts/setup.sh $(PACKAGES)
	@bash scripts/moto.sh "$(CACHE)/moto"
	@bash scripts/languageserver.sh "$(CACHE)/yaml-language-server"
	@$(GO) run ./testenv/kube/cmd/labnode build

test: setup build lab-images ## run every test, including kernel, node, Temporal, and Kubernetes tests
	@bash scripts/test.sh "$(LAB)"

test-short: ## run a quick selection of tests that needs neither root nor a cluster
	$(GO) test ./sensors ./sensors/rules ./sensors/attestation ./sensors/gatewayrpc ./sensors/redact ./sensors/integrations/... ./playbooks/... ./workflows/... ./worker/config ./worker/codec ./worker/guards

bench: build setup ## run benchmarks; results in bench.json (one JSON object per line, with the baseline of the same run)
	@bash scripts/setup.sh $(BENCH)
	@bash scripts/bench.sh "$(LAB)"

check: ## check format, vet, lint, words, import direction, workflow determinism, and generated code
	@bash scripts/check.sh

lint: check

generate: ## regenerate the kernel objects (clang-16) and the gateway protocol
	$(GO) generate ./bpf ./sensors/gatewayrpc

FUZZ := playbooks/testspec:FuzzParse playbooks/recording:FuzzDecode worker/archive:FuzzDecode worker/simulate:FuzzParseAnswers activities:FuzzReadManifest playbooks:FuzzLoad worker/config:FuzzParse workflows/lease:FuzzMachine sensors/integrations:FuzzFalco sensors/probe:FuzzDecodeRecord \
	sensors/integrations:FuzzTetragon sensors/integrations:FuzzTracee sensors/integrations:FuzzKubeArmor sensors/integrations:FuzzSplit sensors/integrations:FuzzDecodeKubernetesAudit sensors/integrations:FuzzDecodeCloudTrail \
	activities/aws:FuzzReadTrust activities/aws:FuzzReadDenyAll activities/httpclient:FuzzSanitizeText activities/httpclient:FuzzRetryDelay activities/ticket:FuzzMarkdown \
	sensors/containermeta:FuzzParseCgroupPath sensors/snapshot:FuzzParseSocketLine sensors/redact:FuzzArgs sensors/rules:FuzzLoad sensors/baseline:FuzzRead

fuzz: ## fuzz every parser for a minute each
	@for p in $(FUZZ); do $(GO) test -run '^$$' -fuzz "$${p##*:}\$$" -fuzztime 60s -fuzzminimizetime 10x ./$${p%%:*} || exit 1; done

soak: build setup ## run 10 minutes of benign load and 5 minutes without a gateway; make test does both in seconds
	@STANCH_BENIGN=10m STANCH_TEST_AWAY=5m bash scripts/soak.sh "$(LAB)"

mutation: ## measure whether the tests of guards, leases, attestation and approvals notice wrong code (10 minutes)
	@$(GO) run ./testenv/mutation

clean: ## remove build output
	rm -rf bin dist .cache

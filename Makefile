# machine: see README.md. Every target works from a clean clone.
export CGO_ENABLED := 0
VERSION := $(shell cat VERSION 2>/dev/null || echo dev)
COMMIT := $(shell git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X machine/agent.Version=$(VERSION) -X machine/agent.GitCommit=$(COMMIT)
CLIFLAGS := -s -w -X machine/cli.Version=$(VERSION) -X machine/cli.Commit=$(COMMIT)
GO := go build -trimpath
ARCHS := amd64 arm64
HOSTARCH := $(shell go env GOARCH)
SOURCES := $(wildcard $(shell git ls-files -co --exclude-standard '*.go' 2>/dev/null)) go.mod go.sum

.SECONDARY:
# make help lists the targets
.PHONY: help build shims agents test race lint bench bench-many bench-images bench-scp bench-fleet interrupted powercut upgrade-from broken faults fuzz vm demo demo-clean accept clean

build: bin/machine bin/agent ## build bin/machine, with the agents inside, and bin/agent

# the per-container process, carried by the agent
shims: $(ARCHS:%=agent/shim/embed/shim-%)
agent/shim/embed/shim-%: $(SOURCES)
	GOOS=linux GOARCH=$* $(GO) -ldflags '-s -w' -o $@ ./agent/shim/main

# the engine, carried by the command line
agents: $(ARCHS:%=provision/embed/agent-linux-%.zst)
bin/agent-linux-%: $(SOURCES) | shims
	GOOS=linux GOARCH=$* $(GO) -ldflags '$(LDFLAGS)' -o $@ ./agent/agentd
provision/embed/agent-linux-%.zst: bin/agent-linux-% bin/dev/pack
	bin/dev/pack $< $@
bin/dev/%: $(SOURCES)
	$(GO) -o $@ ./scripts/dev/$*

bin/agent: bin/agent-linux-$(HOSTARCH)
	cp $< $@
bin/machine: $(SOURCES) agents
	$(GO) -ldflags '$(CLIFLAGS)' -o $@ ./cli/machine

test: build ## all tests, isolated, with a summary
	scripts/dev/test.sh ./...
race: build ## the same under the race detector
	GOTMPDIR=/var/tmp CGO_ENABLED=1 go test -exec $(CURDIR)/scripts/dev/isolated.sh -race -count=1 -p 2 -timeout 25m ./...
lint: ## gofmt, vet, also for darwin and windows
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -l $$(git ls-files '*.go'); exit 1; }
	go vet -tags vm,upgrade ./...
	GOOS=darwin go vet ./cli/... ./drivers/... ./provision/... ./certs/...
	GOOS=windows go vet ./cli/... ./drivers/... ./provision/... ./certs/...
accept: build ## the acceptance tests alone
	scripts/dev/test.sh ./acceptance/...
bench: build ## the table of budgets, beside dockerd where it is installed
	scripts/dev/isolated.sh go test -run '^$$' -bench Budgets -benchtime 1x -count 1 -v -timeout 30m ./acceptance/bench/...
	NO_NEWLINE_MIB=1024 scripts/dev/isolated.sh go test -run TestF42NoNewline -count 1 -v ./acceptance/docker
bench-images: bin/agent ## rates of load, save, push and pull beside dockerd's; BENCH_IMAGE_ROUNDS=1
	BENCH_IMAGES=1 scripts/dev/isolated.sh scripts/dev/journal.sh go test -run '^$$' -bench 'BenchmarkImages|BenchmarkExchange' -benchtime 1x -count 1 -v -timeout 60m ./acceptance/bench/
powercut: ## 250 power cuts under the image store, at random moments; POWERCUT_SEED
	POWERCUT_ROUNDS=$${POWERCUT_ROUNDS:-250} scripts/dev/isolated.sh go test -run F31 -count 1 -v -timeout 30m ./agent/image ./agent/layer/overlay
upgrade-from: bin/agent ## take over what the agent of an older commit runs, and back; REV=commit
	scripts/dev/upgrade-from.sh $(REV)
broken: shims ## break the tree row by row: each security test must see it; ROWS="S5 mask"
	go run ./scripts/dev/broken $(ROWS)
vm: build ## kernel tests under Debian's kernel with cgroup v2, emulated; VM_RUN=regexp VM_PKGS=packages
	scripts/dev/vm.sh $(VM_PKGS)
fuzz: ## every fuzz target for FUZZ_SECONDS=60
	scripts/dev/fuzz.sh
bench-scp: build ## our scp beside OpenSSH's
	scripts/dev/isolated.sh go test -run '^$$' -bench SCP -benchtime 1x -count 1 -timeout 20m ./cli
bench-fleet: build ## the command line on 20 hosts at once, and 400 machines of which half are gone
	scripts/dev/isolated.sh go test -run '^$$' -bench Fleet -benchtime 1x -count 1 -timeout 20m ./acceptance/bench/...
bench-many: build ## the same with 1,000 containers on one agent
	scripts/dev/isolated.sh go test -run '^$$' -bench Many -benchtime 1x -count 1 -v -timeout 20m ./acceptance/bench/...
faults: build ## kill the agent at every named step, ROUNDS (5) times each
	scripts/dev/isolated.sh go test -run '^$$' -bench KillMatrix -benchtime 1x -count 1 -timeout 60m ./acceptance/faults/...
interrupted: ## N=500 creates, cut off at random moments; SEED repeats a run
	INTERRUPTED=$${N:-500} INTERRUPTED_SEED=$$SEED scripts/dev/isolated.sh go test -v -run TestInterrupted -count 1 -timeout 60m ./cli
demo: ## from a clean clone to a container on its published port
	scripts/demo.sh
demo-clean: ## take the demo's machine away
	scripts/demo.sh clean
clean: ## remove what was built
	rm -rf bin provision/embed/agent-linux-* agent/shim/embed/shim-*
help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | sort | awk -F'\t' '{printf "%-12s %s\n", $$1, $$2}'

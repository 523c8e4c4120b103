# make test: what the tests need (Debian packages), all the builds, all the tests. make help: the rest.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

# What only the tests and the benchmark need. The agent itself needs a Linux kernel.
PACKAGES := apache2-utils busybox-static containernetworking-plugins crun curl dbus-daemon debootstrap docker-registry iproute2 iptables jq nftables podman procps skopeo strace util-linux xz-utils zstd \
	dpkg-dev gcc libc6-dev
# A small virtual machine with cgroup v2 alone.
VM_PACKAGES := busybox-static cpio e2fsprogs jq kmod qemu-system-x86
# The other side of `make bench`.
BENCH_PACKAGES := netavark aardvark-dns catatonit conmon e2fsprogs

HOST := $(shell rustc -vV | sed -n 's/^host: //p')

.PHONY: help cluster conformance helm soak clusterbench controlplane test packages vm-packages build images plugins unit e2e v2 tools deb bench netbench oracle lint check clean

help: ## This list
	@grep -E '^[a-z0-9]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

test: packages vm-packages tools build images ## All tests: of the parts, end to end, and those of control groups on cgroup v2 too
	@e2e/count bash -c 'cargo test --workspace --no-fail-fast; on_v1=$$?; e2e/vm/tests short; on_v2=$$?; echo "e2e/vm: cgroup v1 ended with $$on_v1, v2 with $$on_v2"; exit $$((on_v1 | on_v2))'

vm-packages: packages
	@e2e/packages $(VM_PACKAGES)

packages: ## Debian packages that the tests need: only those that aren't there
	@e2e/packages $(PACKAGES)
	@command -v kubectl > /dev/null || e2e/packages kubernetes-client

build: ## The agent, its holder, the demo image's program and all tests
	cargo build --workspace --all-targets

images: packages ## library/{debian,nginx,redis,busybox} from Debian packages, for the tests' registry
	@e2e/images/build target/e2e

plugins: ## What speaks the kubelet's plugin APIs as others do: from the Go module proxy, needs Go
	@e2e/plugins/build target/e2e/plugins

unit: ## Tests that need neither images nor the whole agent
	cargo test --workspace --exclude e2e

e2e: packages tools build images ## The end-to-end tests alone
	cargo test -p e2e --no-fail-fast

v2: vm-packages ## The tests of control groups, in a virtual machine with cgroup v2 alone: all of them
	@e2e/count e2e/vm/tests

PACKAGE := target/package
tools: ## What the tests need that Debian hasn't
	@command -v cargo-deb > /dev/null || cargo install cargo-deb --locked

deb: ## One static binary, and a Debian package with it: target/package/nodeagent_VERSION_ARCH.deb
	@command -v cargo-deb > /dev/null || cargo install cargo-deb --locked
	RUSTFLAGS='-C target-feature=+crt-static -C relocation-model=static' cargo build --release --package nodeagent --target $(HOST)
	agent/packaging/deb target/$(HOST)/release/nodeagent $(PACKAGE)

controlplane: ## etcd, API server, controllers, kubectl of v1.37 and v1.34 from the Go module proxy; minutes, once (e2e/kubernetes up starts them)
	@e2e/controlplane/build target/e2e/controlplane
	@e2e/controlplane/build target/e2e/controlplane-v1.34 v1.34

helm: ## helm, from its Go module, in target/e2e/bin; minutes, once
	@command -v go > /dev/null || { echo 'go is not installed: apt-get install golang, or https://go.dev/dl' >&2; exit 1; }
	cd e2e/helm && CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o ../../target/e2e/bin/helm helm.sh/helm/v4/cmd/helm

cluster: packages tools build controlplane plugins helm ## The tests with what Go builds, which make test leaves out: a real control plane, real plugins
	cargo test -p e2e --features cluster --test cluster --test csi --test devices

soak: packages build controlplane ## 300 pods that come and go while the API server dies, and two nodes whose pods talk: minutes; ROUNDS=1 is shorter
	cargo test -p e2e --features cluster --test soak -- --test-threads 1 --nocapture

conformance: packages build controlplane ## Kubernetes' own node tests with this agent as the node: builds in ten minutes, runs as long
	@e2e/conformance/build target/e2e/conformance
	target/debug/conformance $(CONFORMANCE)

clusterbench: packages controlplane ## A node of a real cluster in figures: pods created, seen, deleted, many at once; memory; requests when idle
	cargo build --release --workspace
	target/release/clusterbench

bench: packages images ## Side by side with podman: a table, and target/bench.json; BENCH='start stop' picks parts, quick does fewer rounds
	@e2e/packages $(BENCH_PACKAGES)
	RUSTFLAGS='-C target-feature=+crt-static' cargo build -p demo --profile static --target $(HOST) --target-dir target/e2e/demo
	cargo build --release --workspace
	target/release/bench $(BENCH)
	cargo bench --package nodeagent --bench manifests

oracle: ## What Kubernetes' own code says to the manifests of agent/tests/apiserver, anew: needs Go
	cd e2e/oracle && go build -o ../../target/oracle .
	target/oracle agent/tests/apiserver/*.yaml > agent/tests/apiserver/said.txt
	target/oracle -d agent/tests/apiserver/defaults/given.yaml > agent/tests/apiserver/defaults/filled.yaml

netbench: packages images ## The pods' network alone, side by side: CNI ADD and DEL, in-process, a rule's change, throughput and requests, with 10 and 1,000 ports and Services, readiness
	@e2e/packages $(BENCH_PACKAGES)
	cargo build --release -p netplug --bins --examples
	cargo build --release --workspace
	target/release/examples/cni_speed
	target/release/examples/attach_speed
	target/release/examples/rule_speed
	target/release/examples/repair_speed
	target/release/examples/load
	target/release/bench us ready

lint: ## Format, clippy, licences
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- --deny warnings
	@if command -v cargo-deny > /dev/null; then cargo deny check; else echo 'cargo-deny is not installed: cargo install cargo-deny'; fi

check: lint test ## What a change must pass

clean: ## Everything that was built
	cargo clean

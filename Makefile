# One line per verb; what a verb does stands in scripts/ or hack/. `make` without a verb lists them.
PY ?= python3
.PHONY: help demo test test-fast test-train lint format generate lock cluster-up cluster-down cluster-status bench bench-resume bench-gpu images clean
help: ## list the verbs
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'
demo: ## the main job from nothing: cluster, training, preemption, bit-exact resume (KEEP=1 keeps the cluster; DAMAGE=1 damages the emergency checkpoint)
	@$(PY) scripts/demo $(if $(KEEP),--keep) $(if $(DAMAGE),--damage)
test: ## everything: lint, types, import rules, unit, store against the real S3 server, cluster tests
	@$(PY) scripts/test all
test-fast: ## lint, types, import rules, unit tests (no cluster, no S3 server)
	@$(PY) scripts/test fast
test-train: ## the library and its integrations, with the frameworks themselves
	@$(PY) scripts/test train
lint: ## ruff, mypy, import-linter
	@$(PY) scripts/test lint
format: ## format the code
	@$(PY) scripts/test format
generate: ## render crds/, the chart's copy and docs/api.md from the pydantic models
	@$(PY) scripts/run scripts/generate
lock: ## renew the hash-locked requirements (needs uv)
	@scripts/lock
cluster-up: ## a real two-node Kubernetes on this machine
	@hack/cluster/up
cluster-down: ## take it down; nothing is left
	@hack/cluster/down
cluster-status: ## what runs
	@hack/cluster/status
bench: ## benchmarks of this machine, into benchmarks/*/results (QUICK=1: the engine's alone, under ten minutes)
	@$(PY) scripts/run -m benchmarks
bench-resume: ## how long a preempted job stands still, 50 times each way, beside plain Kubernetes (hours; ROUNDS=n EACH=n ADD=1: in pieces)
	@ROUNDS=$(or $(ROUNDS),50) $(PY) scripts/run -m benchmarks time_to_resume
bench-gpu: ## the benchmarks that need a GPU; where there is none they say so
	@$(PY) scripts/run -m benchmarks --gpu

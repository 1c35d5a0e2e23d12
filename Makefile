.DEFAULT_GOAL := help

# What `make bench` runs, and how often: make bench BENCH=Claim COUNT=10
BENCH ?= .
COUNT ?= 1

.PHONY: help
help: ## List what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: dev
dev: ## Run Pawl with a private Postgres and the example
	go run ./cmd/pawl dev

.PHONY: test
test: ## Run the tests, on a private Postgres
	go test ./...

.PHONY: race
race: ## Run the tests with the race detector (needs a C compiler)
	go test -race ./...

.PHONY: lint
lint: ## Check form and likely mistakes
	.ci/tool golangci-lint run

.PHONY: format
format: ## Put the code into its form
	.ci/tool golangci-lint fmt

.PHONY: generate
generate: ## Generate db/ from migrations/ and queries/
	.ci/tool sqlc generate

.PHONY: check-generated
check-generated: ## Check that db/ is what would be generated, and that Postgres takes every query
	.ci/tool sqlc diff
	go run ./.ci/vetdb .ci/tool sqlc vet

.PHONY: bench
bench: ## Run the benchmarks (BENCH=pattern COUNT=n)
	go test -run '^$$' -bench '$(BENCH)' -benchmem -count $(COUNT) ./...

.PHONY: ci
ci: ## Run all that CI runs
	.ci/run

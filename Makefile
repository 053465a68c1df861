# The few words people type:
#
#   make run          build, start a router and an edge on this machine for trying out; Ctrl-C ends both
#   make router       start the router of `make run` again, after it was killed
#   make test         every test, with the real binaries and with independent clients
#   make lint         formatting, clippy, shellcheck
#   make bench        a short durable chat with its history checked (bench/ has the rest)
#   make peers        other WebSocket servers beside this one: builds and measures them all, in minutes (bench/peers/)
#   make services-up  three NATS servers, three Kafka brokers where there is Java, on free ports, for hands (services/)
#   make services-down  ends them
#   make conformance  the Autobahn suite against the edge, over ws and wss: RFC 6455 and RFC 7692, every case strict
#
# Needs: stable Rust; for test also Go, Java, Maven and Redis (the real servers); for test and conformance Python 3 with venv and Node.js; for lint shellcheck; for peers what
# bench/peers/README.md says.

.PHONY: run router test lint bench peers conformance services-up services-down

run:
	@.ci/dev

router:
	@.ci/dev router

test:
	.ci/clients
	cargo build --workspace
	cargo test --workspace

lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	git grep --untracked -lE '^#!.*[/ ](ba)?sh$$' | xargs shellcheck

bench:
	cargo build --release --workspace
	cargo run --release --package hawser-bench -- chat --pairs 100 --seconds 10

peers:
	@bench/peers/run

services-up:
	@services/hands up

services-down:
	@services/hands down

conformance:
	@.ci/conformance
	@.ci/conformance --scheme wss

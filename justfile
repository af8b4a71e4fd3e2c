# The recipes of the project; `just` lists them. The whole gate is `.ci/run`.

# List the recipes
default:
    @just --list

# What a change is checked with while working: the quick part of the gate
check: test
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --no-deps

# All tests but the slow ones; `just test NAME` for some
test *ARGS:
    cargo test {{ARGS}}

# The slow tests too
test-all:
    cargo test
    cargo test -- --ignored

# The whole gate
ci:
    bash .ci/run

# Format the code
fmt:
    cargo fmt

# Time the parts; `just bench --bench route` for one
bench *ARGS:
    cargo bench {{ARGS}}

# isobar beside nginx, HAProxy and others, in interleaved rounds; benches/compare says how
compare *ARGS:
    bash benches/compare/run.sh {{ARGS}}

# Build the images of isobar and of the service that it balances in the examples
docker:
    docker build -t isobar .
    docker build -f examples/compose/users.Dockerfile -t isobar-users .

# Licences, bans, advisories and sources of what we depend on; needs cargo-deny
deny:
    cargo deny check

#!/bin/bash
# Everything that must hold, in one command: formatting, lints, documentation, licences, all tests, those against an
# installed Postfix included. A test that cannot run here counts as failed.
set -euo pipefail
cd "$(dirname "$0")/.."

export CI="${CI:-true}"
export CARGO_TERM_COLOR=never
export RUST_BACKTRACE="${RUST_BACKTRACE:-0}"

step() {
    printf '\n=== %s (%ss)\n' "$1" "$SECONDS"
}

step 'what the tests need'
bash scripts/install-test-deps.sh

step 'formatting'
cargo fmt --all --check
# Modules that a macro declares are not seen by cargo fmt.
rustfmt --check --edition 2024 crates/tables/src/*.rs

step 'lints'
cargo clippy --workspace --all-targets --locked -- -D warnings

step 'documentation'
RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --locked --quiet

step 'licences, bans, sources'
if ! command -v cargo-deny >/dev/null; then
    # Takes minutes; its failure is no failure of the project.
    CARGO_TARGET_DIR="${TMPDIR:-/tmp}/cargo-deny-build" cargo install cargo-deny --locked --quiet ||
        echo 'cargo-deny cannot be installed here'
fi
if command -v cargo-deny >/dev/null; then
    cargo deny --log-level error check bans licenses sources
fi

step 'build'
cargo build --workspace --locked

step 'tests'
cargo test --workspace --locked --no-fail-fast

step 'instructions'
cargo xtask instructions

step 'package'
if unshare --mount --net --pid --fork true 2>/dev/null; then
    POSTKEEP_BIN="${CARGO_TARGET_DIR:-target}/debug/postkeep" bash scripts/build-deb.sh "${CARGO_TARGET_DIR:-target}/debian"
    bash scripts/test-deb.sh "${CARGO_TARGET_DIR:-target}"/debian/postkeep_*.deb
else
    echo 'SKIP: the package is not tried, as there is no right to make namespaces here'
fi

step 'done'

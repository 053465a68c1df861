#!/usr/bin/env bash
# What the start scripts share. One sources this file, defines three functions and calls `main "$@"`:
#
#   start build      builds what is not built yet; prints only errors
#   start version    builds, then prints what was built, on one line
#   start PORT       builds, then becomes the server (exec: the caller's child is the server), on 127.0.0.1:PORT
#
# build_peer, print_version and serve PORT do it. Builds are kept in the target folder, under peers/.
set -euo pipefail

peers=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck disable=SC2034 # for the start scripts
here=$(cd "$(dirname "$0")" && pwd)
cache=$(realpath --canonicalize-missing "${CARGO_TARGET_DIR:-$peers/../../target}")/peers

main() {
    mkdir -p "$cache"
    case ${1:-} in
        build) build_peer >&2 ;;
        version) build_peer >&2 && print_version ;;
        '' | *[!0-9]*) fail "usage: start PORT | build | version" ;;
        *) build_peer >&2 && serve "$1" ;;
    esac
}

# cargo_build BINARY: from rust/, with the lock file as it is.
cargo_build() {
    cargo build --quiet --release --locked --manifest-path "$peers/rust/Cargo.toml" --target-dir "$cache/rust" --bin "$1"
}

# crate_version CRATE: as rust/Cargo.lock has it.
crate_version() {
    awk -v crate="\"$1\"" '$1 == "name" && $3 == crate { getline; gsub(/"/, "", $3); print $3 }' "$peers/rust/Cargo.lock"
}

# go_build: the module of the start script's folder, to $cache/bin/NAME.
go_build() {
    (cd "$here" && go build -buildvcs=false -trimpath -o "$cache/bin/$(basename "$here")" .)
}

# go_version MODULE: what the binary says it was built from.
go_version() {
    go version -m "$cache/bin/$(basename "$here")" \
        | awk -v module="$1" '($1 == "dep" || $1 == "mod") && $2 == module { print $3 }'
}

# npm_build: what package-lock.json names, without install scripts, to $cache/NAME/node_modules.
npm_build() {
    local folder
    folder=$cache/$(basename "$here")
    # The copy that is compared is written last: it says that the installation came to its end.
    if ! cmp --silent "$here/package-lock.json" "$folder/installed.json"; then
        mkdir -p "$folder"
        cp "$here/package.json" "$here/package-lock.json" "$folder/"
        npm --prefix "$folder" --loglevel error ci --ignore-scripts --no-audit --no-fund
        cp "$here/package-lock.json" "$folder/installed.json"
    fi
}

# node_run FILE ARGUMENT...: with what npm_build installed.
node_run() {
    NODE_PATH=$cache/$(basename "$here")/node_modules exec node "$@"
}

fail() {
    echo "$(basename "$here"): $*" >&2
    exit 64
}

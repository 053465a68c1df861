#!/usr/bin/env bash
# What the scripts share that start real servers for tests and for trying out. One sources this file, defines the functions
# below and calls `main "$@"`; it then has these verbs:
#
#   NAME fetch                     builds or downloads what is not there yet; safe when two do it at once
#   NAME start FOLDER [OPTION...]  fetches, starts on free ports of 127.0.0.1, returns when it serves. All data and logs are
#                                  in FOLDER; FOLDER/address says where it serves (host:port, comma between several),
#                                  FOLDER/N/pid and FOLDER/N/log belong to server N, counted from 1
#   NAME kill-node FOLDER N        SIGKILL, and waits until it is gone
#   NAME start-node FOLDER N       starts it again on the same ports and data; returns when it takes connections
#   NAME stop FOLDER               ends all and waits; leaves nothing running
#
# To define:
#
#   fetch_service                  brings what is needed into $cache. Holds the lock; prints to standard error only
#   configure OPTION...            writes $folder/N for every server (also of a folder used before), and $folder/address
#   serve N                        becomes the server (exec); runs in $folder/N, its output goes to $folder/N/log
#   node_serves N                  true when it takes connections
#   all_serve                      true when the whole does what it is for
#
# Builds and downloads are kept in ${HAWSER_SERVICES:-target/services}.
set -euo pipefail

name=$(basename "$0")
services=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=$(realpath --canonicalize-missing "${HAWSER_SERVICES:-$services/../target/services}")

# Longest wait for a server to serve, and for one to end by itself before it is killed.
readonly start_seconds_max=180 stop_seconds_max=10

main() {
    local verb=${1:-}
    [[ $verb == fetch || -n ${2:-} ]] || usage
    if [[ $verb == fetch ]]; then
        fetch
        return
    fi
    folder=$(realpath --canonicalize-missing "$2")
    shift 2
    case $verb in
        start)
            fetch
            mkdir -p "$folder"
            configure "$@"
            start_all
            ;;
        kill-node) kill_node "${1:?$name kill-node FOLDER N}" ;;
        start-node)
            launch "${1:?$name start-node FOLDER N}"
            wait_until "server $1 did not start" node_lives_and_serves "$1"
            ;;
        stop) stop_all ;;
        *) usage ;;
    esac
}

usage() {
    fail "usage: $name fetch | start FOLDER [OPTION...] | kill-node FOLDER N | start-node FOLDER N | stop FOLDER"
}

fail() {
    echo "$name: $*" >&2
    exit 1
}

fetch() {
    mkdir -p "$cache"
    (
        flock 9
        fetch_service
    ) 9>"$cache/$name.lock" >&2
}

# free_ports COUNT: prints so many ports of 127.0.0.1 that nothing listens on, one a line. They lie below those that the
# kernel gives to outgoing connections, so that a server that is started again finds its port free.
free_ports() {
    local lowest=10000 above port
    local -A taken=()
    read -r above _ </proc/sys/net/ipv4/ip_local_port_range
    while ((${#taken[@]} < $1)); do
        port=$((lowest + SRANDOM % (above - lowest)))
        if [[ -z ${taken[$port]:-} ]] && ! port_answers "$port"; then
            taken[$port]=1
            echo "$port"
        fi
    done
}

# port_answers PORT: whether something listens there.
port_answers() {
    (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null
}

# wait_until SENTENCE COMMAND...: runs the command until it is true; fails with the sentence when that takes too long.
wait_until() {
    local sentence=$1 deadline=$((SECONDS + start_seconds_max))
    shift
    until "$@"; do
        ((SECONDS < deadline)) || fail "$sentence within $start_seconds_max s; see $folder/*/log"
        sleep 0.05
    done
}

# The numbers of all servers of the folder.
nodes() {
    local place
    for place in "$folder"/[0-9]*/; do
        [[ -d $place ]] && basename "$place"
    done
}

# is_running N: the working folder tells our server from a stranger that got its number, and from what waits to be reaped.
is_running() {
    local pid
    pid=$(cat "$folder/$1/pid" 2>/dev/null) || return 1
    [[ $(readlink "/proc/$pid/cwd") == "$folder/$1" ]]
}

node_lives_and_serves() {
    is_running "$1" || fail "server $1 ended: $(tail -n 5 "$folder/$1/log")"
    node_serves "$1"
}

start_all() {
    local node
    trap stop_all EXIT
    for node in $(nodes); do
        launch "$node"
    done
    for node in $(nodes); do
        wait_until "server $node did not start" node_lives_and_serves "$node"
    done
    wait_until "it did not get ready" all_serve
    trap - EXIT
}

launch() {
    ! is_running "$1" || fail "server $1 of $folder runs already"
    (
        cd "$folder/$1"
        serve "$1"
    ) </dev/null >>"$folder/$1/log" 2>&1 &
    echo $! >"$folder/$1/pid"
    # Until it is in its folder it would be taken for a stranger.
    wait_until "server $1 did not start" is_running_or_ended "$1"
}

is_running_or_ended() {
    is_running "$1" || [[ ! -e /proc/$(cat "$folder/$1/pid") ]]
}

kill_node() {
    is_running "$1" || return 0
    kill -KILL "$(cat "$folder/$1/pid")"
    wait_until "server $1 did not end" is_gone "$1"
}

is_gone() {
    ! is_running "$1"
}

stop_all() {
    local node deadline=$((SECONDS + stop_seconds_max))
    for node in $(nodes); do
        if is_running "$node"; then
            kill -TERM "$(cat "$folder/$node/pid")"
            # It may have been paused.
            kill -CONT "$(cat "$folder/$node/pid")" 2>/dev/null || true
        fi
    done
    for node in $(nodes); do
        while is_running "$node" && ((SECONDS < deadline)); do
            sleep 0.05
        done
        kill_node "$node"
        rm -f "$folder/$node/pid"
    done
}

# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # shared with the scripts that source it
# What so many connections need of a machine: the arithmetic that `check` and `apply` share, so that what one
# writes the other finds good. README.md tells the reasons and the sources.
#
# To be sourced. Reads the variables `connections`, `root` (empty, or a folder with copies of /proc and /sys) and
# `with_clients` (empty unless N clients run on the machine, too) of the script that sources it; changes nothing.

connections_ceiling=100000000
page_bytes=4096

# ---- The edge's own figures (edge/src/limits.rs, edge/src/plan.rs; edge/tests/tuning.rs holds them together)

# Most shards of one edge.
shards_max=4096
# Direct descriptors of a shard beside its connections.
sockets_spare=128
# Ordinary descriptors: of a shard, and of the process beside its shards.
shard_descriptors=12
process_descriptors=128
# Locked memory of one shard, in KiB: with the largest ring, and with each smaller one that the edge takes when it has to.
ring_kib=(660 216 140 100)
# The ring to begin with when there are more shards than cores.
ring_crowded=2
# Each shard's executor refuses a lower limit, also with CAP_IPC_LOCK.
memlock_kib_min=512

# ---- What a connection and a shard take (measured; README.md)

connection_bytes=$((4608 + 256))
shard_memory_kib=$((16 * 1024))
# Packets that the machine receives for one client that comes back.
comeback_packets=8
# All clients come back within so many seconds.
comeback_seconds=10

# descriptors_needed SHARDS: RLIMIT_NOFILE of the edge. It bounds each ring's table, and the ordinary ones.
descriptors_needed() {
    local table ordinary
    table=$(($(divide_up "$connections" "$1") + sockets_spare))
    ordinary=$((process_descriptors + $1 * shard_descriptors))
    echo $((table > ordinary ? table : ordinary))
}

# shards_under LIMIT CORES: how many shards the edge runs by itself under that RLIMIT_NOFILE.
shards_under() {
    local room=$(($1 - sockets_spare)) needed
    needed=$(divide_up "$connections" $((room > 0 ? room : 1)))
    echo $(($2 > needed ? $2 : needed))
}

# memlock_needed SHARDS CORES: KiB of locked memory with which the edge takes the ring that it likes best.
memlock_needed() {
    local each=${ring_kib[0]}
    (($1 <= $2)) || each=${ring_kib[ring_crowded]}
    local needed=$(($1 * each))
    echo $((needed > memlock_kib_min ? needed : memlock_kib_min))
}

# memlock_least SHARDS: KiB of locked memory below which the edge does not start.
memlock_least() {
    local needed=$(($1 * ring_kib[-1]))
    echo $((needed > memlock_kib_min ? needed : memlock_kib_min))
}

# memory_needed SHARDS: KiB. Four fifths of the memory: the rest is for the system and for messages in flight.
memory_needed() {
    local needed=$((connections * connection_bytes / 1024 + $1 * shard_memory_kib))
    [[ -z $with_clients ]] || needed=$((needed * 2))
    echo $((needed * 5 / 4))
}

# Every socket of the machine is an open file of the system, in whichever table it stands.
files_needed() {
    echo $((connections * (${#with_clients} > 0 ? 2 : 1) + 65536))
}

# accept_queue_needed LISTENERS: each holds what arrives in one second of a comeback. The edge has one a core, or one a
# shard where these are fewer.
accept_queue_needed() {
    between 4096 $((connections / comeback_seconds / $1)) 65535
}

# handshakes_needed LISTENERS: as many can be in the middle of the TCP handshake.
handshakes_needed() {
    between 1024 $((connections / comeback_seconds / $1)) 65535
}

# packet_queue_needed CORES: a core's queue holds 10 ms of the packets of a comeback.
packet_queue_needed() {
    between 1000 $((connections * comeback_packets / comeback_seconds / 100 / $1)) 65535
}

# Pages at the mark where the kernel starts to save, and where it refuses: one and two a connection.
tcp_memory_needed() {
    echo "$connections $((connections * 2))"
}

# tcp_buffer_most PAGES: bytes of one buffer so that a hundredth of the connections, stuck with both full, stays
# under the third mark of net.ipv4.tcp_mem, PAGES.
tcp_buffer_most() {
    echo $(($1 * page_bytes * 100 / connections / 2))
}

# A quarter more than connections, for those that have closed and not yet timed out.
tracked_needed() {
    echo $((connections + connections / 4))
}

# ---- Words

read_file() {
    [[ -r $root$1 ]] && cat "$root$1" 2>/dev/null
}

# Cores that this process may use; of the copied machine where there is one.
cores() {
    local list
    if [[ -n $root ]] && list=$(read_file /sys/devices/system/cpu/online); then
        cpu_count "$list"
    else
        nproc
    fi
}

# cpu_numbers LIST: each core of a list such as 0-3,8 on a line.
cpu_numbers() {
    local range
    local ranges=()
    IFS=, read -ra ranges <<<"$1"
    for range in "${ranges[@]}"; do
        seq "${range%-*}" "${range#*-}"
    done
}

# cpu_count LIST: how many these are.
cpu_count() {
    cpu_numbers "$1" | wc -l
}

# cpu_list FLAG [LIST ...]
cpu_list() {
    [[ ${2:-} =~ ^[0-9]{1,4}(-[0-9]{1,4})?(,[0-9]{1,4}(-[0-9]{1,4})?)*$ ]] ||
        usage "$1: \"${2:-}\" is not a list of cores such as 0-11 or 0,2,4-7"
    echo "$2"
}

divide_up() {
    echo $((($1 + $2 - 1) / $2))
}

# between LEAST VALUE MOST
between() {
    local value=$2
    ((value >= $1)) || value=$1
    ((value <= $3)) || value=$3
    echo "$value"
}

# whole_number FLAG [VALUE ...] MAX
whole_number() {
    local digits=${2:-} max=${!#}
    digits=${digits//_/}
    # Ten digits at most: bash computes with 64 bits and tells nobody when they overflow.
    if (($# < 3)) || ! [[ $digits =~ ^[0-9]{1,10}$ ]] || ((10#$digits < 1 || 10#$digits > max)); then
        (($# < 3)) && usage "$1: a value is missing; allowed are 1 to $max"
        usage "$1: \"$2\" is not allowed; allowed are 1 to $max"
    fi
    echo $((10#$digits))
}

# help SCRIPT: its leading comment.
help() {
    sed -n '2,/^set /{/^set /d; s/^# \{0,1\}//; p;}' "$1"
}

usage() {
    echo "tuning/$(basename "$0"): $1" >&2
    exit 64
}

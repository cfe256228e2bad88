#!/bin/sh
# Puts and gets of Rangekeeper beside those of Redis with one fsync per write, on this machine.
#
#   scripts/bench.sh [BINARIES]          BINARIES: .build/release unless told
#   SECONDS_EACH=10 CONNECTIONS=64 RECORDS=100000 PIPELINE=1 scripts/bench.sh
#
# Starts a playground in a directory of its own, and redis-server (appendonly yes, appendfsync
# always) in another; both on the disk of TMPDIR (/tmp unless set). Stops and removes both.
set -eu

binaries=${1:-.build/release}
seconds=${SECONDS_EACH:-10}
connections=${CONNECTIONS:-64}
records=${RECORDS:-100000}
pipeline=${PIPELINE:-1}
port_base=${PORT_BASE:-17600}
redis_port=$((port_base + 90))

for program in kvctl kvbench; do
    if [ ! -x "$binaries/$program" ]; then
        echo "bench: no $binaries/$program: build first (make build)" >&2
        exit 1
    fi
done

directory=$(mktemp -d "${TMPDIR:-/tmp}/rangekeeper-bench.XXXXXX")
redis_pid=
stop() {
    "$binaries/kvctl" playground down --dir "$directory/cluster" --wipe --yes 2>/dev/null || true
    if [ -n "$redis_pid" ]; then
        kill "$redis_pid" 2>/dev/null || true
        wait "$redis_pid" 2>/dev/null || true
    fi
    rm -rf "$directory"
}
trap stop EXIT
trap 'exit 130' INT TERM

# measure NAME PORT COMMAND WORKLOAD [FLAGS]: one run, its JSON kept under NAME.
measure() {
    name=$1
    port=$2
    command=$3
    workload=$4
    shift 4
    echo "bench: $name" >&2
    if ! "$binaries/kvbench" --port "$port" --command "$command" --workload "$workload" \
        --connections "$connections" --records "$records" --json "$@" >"$directory/$name.json"; then
        echo "bench: $name had errors: $(cat "$directory/$name.json")" >&2
        failed=1
    fi
}

# field NAME FIELD: a number of a report.
field() { sed 's/.*"'"$2"'":\([0-9.]*\).*/\1/' "$directory/$1.json"; }

failed=0
duration="${seconds}s"

# One after the other, so that neither server takes the other's processor.
"$binaries/kvctl" playground up --dir "$directory/cluster" --port-base "$port_base" --detach \
    >/dev/null
measure rk-load "$port_base" hset load --pipeline 16
measure rk-put "$port_base" hset put --pipeline "$pipeline" --duration "$duration"
measure rk-get "$port_base" hset get --pipeline "$pipeline" --duration "$duration"
"$binaries/kvctl" playground down --dir "$directory/cluster" --wipe --yes

if command -v redis-server >/dev/null; then
    mkdir "$directory/redis"
    redis-server --port "$redis_port" --bind 127.0.0.1 --dir "$directory/redis" --save '' \
        --appendonly yes --appendfsync always >"$directory/redis.log" 2>&1 &
    redis_pid=$!
    tries=0
    until redis-cli -p "$redis_port" ping >/dev/null 2>&1; do
        tries=$((tries + 1))
        if [ "$tries" -gt 100 ]; then
            echo "bench: redis-server does not start: $(tail -3 "$directory/redis.log")" >&2
            exit 1
        fi
        sleep 0.1
    done
    measure redis-load "$redis_port" set load --pipeline 16
    measure redis-put "$redis_port" set put --pipeline "$pipeline" --duration "$duration"
    measure redis-get "$redis_port" set get --pipeline "$pipeline" --duration "$duration"
else
    echo "bench: redis-server is not installed: no peer to compare with" >&2
fi

echo "$connections connections, $pipeline in flight each, $records records, $seconds s each," \
    "$(nproc) processors"
printf '%-6s %14s %10s %10s %14s %10s %10s %7s\n' \
    "" rangekeeper/s "p50 ms" "p99 ms" redis/s "p50 ms" "p99 ms" ratio
for workload in put get; do
    ours=$(field rk-$workload throughput)
    if [ -n "$redis_pid" ]; then
        peer=$(field redis-$workload throughput)
        peer50=$(field redis-$workload p50)
        peer99=$(field redis-$workload p99)
    else
        peer=0 peer50=0 peer99=0
    fi
    awk -v w=$workload -v o="$ours" -v o50="$(field rk-$workload p50)" \
        -v o99="$(field rk-$workload p99)" -v p="$peer" -v p50="$peer50" -v p99="$peer99" 'BEGIN {
        printf "%-6s %14.0f %10.2f %10.2f ", w, o, o50 / 1000, o99 / 1000
        if (p > 0) printf "%14.0f %10.2f %10.2f %7.2f\n", p, p50 / 1000, p99 / 1000, o / p
        else printf "%14s %10s %10s %7s\n", "-", "-", "-", "-"
    }'
done
exit "$failed"

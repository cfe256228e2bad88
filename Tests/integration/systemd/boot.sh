#!/bin/bash
# boot.sh DIRECTORY: boots the systemd of this machine in a container of its own, with a copy of this
# machine's file system that is gone afterwards, and runs DIRECTORY/main.py there, which sees
# DIRECTORY as /out. As root. Ends when the checks have; 77 and a word when it cannot be done here.
#
# All mounts are made in a mount namespace of its own, so this machine keeps its own.
set -uo pipefail
cannot() { echo "$1"; exit 77; }
[[ $(id -u) == 0 ]] || cannot "not root"
command -v systemd-nspawn >/dev/null || cannot "no systemd-nspawn (package systemd-container)"
unshare --mount true 2>/dev/null || cannot "no mount namespaces"
[[ -d /lib/systemd/system ]] || cannot "no systemd on this machine"
directory=$(realpath "$1")
machine=rangekeeper-$$

unshare --mount --propagation private bash -uo pipefail -c '
    directory=$1 machine=$2
    cannot() { echo "$1"; exit 77; }
    while umount -R /sys/fs/cgroup 2>/dev/null; do :; done
    mount -t tmpfs tmpfs /run || cannot "no tmpfs"
    mount -t cgroup2 none /sys/fs/cgroup || cannot "no second hierarchy of cgroups"
    mkdir "/sys/fs/cgroup/$machine" && echo $$ > "/sys/fs/cgroup/$machine/cgroup.procs" ||
        cannot "no cgroup can be made"
    root=/run/root
    mkdir /run/upper /run/work $root
    mount -t overlay overlay -o lowerdir=/,upperdir=/run/upper,workdir=/run/work $root ||
        cannot "no overlay of the file system"
    # Of the machine whose copy this is: services that are enabled, what keeps packages from starting
    # theirs, and the journal.
    rm -rf $root/etc/systemd/system/*.wants $root/usr/sbin/policy-rc.d $root/var/log/journal
    mkdir -p $root/etc/systemd/system $root/out $root/etc/systemd/journald.conf.d
    printf "[Journal]\nStorage=volatile\nRateLimitBurst=0\n" \
        > $root/etc/systemd/journald.conf.d/checks.conf
    cat > $root/etc/systemd/system/checks.service <<UNIT
[Unit]
SuccessAction=exit-force
FailureAction=exit-force
[Service]
Type=oneshot
ExecStart=/usr/bin/python3 /out/main.py
StandardOutput=append:/out/checks.log
StandardError=append:/out/checks.log
TimeoutStartSec=infinity
UNIT
    cat > $root/etc/systemd/system/checks.target <<UNIT
[Unit]
Requires=basic.target checks.service
After=basic.target
AllowIsolate=yes
UNIT
    SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 systemd-nspawn --quiet --machine="$machine" \
        --register=no --keep-unit --directory=$root --bind="$directory:/out" --boot \
        --console=pipe --private-network --link-journal=no \
        systemd.unit=checks.target systemd.mask=systemd-networkd-wait-online.service
    status=$?
    # nspawn leaves the cgroups of its payload.
    echo $$ > /sys/fs/cgroup/cgroup.procs
    find "/sys/fs/cgroup/$machine" -depth -type d -exec rmdir {} +
    exit $status
' boot "$directory" "$machine" < /dev/null > "$directory/console.log" 2>&1
status=$?
[[ $status != 77 ]] || tail -1 "$directory/console.log"
exit $status

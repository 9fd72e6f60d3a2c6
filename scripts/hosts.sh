# Hosts on this machine, for scripts/drill, which sources it after lib.sh: each has
# network, mount, host name and process namespaces of its own, its own /run, and a Docker. They are joined by a bridge in one more
# network namespace; nothing leaves the machine.
#
#   hosts_dir   set before: where the hosts' directories are
#   hosts_tag   set before: begins the names of namespaces and control groups
# shellcheck shell=sh

# shellcheck disable=SC2154 # set by who sources this
host_dir() { echo "$hosts_dir/$1"; }
host_net() { echo "$hosts_tag-$1"; }
# host_ip N: the address of host number N.
host_ip() { echo "10.78.0.$1"; }

hosts_network() {
    ip netns add "$hosts_tag-switch"
    ip -n "$hosts_tag-switch" link set lo up
    ip -n "$hosts_tag-switch" link add bridge type bridge
    ip -n "$hosts_tag-switch" link set bridge up
}

# host_wire NAME N: its place in the network.
host_wire() {
    net=$(host_net "$1")
    ip netns add "$net"
    ip -n "$net" link set lo up
    ip -n "$net" link add eth0 type veth peer name "port$2" netns "$hosts_tag-switch"
    ip -n "$net" addr add "$(host_ip "$2")/24" dev eth0
    ip -n "$net" link set eth0 up
    ip -n "$hosts_tag-switch" link set "port$2" master bridge up
}

# What runs as first process of a host: $1 is its directory, $2 its name, $3 the control group of its containers.
# shellcheck disable=SC2016 # expanded there
host_script='
    set -eu
    hostname "$2"
    mount -t proc proc /proc
    mount -t tmpfs tmpfs /run
    mkdir -p /run/containerd
    containerd --root "$1/containerd" --state /run/containerd --address /run/containerd/containerd.sock \
        --log-level warn >"$1/containerd.log" 2>&1 &
    dockerd --data-root "$1/docker" --exec-root /run/docker --pidfile /run/docker.pid --host unix:///run/docker.sock \
        --containerd /run/containerd/containerd.sock --exec-opt native.cgroupdriver=cgroupfs --cgroup-parent "/$3" \
        >"$1/docker.log" 2>&1 &
    # Reaps whatever ends in the background.
    while :; do sleep 1; done
'

# host_boot NAME: a blank host comes up, with a Docker that has the image busybox.
host_boot() {
    dir=$(host_dir "$1")
    mkdir -p "$dir"
    nsenter --net="/run/netns/$(host_net "$1")" unshare --mount --uts --pid --fork --kill-child --propagation private \
        /bin/sh -c "$host_script" drill-host "$dir" "$1" "$hosts_tag-$1" </dev/null >"$dir/host.log" 2>&1 9>&- &
    echo $! >"$dir/pid"
    i=0
    until docker_on "$1" version >/dev/null 2>&1; do
        i=$((i + 1))
        [ $i -lt 600 ] || die "Docker does not come up on $1: $(tail -n 5 "$dir/docker.log")"
        sleep 0.1
    done
    docker_on "$1" import - busybox <"$hosts_dir/image.tar" >/dev/null
}

# The process outside that is the first one inside.
host_init() {
    parent=$(cat "$(host_dir "$1")/pid")
    # shellcheck disable=SC2046 # one word or none
    set -- $(cat "/proc/$parent/task/$parent/children" 2>/dev/null)
    [ -n "${1:-}" ] || return 1
    echo "$1"
}

# on NAME COMMAND...: runs it there.
on() {
    init=$(host_init "$1") || return 1
    shift
    # Without what the caller keeps open as long as it lives.
    nsenter --target "$init" --mount --uts --net --pid "$@" 9>&-
}

docker_on() {
    name=$1
    shift
    on "$name" docker --config "$(host_dir "$name")/docker-config" --host unix:///run/docker.sock "$@"
}

# host_kill NAME: its power goes; all that runs on it ends at once.
host_kill() {
    pid=$(cat "$(host_dir "$1")/pid" 2>/dev/null) || return 0
    rm -f "$(host_dir "$1")/pid"
    tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -q -F -- "$hosts_dir" || return 0
    kill -9 "$pid" 2>/dev/null || true
    while kill -0 "$pid" 2>/dev/null && [ "$(sed 's/.*) //; s/ .*//' "/proc/$pid/stat" 2>/dev/null)" != Z ]; do sleep 0.1; done
    wait "$pid" 2>/dev/null || true
}

# host_wipe NAME: its disk goes, too.
host_wipe() {
    host_kill "$1"
    # Never across a mount.
    rm -rf --one-file-system "$(host_dir "$1")"
}

# An image with busybox and nothing else.
hosts_image() {
    busybox=$(command -v busybox) || die "busybox is missing"
    mkdir -p "$hosts_dir/image/bin"
    for name in tmp data proc sys dev etc; do mkdir -p "$hosts_dir/image/$name"; done
    cp "$busybox" "$hosts_dir/image/bin/busybox"
    for applet in $("$busybox" --list); do
        [ "$applet" = busybox ] || ln -sf busybox "$hosts_dir/image/bin/$applet"
    done
    tar -C "$hosts_dir/image" -cf "$hosts_dir/image.tar" .
}

# hosts_clear NAME...: ends and removes all of it, whatever state it is in.
hosts_clear() {
    for name in "$@"; do host_kill "$name"; done
    for name in "$@"; do
        ip netns del "$(host_net "$name")" 2>/dev/null || true
    done
    ip netns del "$hosts_tag-switch" 2>/dev/null || true
    # Groups are empty a moment after the last process has gone.
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        find /sys/fs/cgroup -depth -type d -path "*/$hosts_tag-*" -exec rmdir {} + 2>/dev/null || true
        [ -n "$(find /sys/fs/cgroup -type d -path "*/$hosts_tag-*" 2>/dev/null)" ] || break
        sleep 0.2
    done
    rm -rf --one-file-system "$hosts_dir"
}

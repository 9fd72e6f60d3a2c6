# Removes what a test left on the machine, as listed in its state directory ($1). Waits for the end of its standard
# input first, which is the end of the test; after $2 seconds it ends a test that hangs, by ending its daemons.
dir=$1
limit=$2
case $dir in /tmp/bramble-test-*) ;; *) exit 1 ;; esac
trap '' INT TERM HUP
timeout "$limit" cat >/dev/null || echo "the test took more than $limit s: ending its daemons" >&2

lines() { [ -e "$dir/$1" ] && cat "$dir/$1"; }

groups() { find /sys/fs/cgroup -depth -type d -path "*/$(basename "$dir")-*" 2>/dev/null; }

# What a test has frozen would keep its processes.
lines mounts | grep '/medium$' | while read -r medium; do
    fsfreeze -u "$medium" 2>/dev/null
done

# A process id may have been given to another program since: the command line must name the state directory.
for pid in $(lines pids); do
    grep -q -F -- "$dir" "/proc/$pid/cmdline" 2>/dev/null && kill -9 "$pid"
done 2>/dev/null
lines mounts | sort -r | while read -r mount; do
    while grep -q -F -- " $mount " /proc/self/mounts && umount -l "$mount"; do :; done
done
for loop in $(lines loops); do
    losetup "$loop" 2>/dev/null | grep -q -F -- "$dir" && losetup -d "$loop"
done
for netns in $(lines netns); do
    [ -e "/run/netns/$netns" ] && ip netns del "$netns"
done
# Containers and machines that were killed leave their control groups behind, which are empty a moment later.
tries=0
while [ $tries -lt 100 ] && [ -n "$(groups)" ]; do
    [ $tries = 0 ] || sleep 0.1
    groups | while read -r group; do rmdir "$group"; done 2>/dev/null
    tries=$((tries + 1))
done
rm -rf --one-file-system "$dir"
exit 0

# A machine of its own for systemd: namespaces, control groups and a root that takes what is written to itself. Runs
# systemd as its first process until that ends. $1 is a directory for all that, $2 the program, $3 the units.
#
# Only what is given here is started: the units of the machine under it would change its settings.
set -eu
dir=$1
if [ "${4:-}" != inside ]; then
    group=bramble-$(basename "$dir")
    for controller in /sys/fs/cgroup/*/; do
        [ -e "$controller/cgroup.procs" ] || continue
        mkdir -p "$controller/$group"
        for file in cpuset.cpus cpuset.mems; do
            [ ! -e "$controller/$group/$file" ] || cat "$controller/$file" >"$controller/$group/$file"
        done
        echo $$ >"$controller/$group/cgroup.procs"
    done
    exec unshare --pid --fork --kill-child --mount --propagation private --uts --ipc --net --cgroup /bin/sh "$0" "$@" inside
fi

grep ' cgroup2\{0,1\} ' /proc/mounts >"$dir/controllers"
mount -t tmpfs tmpfs "$dir/root"
mkdir "$dir/root/files" "$dir/root/work" "$dir/root/new"
root=$dir/root/new
mount -t overlay -o "lowerdir=/,upperdir=$dir/root/files,workdir=$dir/root/work" overlay "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t sysfs sysfs "$root/sys"
mount -t tmpfs -o mode=755 tmpfs "$root/sys/fs/cgroup"
while read -r _ at type options _; do
    mkdir -p "$root$at"
    case $type in
        cgroup2) mount -t cgroup2 cgroup2 "$root$at" ;;
        *)
            options=$(echo "$options" | tr , '\n' | grep -v -x -e rw -e ro -e relatime -e 'no.*' -e xattr | paste -sd,)
            mount -t cgroup -o "$options" cgroup "$root$at"
            ;;
    esac
done <"$dir/controllers"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs -o mode=755 tmpfs "$root/etc/systemd"
mount -t tmpfs -o mode=755 tmpfs "$root/usr/lib/systemd/system"
units=$root/usr/lib/systemd/system
mkdir -p "$root/etc/systemd/system" "$root/var/lib/bramble" "$root/mnt/cluster"
# Not on a tmpfs, and seen from outside after the end.
mount --bind "$dir/medium" "$root/var/lib/bramble"
cp "$2" "$root/usr/bin/bramble"
cp -r "$3"/* "$units"
# The order of boot and shutdown is Debian's own: at shutdown it is what keeps systemd from unmounting the tree, as it does with
# all mounts, before what comes after local-fs.target has ended.
for unit in sysinit basic multi-user network-online local-fs local-fs-pre shutdown umount final paths exit; do
    cp "/usr/lib/systemd/system/$unit.target" "$units"
done
cp /usr/lib/systemd/system/systemd-exit.service "$units"
# There is no journal: what services print goes where it is seen from outside.
mkdir "$units/service.d"
printf '[Service]\nStandardOutput=append:/var/lib/bramble/log\nStandardError=inherit\n' >"$units/service.d/log.conf"
# In Docker's place: looks for the tree when it starts, and uses it to its end.
cat >"$units/docker.service" <<UNIT
[Service]
ExecStart=/bin/sh -c 'grep -q " /mnt/cluster fuse.bramble " /proc/mounts && echo started >>/mnt/cluster/docker && sync /mnt/cluster/docker && exec sleep infinity'
ExecStop=/bin/sh -c 'echo stopped >>/mnt/cluster/docker; sync /mnt/cluster/docker'
UNIT
cat >"$units/boot.target" <<UNIT
[Unit]
DefaultDependencies=no
Requires=basic.target
Wants=bramble.service docker.service
After=basic.target bramble.service docker.service
UNIT
mkdir "$root/run/old"
cd "$root"
pivot_root . run/old
umount -l /run/old
rmdir /run/old
export container=bramble-test
exec /lib/systemd/systemd --system --unit=boot.target --log-target=console --show-status=no

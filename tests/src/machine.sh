# A machine of its own for systemd: namespaces, control groups, devices, and a root that takes what is written to itself.
# Runs systemd as its first process until that ends. $1 is a directory for all that, $2 the name of its control groups.
#
# In $1: `disk` is a filesystem that keeps what is written to the root from one boot to the next; `seed` has files to be put
# there before the first boot; `loops` lists the loop devices that the machine sees; `medium`, if it is there, becomes
# /var/lib/bramble.
#
# systemd must not find itself in a container, or it leaves the disks in fstab out. So it does all that it does on a
# machine of its own, and what is not the namespaces' must be out of its reach.
set -eu
dir=$1
group=$2
# No namespace for the control groups: it is a sign of a container.
[ "${3:-}" = inside ] ||
    exec unshare --pid --fork --kill-child --mount --propagation private --uts --ipc --net /bin/sh "$0" "$@" inside

for controller in /sys/fs/cgroup /sys/fs/cgroup/*; do
    # One hierarchy on newer machines, else several.
    grep -q " $controller cgroup" /proc/mounts || continue
    mkdir -p "$controller/$group"
    for file in cpuset.cpus cpuset.mems; do
        [ ! -e "$controller/$group/$file" ] || cat "$controller/$file" >"$controller/$group/$file"
    done
    echo $$ >"$controller/$group/cgroup.procs"
done
root=$dir/root
units=$root/usr/lib/systemd/system

# Only what is given here is started: the other units of the machine under it would change its settings.
make_root() {
    rm -rf "$root/etc/systemd" "$root/var/log/journal" "$units"
    mkdir -p "$root/etc/systemd/system" "$units/sysinit.target.wants" "$units/sockets.target.wants" \
        "$root/mnt/cluster" "$root/var/log/journal"
    # The order of boot and shutdown is Debian's own: at shutdown it is what keeps systemd from unmounting the tree, as it
    # does with all mounts, before what comes after local-fs.target has ended.
    for unit in sysinit.target basic.target sockets.target paths.target multi-user.target network-online.target \
        local-fs.target local-fs-pre.target shutdown.target umount.target final.target poweroff.target \
        systemd-fsck@.service systemd-fsckd.service systemd-fsckd.socket \
        systemd-journald.service systemd-journald.socket systemd-journald-dev-log.socket systemd-journal-flush.service \
        systemd-udevd.service systemd-udevd-control.socket systemd-udevd-kernel.socket; do
        cp "/usr/lib/systemd/system/$unit" "$units"
    done
    for unit in systemd-journald systemd-journal-flush systemd-udevd systemd-udev-trigger; do
        ln -s "../$unit.service" "$units/sysinit.target.wants"
    done
    for unit in systemd-journald systemd-journald-dev-log systemd-udevd-control systemd-udevd-kernel; do
        ln -s "../$unit.socket" "$units/sockets.target.wants"
    done
    # As Debian's, for this machine's devices alone.
    cat >"$units/systemd-udev-trigger.service" <<UNIT
[Unit]
DefaultDependencies=no
Wants=systemd-udevd.service
After=systemd-udevd-kernel.socket systemd-udevd-control.socket
Before=sysinit.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -euc 'for at in /dev/loop*; do [ ! -b \$at ] || udevadm trigger --action=add \$at; done'
UNIT
    # As Debian's, but for the last step, in which systemd makes all filesystems read-only that it still sees: here the
    # end of the first process is the end of everything.
    rm -f "$root/usr/lib/systemd/systemd-shutdown"
    ln -sf /usr/bin/systemctl "$root/usr/sbin/poweroff"
    cat >"$units/systemd-poweroff.service" <<UNIT
[Unit]
DefaultDependencies=no
Requires=shutdown.target umount.target final.target
After=shutdown.target umount.target final.target
[Service]
Type=oneshot
ExecStart=/usr/sbin/poweroff --force --force --no-sync
UNIT
    # The kernel's messages, and its audit, are not this machine's.
    printf '[Journal]\nReadKMsg=no\nAudit=\n' >"$root/etc/systemd/journald.conf"
    # In Docker's place: looks for the tree when it starts, and uses it to its end.
    cat >"$units/docker.service" <<UNIT
[Service]
ExecStart=/bin/sh -c 'grep -q " /mnt/cluster fuse.bramble " /proc/mounts && echo started >>/mnt/cluster/docker && sync /mnt/cluster/docker && exec sleep infinity'
ExecStop=/bin/sh -c 'echo stopped >>/mnt/cluster/docker; sync /mnt/cluster/docker'
[Install]
WantedBy=multi-user.target
UNIT
    echo '# The machine has no disk but its root.' >"$root/etc/fstab"
    basename "$dir" >"$root/etc/hostname"
    mkdir "$root/etc/systemd/system-generators"
    for generator in /usr/lib/systemd/system-generators/*; do
        case $generator in
            */systemd-fstab-generator) ;;
            *) ln -s /dev/null "$root/etc/systemd/system-generators/$(basename "$generator")" ;;
        esac
    done
    # Rules that systemd would load into the kernel, and signs of a container.
    rm -rf "$root/etc/selinux" "$root/etc/ima" "$root/etc/smack" "$root/etc/apparmor" "$root/.dockerenv"
    cp -r "$dir/seed/." "$root"
}

grep ' cgroup2\{0,1\} ' /proc/mounts >"$dir/controllers"
new=
[ -d "$dir/disk/files" ] || new=yes
mkdir -p "$root" "$dir/disk/files" "$dir/disk/work"
mount -t overlay -o "lowerdir=/,upperdir=$dir/disk/files,workdir=$dir/disk/work" overlay "$root"
[ -z "$new" ] || make_root
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/tmp"
# The kernel's settings, command line, modules and firmware are not this machine's, nor are controllers that nothing uses.
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
awk '/^#/ || $2 > 0' /proc/cgroups >"$root/run/cgroups"
for file in cmdline sysrq-trigger cgroups; do
    [ -e "$root/run/$file" ] || : >"$root/run/$file"
    [ ! -e "$root/proc/$file" ] || mount --bind "$root/run/$file" "$root/proc/$file"
done
for at in usr/lib/modules sys/firmware; do
    [ ! -d "$root/$at" ] || mount -t tmpfs -o ro tmpfs "$root/$at"
done
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
# Of all devices that the kernel tells udev of, those that have a file here are the machine's.
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
for node in null zero full random urandom tty fuse; do cp -a "/dev/$node" "$root/dev"; done
while read -r device; do mknod "$root$device" b 7 "${device#/dev/loop}"; done <"$dir/loops"
# systemd listens to udev if /dev is the kernel's own filesystem, or if this is there.
mkdir "$root/run/udev"
: >"$root/run/udev/control"
# Not on a tmpfs.
[ ! -d "$dir/medium" ] || mount --bind "$dir/medium" "$root/var/lib/bramble"
mkdir "$root/run/old"
cd "$root"
pivot_root . run/old
umount -l /run/old
rmdir /run/old
exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --system \
    --unit=multi-user.target --show-status=no

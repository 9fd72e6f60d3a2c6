# Docker on a host of its own: $1 is the host's directory, $2 its name, $3 the control group of its containers. Runs as the
# first process of its own process, mount and UTS namespaces, so all of it ends when this does.
set -eu
base=$1
hostname "$2"
mount -t proc proc /proc
mount --bind "$base/run" /run
mkdir -p /run/containerd
containerd --root "$base/containerd" --state /run/containerd --address /run/containerd/containerd.sock \
    --log-level warn >"$base/containerd.log" 2>&1 &
exec dockerd --data-root "$base/docker" --exec-root /run/docker --pidfile /run/docker.pid \
    --host unix:///run/docker.sock --containerd /run/containerd/containerd.sock \
    --exec-opt native.cgroupdriver=cgroupfs --cgroup-parent "/$3" >"$base/docker.log" 2>&1

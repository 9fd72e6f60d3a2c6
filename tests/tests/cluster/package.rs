//! The Debian package, built from a debug build and installed for real, on a copy of this machine's root that is thrown
//! away.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bramble_tests::janitor::Janitor;
use bramble_tests::{package, run, sh};

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Runs a script in a root that shows this machine's, and takes what is written to itself.
fn in_a_copy(janitor: &Janitor, script: &str) -> String {
    let dir = janitor.dir().display();
    let bootstrap = source().join("scripts/bootstrap");
    let bootstrap = bootstrap.display();
    sh(
        janitor.dir(),
        &format!(
            "mkdir -p upper work root
             cat >script <<'SCRIPT'\n{script}\nSCRIPT
             unshare --mount --pid --net --fork --kill-child --propagation private /bin/sh -euc '
                 # Not on the disk of {dir}, which is part of what is shown.
                 mount -t tmpfs tmpfs upper
                 mkdir upper/files upper/work
                 mount -t overlay -o lowerdir=/,upperdir=upper/files,workdir=upper/work overlay root
                 mount -t proc proc root/proc
                 mount -t tmpfs tmpfs root/tmp
                 mount --bind /dev root/dev
                 cp script *.deb {bootstrap} root/tmp
                 chroot root /bin/sh -eux /tmp/script 2>&1
             '"
        ),
    )
}

#[test]
fn the_package_installs_upgrades_and_goes_without_touching_the_store() {
    let janitor = Janitor::new(Duration::from_secs(600));
    let deb = package::build(janitor.dir());
    let list = run("dpkg-deb", ["--contents", deb.to_str().unwrap()]);
    for path in [
        "./usr/bin/bramble",
        "./usr/lib/systemd/system/bramble.service",
        "./usr/lib/systemd/system/bramble-vip.path",
        "./usr/lib/systemd/system/docker.service.d/bramble.conf",
        "./usr/lib/udev/rules.d/90-bramble.rules",
        "./usr/share/man/man1/bramble.1.gz",
        "./usr/share/man/man1/bramble-vip.1.gz",
        "./usr/share/bash-completion/completions/bramble",
        "./usr/share/zsh/vendor-completions/_bramble",
        "./usr/share/fish/vendor_completions.d/bramble.fish",
        "./etc/bramble/environment",
        "./usr/share/doc/bramble/copyright",
        "./usr/share/doc/bramble/stacks/zabbix.yml",
    ] {
        assert!(
            list.lines().any(|line| line.ends_with(path)),
            "no {path} in\n{list}"
        );
    }
    assert!(list.lines().all(|line| line.contains(" root/root ")), "{list}");

    let said = in_a_copy(
        &janitor,
        "cd /tmp
         [ ! -e /var/lib/bramble ]
         dpkg -i *.deb
         bramble --version
         [ \"$(systemctl is-enabled bramble.service)\" = enabled ]
         [ -d /mnt/cluster ]
         bash -c '. /usr/share/bash-completion/completions/bramble; complete -p bramble'
         # An upgrade keeps what the administrator has changed.
         echo BRAMBLE_LOG=debug >>/etc/bramble/environment
         systemctl disable bramble.service
         mkdir /var/lib/bramble/store; echo data >/var/lib/bramble/store/identity
         dpkg -i *.deb
         grep -q -x BRAMBLE_LOG=debug /etc/bramble/environment
         [ \"$(systemctl is-enabled bramble.service || true)\" = disabled ]
         dpkg -r bramble
         [ ! -e /usr/bin/bramble ]
         grep -q data /var/lib/bramble/store/identity
         dpkg -P bramble
         [ ! -e /etc/bramble ]
         grep -q data /var/lib/bramble/store/identity
         # From nothing to a node, by one command, twice.
         rm -rf /var/lib/bramble /mnt/cluster
         ip link set lo up
         node='--listen 127.0.0.1 --name one --start background --docker-plugin off'
         ./bootstrap --deb *.deb $node >said || { cat said /var/lib/bramble/bramble.log; false; }
         grep '^installing bramble' said; grep 'complete and clean' said
         echo data >/mnt/cluster/file; sync /mnt/cluster/file
         ./bootstrap $node --deb ./*.deb >said || { cat said; false; }
         grep 'is installed already' said; grep 'one is node 1' said; grep 'runs already' said; grep 'complete and clean' said
         grep -x data /mnt/cluster/file
         [ \"$(dpkg-query -W -f '${db:Status-Abbrev}' bramble)\" = 'ii ' ]
         ! ./bootstrap --deb /tmp/none.deb 2>said
         grep 'there is no file' said
         echo all is well",
    );
    assert!(said.ends_with("all is well\n"), "{said}");
    assert!(
        !Path::new("/usr/share/doc/bramble/copyright").exists(),
        "it was installed on this machine"
    );
}

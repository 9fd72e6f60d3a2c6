//! Images for Docker, made from programs of this machine, since there is no registry here.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::run::{run, sh};

/// Busybox and nothing else.
pub const BUSYBOX: &str = "busybox";

/// [`BUSYBOX`] and MariaDB, server and client.
pub const MARIADB: &str = "mariadb";

/// Fills `tree` with what the image of this name holds.
///
/// # Panics
/// If a program is missing, or there is no such image.
pub(crate) fn fill(name: &str, tree: &Path) {
    busybox(tree);
    match name {
        BUSYBOX => {}
        MARIADB => mariadb(tree),
        _ => panic!("there is no image named {name}"),
    }
}

fn busybox(tree: &Path) {
    for dir in ["bin", "tmp", "data", "proc", "sys", "dev", "etc"] {
        fs::create_dir_all(tree.join(dir)).unwrap();
    }
    let busybox = PathBuf::from("/usr/bin/busybox");
    let busybox = if busybox.exists() {
        busybox
    } else {
        "/bin/busybox".into()
    };
    fs::copy(&busybox, tree.join("bin/busybox")).unwrap();
    let applets = run(&busybox, ["--list"]);
    for applet in applets.lines().filter(|name| *name != "busybox") {
        symlink("busybox", tree.join("bin").join(applet)).unwrap();
    }
}

/// Debian's programs with the libraries that they name.
fn mariadb(tree: &Path) {
    sh(
        tree,
        "programs='/usr/sbin/mariadbd /usr/bin/mariadb /usr/bin/mariadb-install-db /usr/bin/my_print_defaults /usr/bin/resolveip'
         libraries=$(for program in $programs; do ldd $program 2>/dev/null || true; done | grep -o '/[^ ]*' | sort -u)
         cp --dereference --parents $programs $libraries .
         mkdir -p usr/share var/lib
         cp -r /usr/share/mysql usr/share/
         echo 'root:x:0:0::/:/bin/sh' >etc/passwd
         echo 'hosts: files dns' >etc/nsswitch.conf",
    );
}

//! Preparing the machine, with another in its place.
#![expect(clippy::disallowed_methods, reason = "files of a test")]

use std::cell::RefCell;
use std::path::Path;

use super::disk::{self, Wanted};
use super::machine::Machine;
use super::service::{self, Start};
use super::*;

/// A machine with one disk.
#[derive(Default)]
struct Fake {
    kind: &'static str,
    /// What `blkid` says of it.
    probe: &'static str,
    mounted_at: Option<String>,
    children: &'static str,
    blank: bool,
    /// Entries of the filesystem on it.
    holds: &'static [&'static str],
    answer: Option<&'static str>,
    systemd: bool,
    unit: bool,
    ran: RefCell<Vec<String>>,
}

const DISK: &str = "/dev/sdz";

impl Fake {
    fn prepare(&self, dir: &Path, erase: Option<&str>) -> Outcome {
        let wanted = Wanted {
            device: Path::new(DISK),
            erase: erase.map(Path::new),
            at: &dir.join("at"),
            fstab: &dir.join("fstab"),
        };
        disk::prepare(self, &wanted, &|_| {})
    }

    fn ran(&self, what: &str) -> usize {
        self.ran
            .borrow()
            .iter()
            .filter(|line| line.starts_with(what))
            .count()
    }

    fn wrote(&self) -> bool {
        self.ran("mkfs") + self.ran("wipefs") > 0
    }
}

impl Machine for Fake {
    fn run(&self, program: &str, args: &[&str]) -> Result<String, String> {
        let line = format!("{program} {}", args.join(" "));
        self.ran.borrow_mut().push(line.clone());
        match program {
            "lsblk" => {
                let at = self
                    .mounted_at
                    .as_ref()
                    .map_or("null".into(), |at| format!("\"{at}\""));
                Ok(format!(
                    r#"{{"blockdevices":[{{"path":"{DISK}","type":"{}","size":8000000000,"mountpoints":[{at}]{}}}]}}"#,
                    self.kind, self.children
                ))
            }
            "blkid" if args.contains(&"UUID") => Ok("1234-abcd".into()),
            "blkid" if args.contains(&"TYPE") => Ok("ext4".into()),
            "blkid" if self.probe.is_empty() => Err("nothing".into()),
            "blkid" => Ok(self.probe.into()),
            "mount" if args.contains(&"ro,nosuid,nodev") => {
                let at = Path::new(args[3]);
                for name in self.holds {
                    std::fs::create_dir_all(at.join(name)).unwrap();
                }
                Ok(String::new())
            }
            "umount" => {
                let at = Path::new(args[0]);
                for entry in std::fs::read_dir(at).unwrap() {
                    std::fs::remove_dir_all(entry.unwrap().path()).unwrap();
                }
                Ok(String::new())
            }
            "systemctl" if args[0] == "cat" && !self.unit => Err("no such unit".into()),
            "systemctl" if args.contains(&"is-enabled") => Err("disabled".into()),
            _ => Ok(String::new()),
        }
    }

    fn is_blank(&self, _device: &Path) -> Result<bool, String> {
        Ok(self.blank)
    }

    fn ask(&self, _question: &str) -> Option<String> {
        self.answer.map(str::to_owned)
    }

    fn has_systemd(&self) -> bool {
        self.systemd
    }
}

#[test]
fn a_disk_with_data_is_left_alone() {
    let with_data = [
        Fake {
            kind: "disk",
            probe: "DEVNAME=/dev/sdz\nPTTYPE=dos\n",
            ..Fake::default()
        },
        Fake {
            kind: "disk",
            children: r#","children":[{"path":"/dev/sdz1","type":"part","size":1}]"#,
            ..Fake::default()
        },
        Fake {
            kind: "part",
            probe: "TYPE=vfat\nLABEL=PHOTOS\n",
            ..Fake::default()
        },
        Fake {
            kind: "part",
            probe: "TYPE=ext4\n",
            holds: &["holiday"],
            ..Fake::default()
        },
        // Not every directory named so is a store.
        Fake {
            kind: "part",
            probe: "TYPE=ext4\n",
            holds: &["store/photos"],
            ..Fake::default()
        },
        Fake {
            kind: "part",
            probe: "TYPE=LVM2_member\n",
            ..Fake::default()
        },
        Fake {
            kind: "part",
            blank: false,
            ..Fake::default()
        },
        // A whole disk is not taken unasked, even if it seems to be blank.
        Fake {
            kind: "disk",
            blank: true,
            ..Fake::default()
        },
    ];
    for mut fake in with_data {
        let dir = tempfile::tempdir().unwrap();
        let why = fake.prepare(dir.path(), None).unwrap_err();
        assert!(
            why.contains(DISK) && why.contains("--yes-erase /dev/sdz"),
            "{why}"
        );
        assert!(why.contains("Nothing was written") && !fake.wrote(), "{why}");
        // Another disk's confirmation is none for this one, and neither is a wrong word.
        assert!(fake.prepare(dir.path(), Some("/dev/sda")).is_err() && !fake.wrote());
        fake.answer = Some("yes");
        assert!(fake.prepare(dir.path(), None).is_err() && !fake.wrote());
        assert!(!dir.path().join("fstab").exists());
        fake.answer = Some(DISK);
        fake.prepare(dir.path(), None).unwrap();
        assert_eq!(fake.ran("mkfs.ext4"), 1);
        let fake = Fake {
            answer: None,
            ran: RefCell::default(),
            ..fake
        };
        fake.prepare(dir.path(), Some(DISK)).unwrap();
        assert_eq!(fake.ran("mkfs.ext4"), 1);
    }
}

#[test]
fn a_disk_that_is_in_use_is_never_erased() {
    let dir = tempfile::tempdir().unwrap();
    let root = Fake {
        kind: "disk",
        mounted_at: Some("/".into()),
        ..Fake::default()
    };
    let why = root.prepare(dir.path(), Some(DISK)).unwrap_err();
    assert!(why.contains("in use") && !root.wrote(), "{why}");
    let swap = Fake {
        kind: "disk",
        children: r#","children":[{"path":"/dev/sdz1","type":"part","size":1,"mountpoints":["[SWAP]"]}]"#,
        ..Fake::default()
    };
    assert!(swap.prepare(dir.path(), Some(DISK)).unwrap_err().contains("SWAP") && !swap.wrote());
    // The place holds something that would be hidden.
    std::fs::create_dir_all(dir.path().join("at/store")).unwrap();
    let fake = Fake {
        kind: "part",
        blank: true,
        ..Fake::default()
    };
    assert!(fake.prepare(dir.path(), None).unwrap_err().contains("not empty") && !fake.wrote());
}

#[test]
fn a_partition_with_nothing_or_a_store_on_it_is_used_and_written_down_once() {
    let dir = tempfile::tempdir().unwrap();
    let (fstab, at) = (dir.path().join("fstab"), dir.path().join("at"));
    std::fs::write(&fstab, "# mine\nUUID=x / ext4 defaults 0 1").unwrap();
    let empty = Fake {
        kind: "part",
        probe: "TYPE=ext4\n",
        holds: &["lost+found"],
        ..Fake::default()
    };
    for _ in 0..2 {
        empty.prepare(dir.path(), None).unwrap();
    }
    assert!(!empty.wrote());
    let text = std::fs::read_to_string(&fstab).unwrap();
    let line = format!(
        "UUID=1234-abcd  {}  ext4  noatime,nofail,x-systemd.device-timeout=infinity  0  2\n",
        at.display()
    );
    assert_eq!(text, format!("# mine\nUUID=x / ext4 defaults 0 1\n{line}"));
    let blank = Fake {
        kind: "part",
        blank: true,
        ..Fake::default()
    };
    blank.prepare(dir.path(), None).unwrap();
    assert_eq!(blank.ran("mkfs.ext4"), 1);
    let store = Fake {
        kind: "part",
        probe: "TYPE=ext4\n",
        holds: &["store/identity", "bramble.log"],
        ..Fake::default()
    };
    store.prepare(dir.path(), None).unwrap();
    assert!(!store.wrote());
    // Mounted already: nothing is done at all.
    let done = Fake {
        kind: "part",
        mounted_at: Some(at.display().to_string()),
        ..Fake::default()
    };
    done.prepare(dir.path(), None).unwrap();
    assert_eq!(done.ran.borrow().len(), 1);
    // Another disk is to be mounted there.
    std::fs::write(&fstab, format!("LABEL=old {} ext4 defaults 0 2\n", at.display())).unwrap();
    assert!(empty.prepare(dir.path(), None).unwrap_err().contains("LABEL=old"));
}

#[test]
fn systemd_starts_the_unit_and_serves_its_store_alone() {
    let (unit, elsewhere) = (Path::new(service::UNIT_STORE), Path::new("/srv/store"));
    let start =
        |fake: &Fake, store: &Path| service::start(fake, Start::Auto, store, &PluginSocket::Auto, &|_| {});
    let fake = Fake {
        systemd: true,
        unit: true,
        ..Fake::default()
    };
    start(&fake, unit).unwrap();
    assert_eq!(
        (
            fake.ran("systemctl enable bramble.service"),
            fake.ran("systemctl start --no-block bramble.service")
        ),
        (1, 1)
    );
    assert!(start(&fake, elsewhere).unwrap_err().contains("--start other"));
    let bare = Fake {
        systemd: true,
        ..Fake::default()
    };
    assert!(start(&bare, unit).unwrap_err().contains("package"));
    // Without systemd, it is started here.
    let plain = Fake::default();
    start(&plain, elsewhere).unwrap();
    assert_eq!(plain.ran("setsid --fork"), 1);
    let other = Fake::default();
    service::start(&other, Start::Other, elsewhere, &PluginSocket::Off, &|_| {}).unwrap();
    assert!(other.ran.borrow().is_empty());
}

#[test]
fn addresses_may_leave_the_port_out() {
    assert_eq!(listen_address("192.0.2.1").unwrap().to_string(), "192.0.2.1:7400");
    assert_eq!(listen_address("192.0.2.1:99").unwrap().port(), 99);
    assert_eq!(
        listen_address("2001:db8::1").unwrap().to_string(),
        "[2001:db8::1]:7400"
    );
    assert!(listen_address("pi-1").is_err());
    assert_eq!(
        way_to("127.0.0.1:1".parse().unwrap()).unwrap().to_string(),
        "127.0.0.1"
    );
}

//! The format of keys and values, held still: `docs/FORMAT.md` describes it.

use std::fmt::Write;

use bytes::Bytes;

use super::damage::full;
use crate::kv::prefix_range;
use crate::meta::*;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[test]
fn the_format_has_not_changed() {
    let bench = full();
    let file = bench.lookup(ROOT_INO, "file").unwrap();
    let id = ChunkId {
        session: bench.local.session().0,
        seq: 9,
    };
    let data = Data::Chunk {
        id,
        offset: 300,
        len: 70_000,
    };
    bench
        .submit(Op::Write {
            ino: file,
            at: WriteAt::Append,
            data,
            kill_suid_sgid: false,
        })
        .unwrap();
    let (what, offset, len) = (Fallocate::AllocateKeepSize, 1 << 20, 4096);
    bench
        .submit(Op::Fallocate {
            ino: file,
            what,
            offset,
            len,
        })
        .unwrap();
    bench.try_make(ROOT_INO, "link", FileKind::Symlink).unwrap();
    bench
        .local
        .submit(
            Op::Unlink {
                parent: 77,
                name: "x".into(),
            },
            Bytes::new(),
        )
        .unwrap()
        .1
        .unwrap_err();
    let mut dump = String::new();
    for pair in bench.reader().kv().scan(prefix_range(b""), false) {
        let (key, value) = pair.unwrap();
        if key[0] != 0 {
            let _ = writeln!(dump, "{} = {}", hex(&key), hex(&value));
        }
    }
    let golden = include_str!("golden.txt");
    assert!(
        dump == golden,
        "the format has changed; if that is meant, see docs/FORMAT.md. Now:\n{dump}"
    );
}

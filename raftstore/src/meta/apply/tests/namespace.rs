//! Names.

use super::support::*;
use crate::meta::*;

#[test]
fn creates_links_renames_and_removes() {
    let bench = Bench::new();
    let dir = bench.mkdir(ROOT_INO, "dir");
    let file = bench.mkfile(dir, "file");
    assert_eq!(bench.lookup(dir, "file"), Some(file));
    assert_eq!(inode_of(bench.link(file, ROOT_INO, "other")).nlink, 2);
    let (index, written) = bench.write(file, WriteAt::Append, b"hello");
    assert_eq!(inode_of(written).size, 5);
    let source = Source::Chunk {
        id: ChunkId::payload(index),
        offset: 0,
    };
    assert_eq!(
        bench.extents(file),
        [Extent {
            offset: 0,
            len: 5,
            source
        }]
    );
    assert_eq!(
        bench.rename((dir, "file"), (ROOT_INO, "moved"), RenameMode::Replace),
        Ok(Reply::Done)
    );
    assert_eq!(bench.names(ROOT_INO), ["dir", "other", "moved"]);
    assert_eq!(bench.rmdir(ROOT_INO, "dir"), Ok(Reply::Done));
    assert_eq!(inode_of(bench.unlink(ROOT_INO, "moved")).nlink, 1);
    assert_eq!(inode_of(bench.unlink(ROOT_INO, "other")).nlink, 0);
    assert_eq!(bench.reader().orphans(0, 10).unwrap(), [dir, file]);
    assert_eq!(
        bench.reader().usage().unwrap(),
        Usage {
            inodes: 3,
            allocated_bytes: 5
        }
    );
    assert_eq!(
        bench.submit(Op::Reap {
            inodes: vec![dir, file]
        }),
        Ok(Reply::Done)
    );
    assert_eq!(
        bench.reader().usage().unwrap(),
        Usage {
            inodes: 1,
            allocated_bytes: 0
        }
    );
    assert!(!bench.reader().chunk_is_live(ChunkId::payload(index)).unwrap());
}

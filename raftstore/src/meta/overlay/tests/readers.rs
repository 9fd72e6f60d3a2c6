//! Readers in other threads.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;

use super::{Bench, create, time};
use crate::meta::*;

/// One pass over the root; the number of entries. Every name must have an inode at every moment.
fn pass(reader: &Reader) -> usize {
    let (mut after, mut seen) = (0, 0);
    loop {
        let items = reader.list(ROOT_INO, after, 7).unwrap();
        for DirItem { name, entry } in &items {
            assert!(
                reader.inode(entry.ino).unwrap().is_some(),
                "{name:?} was listed without an inode"
            );
            if let Some(entry) = reader.lookup(ROOT_INO, name).unwrap() {
                assert!(
                    reader.inode(entry.ino).unwrap().is_some(),
                    "{name:?} was found without an inode"
                );
            }
            assert!(entry.cookie > after, "the listing went back");
            after = entry.cookie;
        }
        seen += items.len();
        if items.len() < 7 {
            return seen;
        }
    }
}

/// Ends the readers also if the writer fails.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

#[test]
fn never_see_a_name_without_its_inode() {
    const ROUNDS: u64 = 400;
    let mut bench = Bench::new();
    let reader = bench.overlay.reader();
    let (done, seen) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    // The last pass begins after the last change.
                    let last = done.load(Ordering::Acquire);
                    seen.fetch_add(pass(&reader), Ordering::Relaxed);
                    if last {
                        break;
                    }
                }
            });
        }
        let _done = SetOnDrop(&done);
        let mut items = Vec::new();
        for number in 1..=ROUNDS {
            let op = match number % 4 {
                0 => Op::Rename {
                    parent: ROOT_INO,
                    name: name(number - 1),
                    new_parent: ROOT_INO,
                    new_name: name(number - 2),
                    mode: RenameMode::Replace,
                },
                _ => {
                    bench.next_ino += 1;
                    let name = String::from_utf8(name(number).to_vec()).unwrap();
                    create(ROOT_INO, &name, FileKind::Regular, Some(bench.next_ino))
                }
            };
            bench.run(number, op.clone(), 0).unwrap();
            let time = time(number);
            items.push(BatchItem { time, op });
            if items.len() == 10 {
                let op = Op::Batch {
                    items: std::mem::take(&mut items),
                };
                let answer = bench.local.submit(op, Bytes::new()).unwrap().1;
                assert_eq!(answer, Ok(Reply::Batch { refused: vec![] }));
                bench.overlay.committed(number, |_| false);
                assert!(bench.overlay.is_empty());
            }
        }
    });
    let names = usize::try_from(ROUNDS / 2).unwrap();
    assert!(
        seen.load(Ordering::Relaxed) >= 2 * names,
        "the readers saw little"
    );
    assert_eq!(pass(&bench.local.reader()), names);
}

fn name(number: u64) -> Bytes {
    format!("file {number}").into()
}

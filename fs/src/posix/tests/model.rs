//! Contents against a vector of bytes.

use proptest::prelude::*;
use raftstore::meta::{AttrChange, Fallocate};

use super::super::Seek;
use super::*;

/// Largest file in this test, bytes: several pieces, several pages of extents.
const SIZE_MAX: u64 = 2000;

#[derive(Debug, Clone)]
enum Step {
    Write(u64, Vec<u8>),
    Append(Vec<u8>),
    Truncate(u64),
    Fallocate(Fallocate, u64, u64),
    Copy(u64, u64, u64),
    Read(u64, u32),
    Seek(u64),
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    (1..=255_u8, 1..700_usize).prop_map(|(byte, len)| vec![byte; len])
}

fn step() -> impl Strategy<Value = Step> {
    let offset = 0..SIZE_MAX;
    let len = 1..900_u64;
    let mode = prop_oneof![
        Just(Fallocate::Allocate),
        Just(Fallocate::AllocateKeepSize),
        Just(Fallocate::PunchHole),
        Just(Fallocate::ZeroRange),
        Just(Fallocate::ZeroRangeKeepSize),
    ];
    prop_oneof![
        4 => (offset.clone(), bytes()).prop_map(|(offset, data)| Step::Write(offset, data)),
        1 => bytes().prop_map(Step::Append),
        1 => offset.clone().prop_map(Step::Truncate),
        2 => (mode, offset.clone(), len.clone()).prop_map(|(mode, offset, len)| Step::Fallocate(mode, offset, len)),
        2 => (offset.clone(), offset.clone(), len).prop_map(|(from, to, len)| Step::Copy(from, to, len)),
        3 => (offset.clone(), 0..1500_u32).prop_map(|(offset, len)| Step::Read(offset, len)),
        1 => offset.prop_map(Step::Seek),
    ]
}

fn index(offset: u64) -> usize {
    usize::try_from(offset).unwrap()
}

fn put(model: &mut Vec<u8>, offset: usize, data: &[u8]) {
    if model.len() < offset + data.len() {
        model.resize(offset + data.len(), 0);
    }
    model[offset..offset + data.len()].copy_from_slice(data);
}

fn allocate(model: &mut Vec<u8>, mode: Fallocate, offset: u64, len: u64) {
    let (start, end) = (index(offset), index(offset + len));
    let keeps_size = !matches!(mode, Fallocate::Allocate | Fallocate::ZeroRange);
    if !keeps_size && model.len() < end {
        model.resize(end, 0);
    }
    let keeps_bytes = matches!(mode, Fallocate::Allocate | Fallocate::AllocateKeepSize);
    let (start, end) = (start.min(model.len()), end.min(model.len()));
    if !keeps_bytes {
        model[start..end].fill(0);
    }
}

fn copy(model: &mut Vec<u8>, from: u64, to: u64, len: u64) -> Option<u64> {
    if from.abs_diff(to) < len {
        return None;
    }
    let end = model.len().min(index(from + len));
    let copied = model.get(index(from)..end).unwrap_or_default().to_vec();
    put_if_any(model, index(to), &copied);
    Some(copied.len() as u64)
}

fn put_if_any(model: &mut Vec<u8>, offset: usize, data: &[u8]) {
    if !data.is_empty() {
        put(model, offset, data);
    }
}

async fn check(vfs: &Vfs, ino: Ino, model: &mut Vec<u8>, step: Step) {
    match step {
        Step::Write(offset, data) => {
            write(vfs, ino, offset, &data).await;
            put(model, index(offset), &data);
        }
        Step::Append(data) => {
            let request = WriteRequest {
                append: true,
                ..at(ino, 12345, &data)
            };
            let written = vfs.write(request).await.unwrap();
            assert_eq!((written.len, index(written.offset)), (data.len(), model.len()));
            model.extend_from_slice(&data);
        }
        Step::Truncate(size) => {
            let change = AttrChange {
                size: Some(size),
                ..AttrChange::default()
            };
            vfs.setattr(ino, change).await.unwrap();
            model.resize(index(size), 0);
        }
        Step::Fallocate(mode, offset, len) => {
            vfs.fallocate(ino, mode, offset, len, ROOT).await.unwrap();
            allocate(model, mode, offset, len);
        }
        Step::Copy(from, to, len) => {
            let copied = vfs.copy_range((ino, from), (ino, to), len, ROOT).await;
            match copy(model, from, to, len) {
                Some(len) => assert_eq!(copied.unwrap(), len),
                None => refused(copied, libc::EINVAL),
            }
        }
        Step::Read(offset, len) => {
            let end = model.len().min(index(offset) + len as usize);
            let expected = model.get(index(offset)..end).unwrap_or_default();
            assert_eq!(vfs.read(ino, offset, len).await.unwrap(), expected);
        }
        Step::Seek(offset) => check_seek(vfs, ino, model, offset).await,
    }
    assert_eq!(stat(vfs, ino).await.size, model.len() as u64);
}

/// Whatever is a hole reads as zeros, and between an offset and the next data there is nothing else.
async fn check_seek(vfs: &Vfs, ino: Ino, model: &[u8], offset: u64) {
    if index(offset) >= model.len() {
        refused(vfs.seek(ino, offset, Seek::Data).await, libc::ENXIO);
        return;
    }
    let data = match vfs.seek(ino, offset, Seek::Data).await {
        Ok(data) => index(data),
        Err(error) => {
            assert_eq!(error.errno(), libc::ENXIO);
            model.len()
        }
    };
    assert!(model[index(offset)..data].iter().all(|byte| *byte == 0));
    let hole = vfs.seek(ino, offset, Seek::Hole).await.unwrap();
    assert!(hole >= offset && index(hole) <= model.len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_file_is_a_vector_of_bytes(steps in proptest::collection::vec((any::<bool>(), step()), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let (_cluster, one, other) = two_nodes();
            let ino = file(&one, "f").await;
            let mut model = Vec::new();
            for (on_one, step) in steps {
                let vfs = if on_one { &one } else { &other };
                check(vfs, ino, &mut model, step).await;
            }
            assert_eq!(read_all(&one, ino).await, model);
        });
    }
}

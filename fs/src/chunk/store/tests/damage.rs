use super::super::format::{encode_pack_header, pack_name};
use super::*;

#[tokio::test]
async fn a_flipped_bit_anywhere_is_noticed_and_costs_at_most_one_chunk() {
    let (disk, lens) = filled().await;
    let mut rng = StdRng::seed_from_u64(11);
    let mut noticed = 0;
    for path in packs(&disk) {
        let size = disk.contents(&path).expect("contents").len() as u64;
        // Every header block, and some of everything.
        let blocks = (0..size)
            .step_by(BLOCK_BYTES)
            .map(|at| at + rng.random_range(0..70))
            .collect::<Vec<_>>();
        let others = (0..60).map(|_| rng.random_range(0..size)).collect::<Vec<_>>();
        for at in blocks.into_iter().chain(others) {
            let damaged = disk.fork();
            damaged
                .flip_bits(&path, at, 1 << rng.random_range(0..8))
                .expect("flip");
            let store = open(&damaged).expect("open");
            let mut lost = Vec::new();
            for (seq, len) in lens.iter().enumerate() {
                match store.read(id(seq as u64), 0, 0) {
                    Ok(bytes) => assert_eq!(bytes, body(seq as u64, *len), "{path:?} {at}: wrong bytes"),
                    Err(ReadError::Bad(_) | ReadError::Missing(_)) => lost.push(seq),
                    Err(error) => panic!("{path:?} {at}: {error}"),
                }
            }
            assert!(lost.len() <= 1, "{path:?} {at}: lost {lost:?}");
            noticed += u64::from(store.stats().bad_blocks > 0 || !lost.is_empty());
            for seq in lost {
                assert!(!store.is_good(id(seq as u64)));
                store
                    .put(id(seq as u64), body(seq as u64, lens[seq]))
                    .await
                    .expect("repair");
                assert_eq!(store.read(id(seq as u64), 0, 0), Ok(body(seq as u64, lens[seq])));
                assert_eq!(store.stats().damaged_chunks, 0);
            }
        }
    }
    assert!(noticed > 50, "{noticed} flips hit something");
}

#[tokio::test]
async fn only_the_blocks_that_are_read_have_to_be_good() {
    let (disk, _) = filled().await;
    let content = body(6, 50_000);
    let (path, at) = packs(&disk)
        .into_iter()
        .find_map(|path| {
            let bytes = disk.contents(&path).expect("contents");
            let at = bytes
                .windows(64)
                .position(|window| window == &content[20_000..20_064])?;
            Some((path, at as u64))
        })
        .expect("found on the medium");
    disk.flip_bits(&path, at, 4).expect("flip");
    let store = open(&disk).expect("open");
    assert_eq!(store.read(id(6), 0, 16_384), Ok(content.slice(..16_384)));
    assert_eq!(store.stats().bad_blocks, 0);
    assert_eq!(store.read(id(6), 20_000, 10), Err(ReadError::Bad(id(6))));
    assert_eq!((store.stats().bad_blocks, store.stats().damaged_chunks), (1, 1));
    assert_eq!(store.read(id(6), 24_576, 0), Ok(content.slice(24_576..)));
    assert!(!store.is_good(id(6)));
}

#[tokio::test]
async fn random_garbage_is_survived() {
    let (disk, lens) = filled().await;
    let mut rng = StdRng::seed_from_u64(5);
    for round in 0..200 {
        let damaged = disk.fork();
        for path in packs(&disk) {
            let size = disk.contents(&path).expect("contents").len();
            for _ in 0..rng.random_range(0..4) {
                let from = rng.random_range(0..size);
                let len = rng.random_range(0..(size - from).min(20_000) + 1);
                let mut bytes = vec![0; len];
                if rng.random_bool(0.5) {
                    rng.fill(bytes.as_mut_slice());
                }
                damaged.corrupt(&path, from as u64, &bytes).expect("corrupt");
            }
            if rng.random_bool(0.2) {
                let file = damaged
                    .open(&path, raftstore::disk::Open::Existing)
                    .expect("open");
                file.set_len(rng.random_range(0..size as u64)).expect("cut");
            }
        }
        let store = open(&damaged).expect("open");
        for (seq, len) in lens.iter().enumerate() {
            if let Ok(bytes) = store.read(id(seq as u64), 0, 0) {
                assert_eq!(bytes, body(seq as u64, *len), "round {round}");
            }
        }
        store
            .put(id(500), body(500, 10_000))
            .await
            .expect("it still works");
        drop(store);
        assert_eq!(
            open(&damaged).expect("reopen").read(id(500), 0, 0),
            Ok(body(500, 10_000))
        );
    }
}

#[tokio::test]
async fn a_copy_of_a_pack_inside_a_chunk_is_not_taken_for_records() {
    let (disk, _) = filled().await;
    let copy = disk.contents(&packs(&disk)[0]).expect("contents");
    let store = open(&disk).expect("open");
    store.put(id(700), copy.into()).await.expect("put");
    let chunks = store.chunks(None, 1000);
    drop(store);
    // Without directories and with the copy's own header gone, recovery walks through the copy.
    for path in packs(&disk) {
        let size = disk.contents(&path).expect("contents").len() as u64;
        disk.flip_bits(&path, size - 4000, 1).expect("flip");
        let bytes = disk.contents(&path).expect("contents");
        let name = 700_u64.to_le_bytes();
        for at in (0..bytes.len()).step_by(BLOCK_BYTES) {
            if bytes[at + 32..at + 40] == name {
                disk.flip_bits(&path, at as u64, 1).expect("flip");
            }
        }
    }
    let store = open(&disk).expect("reopen");
    let expected: Vec<_> = chunks.into_iter().filter(|(found, _)| found.seq != 700).collect();
    assert_eq!(store.chunks(None, 1000), expected);
    assert!(store.stats().bad_blocks > 0);
}

#[tokio::test]
async fn a_damaged_chunk_stays_in_its_pack_until_it_is_repaired() {
    let disk = SimDisk::new();
    let store = open(&disk).expect("open");
    for seq in 0..12 {
        store.put(id(seq), body(seq, 7000)).await.expect("put");
    }
    for seq in 1..6 {
        store.remove(id(seq));
    }
    let path = Path::new(DIR).join(pack_name(1));
    disk.flip_bits(&path, 3 * BLOCK_BYTES as u64 - 10, 1)
        .expect("flip");
    assert_eq!(store.compact_step(1 << 20).await.expect("step").damaged, [id(0)]);
    assert_eq!(
        store.compact_step(1 << 20).await.expect("step"),
        CompactStep::default()
    );
    assert!(packs(&disk).contains(&path));
    store.put(id(0), body(0, 7000)).await.expect("repair");
    drop(store);
    assert!(!packs(&disk).contains(&path), "nothing of it is in use");
    assert_eq!(open(&disk).expect("open").read(id(0), 0, 0), Ok(body(0, 7000)));
}

#[tokio::test]
async fn another_clusters_store_and_a_later_format_are_refused() {
    let (disk, _) = filled().await;
    let other = ChunkStore::open(
        Arc::new(disk.fork()),
        Path::new(DIR),
        StoreIdentity::of_cluster("another"),
        options(),
    );
    assert!(matches!(other.err(), Some(StoreError::Foreign(_))));

    let later = disk.fork();
    let mut header = encode_pack_header(&IDENTITY, 1);
    header[8] += 1;
    let crc = crc32fast::hash(&header[..60]);
    header[60..64].copy_from_slice(&crc.to_le_bytes());
    later.corrupt(&packs(&disk)[0], 0, &header).expect("corrupt");
    let before = packs(&later);
    let expected = StoreError::NewerFormat {
        found: FORMAT_VERSION + 1,
        supported: FORMAT_VERSION,
    };
    assert_eq!(open(&later).err(), Some(expected));
    assert_eq!(packs(&later), before, "nothing was changed");
}

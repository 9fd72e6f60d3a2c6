//! What arrives while the medium takes a batch shares the batch's sync.

use std::sync::mpsc::{Receiver, Sender, channel};

use raftstore::disk::{DiskFile, Open, Space};

use super::*;

/// A simulated disk on which the first write-back tells that it has begun, and waits to be let go.
struct HeldDisk {
    sim: SimDisk,
    hold: Arc<Mutex<Option<Hold>>>,
}

struct Hold {
    begun: Sender<()>,
    go_on: Receiver<()>,
}

impl Disk for HeldDisk {
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(HeldFile {
            file: self.sim.open(path, how)?,
            hold: Arc::clone(&self.hold),
        }))
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.sim.list(dir)
    }
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.sim.create_dir_all(dir)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.sim.remove(path)
    }
    fn remove_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.sim.remove_dir_all(dir)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.sim.rename(from, to)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.sim.sync_dir(dir)
    }
    fn set_mode(&self, path: &Path, mode: u32) -> io::Result<()> {
        self.sim.set_mode(path, mode)
    }
    fn space(&self, path: &Path) -> io::Result<Space> {
        self.sim.space(path)
    }
}

struct HeldFile {
    file: Arc<dyn DiskFile>,
    hold: Arc<Mutex<Option<Hold>>>,
}

impl DiskFile for HeldFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(buf, offset)
    }
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }
    fn write_back(&self, offset: u64, len: u64) -> io::Result<()> {
        let hold = self.hold.lock().expect("hold").take();
        if let Some(hold) = hold {
            hold.begun.send(()).expect("begun");
            hold.go_on.recv().expect("go on");
        }
        self.file.write_back(offset, len)
    }
}

#[tokio::test]
async fn what_arrives_while_the_medium_takes_a_batch_shares_its_sync() {
    let sim = SimDisk::new();
    let ((begun, has_begun), (go, go_on)) = (channel(), channel());
    let disk = HeldDisk {
        sim: sim.clone(),
        hold: Arc::new(Mutex::new(Some(Hold { begun, go_on }))),
    };
    let options = StoreOptions {
        reserve_bytes: 0,
        ..StoreOptions::default()
    };
    let store = ChunkStore::open(Arc::new(disk), Path::new(DIR), IDENTITY, options).expect("open");
    let store = Arc::new(store);
    let put = |seq| {
        let store = Arc::clone(&store);
        tokio::spawn(async move { store.put(id(seq), body(seq, 5000)).await })
    };
    let first = put(0);
    tokio::task::spawn_blocking(move || has_begun.recv().expect("begun"))
        .await
        .expect("begun");
    let before = sim.counters();
    let others = [put(1), put(2), put(3)];
    while store.shared.queue.waiting() < others.len() {
        tokio::task::yield_now().await;
    }
    go.send(()).expect("go on");
    for put in std::iter::once(first).chain(others) {
        put.await.expect("join").expect("put");
    }
    assert_eq!(sim.counters().syncs - before.syncs, 1, "one sync for all four");
    for seq in 0..4 {
        assert_eq!(store.read(id(seq), 0, 0), Ok(body(seq, 5000)));
    }
}

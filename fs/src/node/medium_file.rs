//! What the store knows of its medium.

use raftstore::clock::Clock;

use super::files;
use super::store::Layout;
use crate::medium::{Medium, measure};

/// What the store's medium takes: as it was found at the first start, or else found now, and kept. `None` if that is
/// not possible; then it is tried again at the next start. Blocks; to be called before anything else uses the medium.
#[must_use]
pub fn medium_of(layout: &Layout, clock: &dyn Clock) -> Option<Medium> {
    let disk = &**layout.disk();
    let path = layout.medium();
    if let Some(known) = files::read(disk, &path)
        .ok()
        .and_then(|bytes| Medium::decode(&bytes))
    {
        return Some(known);
    }
    let medium = match measure(disk, clock, &layout.medium_trial()) {
        Ok(medium) => medium,
        Err(error) => {
            tracing::warn!(%error, "the medium cannot be measured: sizes of batches are guesses");
            return None;
        }
    };
    tracing::info!(
        sync_ms = medium.sync_latency.as_secs_f64() * 1000.0,
        write_bytes_per_s = medium.write_bytes_per_s,
        "the medium was measured"
    );
    if let Err(error) = files::replace_file(disk, &path, medium.encode().as_bytes(), 0o600) {
        tracing::warn!(%error, "what the medium takes could not be written down; it is measured again at the next start");
    }
    Some(medium)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use std::sync::Arc;
    use std::time::Duration;

    use raftstore::disk::Disk;

    use crate::medium::testing::SlowDisk;

    #[test]
    fn it_is_measured_once_and_again_if_that_was_lost() {
        let disk = Arc::new(SlowDisk::new(Duration::from_millis(20), 8 << 20));
        let root = Path::new("/store");
        disk.create_dir_all(root).unwrap();
        let layout = Layout::new(Arc::clone(&disk) as Arc<dyn Disk>, root);
        let measured = || medium_of(&layout, &*disk.clock());
        let syncs = || disk.sim().counters().syncs;

        disk.sim().fail_sync_at(3);
        assert_eq!(measured(), None);
        assert!(disk.list(root).unwrap().is_empty());

        let first = measured().unwrap();
        assert!(first.sync_latency >= Duration::from_millis(20) && first.write_bytes_per_s > 7 << 20);
        assert_eq!(disk.list(root).unwrap(), ["medium"]);
        let so_far = syncs();
        assert_eq!(measured(), Some(first));
        assert_eq!(syncs(), so_far, "it was known");
        let after_power_cut = disk.sim().crash(1);
        let kept = after_power_cut.contents(&layout.medium()).unwrap();
        assert_eq!(Medium::decode(&kept), Some(first));

        disk.sim().flip_bits(&layout.medium(), 30, 1).unwrap();
        assert!(measured().is_some());
        assert!(syncs() > so_far, "it was damaged");
        let so_far = syncs();
        disk.remove(&layout.medium()).unwrap();
        assert!(measured().is_some());
        assert!(syncs() > so_far, "it was gone");
    }
}

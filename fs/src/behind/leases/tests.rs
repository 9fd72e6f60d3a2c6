//! What is lent to the kernel, and when it comes back.

use super::*;

const LONGEST: Duration = Duration::from_millis(250);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A lease for reading, granted at a moment.
fn lease(cache: &mut LeaseCache, ino: Ino, at: Duration) {
    let mode = LeaseMode::Shared;
    let (_, _) = cache.request(vec![Lease { ino, mode }]);
    cache.granted(cache.next_request, 0, at);
}

#[test]
fn the_kernel_is_lent_what_others_have_left_alone() {
    let mut cache = LeaseCache::default();
    lease(&mut cache, 1, ms(0));
    let moment = (cache.grants(), 0);
    assert_eq!(cache.lend(&[1], moment, ms(32), LONGEST), Duration::ZERO);
    assert_eq!(cache.lend(&[1], moment, ms(80), LONGEST), ms(10));
    assert_eq!(cache.lend(&[1], moment, ms(9000), LONGEST), LONGEST);
    assert_eq!(cache.lend(&[1, 2], moment, ms(9000), LONGEST), Duration::ZERO);
    // It came after what the kernel is to be told was looked up.
    lease(&mut cache, 2, ms(0));
    assert_eq!(cache.lend(&[1, 2], moment, ms(9000), LONGEST), Duration::ZERO);
    // It was changed after that.
    cache.touch([1].into_iter(), 7);
    let moment = (cache.grants(), 6);
    assert_eq!(cache.lend(&[1], moment, ms(9000), LONGEST), Duration::ZERO);
    assert_eq!(cache.lend(&[2], moment, ms(9000), LONGEST), LONGEST);
}

#[test]
fn a_lease_stays_until_the_kernel_has_forgotten() {
    let mut cache = LeaseCache::default();
    lease(&mut cache, 1, ms(0));
    let moment = (cache.grants(), 0);
    assert_eq!(cache.lend(&[1], moment, ms(1600), LONGEST), ms(200));
    assert!(cache.recalled(1, Some(LeaseMode::Shared)));
    assert_eq!(cache.lend(&[1], moment, ms(1600), LONGEST), Duration::ZERO);
    // The answer is on its way.
    assert_eq!(cache.close(1, ms(1600)), Closing::InUse);
    assert!(cache.lent(&[1], ms(1800)));
    // Others may read meanwhile, but not change it.
    assert_eq!(cache.close(1, ms(1700)), Closing::Ready(0));
    assert!(!cache.recalled(1, None));
    assert_eq!(cache.close(1, ms(1700)), Closing::Lent(ms(100)));
    assert!(cache.evict(0, ms(1700), |_, _| false).is_none());
    assert_eq!(cache.close(1, ms(1800)), Closing::Ready(0));
    assert!(cache.release(1, ms(1800)).is_some());
    assert_eq!(cache.close(1, ms(1800)), Closing::Gone);
}

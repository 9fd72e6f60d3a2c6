use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::*;
use crate::Error;

fn one(text: &str) -> Job {
    parse("x.fio", text).unwrap().remove(0)
}

fn refusal(text: &str) -> (usize, String) {
    match parse("x.fio", text) {
        Err(Error::JobFile { file, line, what }) => {
            assert_eq!(file, "x.fio");
            (line, what)
        }
        other => panic!("{text}: {other:?}"),
    }
}

#[test]
fn options_mean_what_they_mean_to_fio() {
    let job = one(
        "; a comment\n[global]\nbs=16k\nsize=8m\nstonewall\n\n[a]\nrw = randrw\nrwmixread=70\nnumjobs=8\n\
         fdatasync=1\nruntime=2m\ntime_based\nthinktime=100\nrate_iops=50\nrandseed=9\nsync=dsync\ndirect=1\nverify=crc32",
    );
    assert_eq!(
        job.access,
        Access {
            random: true,
            read_percent: 70
        }
    );
    assert_eq!((job.block_bytes, job.size_bytes, job.clones), (16384, 8 << 20, 8));
    assert_eq!(job.operations(), 512);
    assert_eq!(job.runtime, Some(Duration::from_secs(120)));
    assert_eq!(job.think, Duration::from_micros(100));
    assert_eq!((job.fdatasync_every, job.rate_iops, job.seed), (1, Some(50), 9));
    assert_eq!(job.open_sync, OpenSync::Data);
    assert!(job.direct && job.verify && job.time_based && job.random_map);
    assert!(job.options.contains(&("bs".to_owned(), "16k".to_owned())));
}

#[test]
fn sizes_and_times_have_units() {
    for (text, bytes) in [
        ("512", 512),
        ("4k", 4096),
        ("4KiB", 4096),
        ("4kb", 4096),
        ("1M", 1 << 20),
    ] {
        assert_eq!(units::bytes(text), Some(bytes), "{text}");
    }
    for text in [
        "",
        "k",
        "4x",
        "4ki",
        "4bb",
        "-1",
        "1.5m",
        "99999999999999999999",
        "99999999999t",
    ] {
        assert_eq!(units::bytes(text), None, "{text}");
    }
    let second = Duration::from_secs(1);
    assert_eq!(units::time("500ms", second), Some(second / 2));
    assert_eq!(units::time("3", second), Some(second * 3));
    assert_eq!(units::time("3y", second), None);
}

#[test]
fn errors_name_line_and_option() {
    let (line, what) = refusal("[a]\nsize=1m\nzonemode=zbd\n");
    assert_eq!(line, 3);
    assert!(what.contains("`zonemode`"), "{what}");
    for (text, line, word) in [
        ("bs=4k", 1, "[section]"),
        ("[a]\nbs=4y", 2, "bs"),
        ("[a]\nrw=trim\n", 2, "rw"),
        ("[a]\nioengine=libaio", 2, "ioengine"),
        ("[a]\niodepth=4", 2, "iodepth"),
        ("[a]\nnumjobs=100000", 2, "numjobs"),
        ("[a]\nsize=10%", 2, "size"),
        ("[../a]", 1, "name a job"),
        ("[a", 1, "]"),
        ("[a]\nsize=1m\n[a]", 3, "already"),
        ("[a]\nrw=read", 1, "size"),
        ("[a]\nsize=1m\ntime_based", 1, "runtime"),
        ("[a]\nsize=1m\n[b]\nsize=1m", 3, "stonewall"),
        ("", 1, "no job"),
    ] {
        let (found, what) = refusal(text);
        assert_eq!(found, line, "{text}: {what}");
        assert!(what.contains(word), "{text}: {what}");
    }
}

#[test]
fn garbage_is_refused_or_read_but_never_crashes() {
    let seed = 11;
    let mut rng = StdRng::seed_from_u64(seed);
    let words = [
        "[", "]", "a", "global", "=", "\n", "bs", "rw", "size", "4k", "rand", "1", ";", "%", "é", "\0",
    ];
    for _ in 0..20_000 {
        let len = rng.random_range(0..30);
        let text: String = (0..len)
            .map(|_| words[rng.random_range(0..words.len())])
            .collect();
        let _ = parse("x.fio", &text);
    }
}

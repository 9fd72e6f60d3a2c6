use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::*;
use crate::clock::{FakeClock, SystemClock};
use crate::job::{self, Job};
use crate::layer::Directory;
use crate::run::{Observer, Runner};
use crate::stats::{Live, Recorder, Side};

struct Quiet;

impl Observer for Quiet {
    fn begins(&self, _: &Job) {}
    fn runs(&self, _: &Job, _: Duration, _: &Live) {}
    fn ended(&self, _: &Job) {}
}

/// A hundred writes of 4 KiB in 10 ms each, with a sync of 30 ms after each tenth.
fn sample() -> Document {
    let (clock, live) = (FakeClock::default(), Live::default());
    let mut recorder = Recorder::new(&clock, &live).unwrap();
    for i in 1..=100 {
        let wait = |ms| -> Result<(), ()> {
            clock.advance(Duration::from_millis(ms));
            Ok(())
        };
        let step = recorder.step(|recorder| {
            recorder.timed(Side::Write, 4096, |_| wait(10))?;
            if i % 10 == 0 {
                recorder.timed(Side::Sync, 0, |_| wait(30))?;
            }
            Ok::<_, ()>(true)
        });
        assert_eq!(step, Ok(true));
    }
    let job = job::parse("x", "[sample]\nrw=write\nsize=400k\nfsync=10")
        .unwrap()
        .remove(0);
    Document::new(&[Outcome::new(job, recorder.finish(), 7)], 1_700_000_000_123)
}

#[test]
fn figures_are_exact() {
    let document = sample();
    let job = &document.jobs[0];
    assert_eq!(job.job_runtime, 1300);
    assert_eq!((job.write.total_ios, job.write.io_bytes), (100, 409_600));
    assert!((job.rate() - 100.0 / 1.3).abs() < 1e-6);
    assert_eq!(job.write.bw_bytes, 315_076);
    assert_eq!((job.sync.total_ios, job.sync.lat_ns.count), (10, 10));
    assert_eq!(job.write.clat_ns.max, 10_000_000);
    assert_eq!(job.write.clat_ns.at(99.9), Some(10_000_000));
    assert_eq!(job.sync.lat_ns.at(50.0), Some(30_000_000));
    assert_eq!(job.waiting().max, 40_000_000);
    let p50 = job.waiting().at(50.0).unwrap();
    assert!((9_990_000..10_010_000).contains(&p50), "{p50}");
    assert_eq!(document.timestamp, 1_700_000_000);
    // Four full quarters of a second, and more of a fifth and sixth.
    assert_eq!(job.write.iops_samples, 5);
}

#[test]
fn json_has_fios_shape_and_comes_back() {
    let json = serde_json::to_value(sample()).unwrap();
    assert!(
        json["fio version"]
            .as_str()
            .unwrap()
            .starts_with("bramble-bench-")
    );
    let job = &json["jobs"][0];
    assert_eq!(job["jobname"], "sample");
    assert_eq!(job["job options"]["fsync"], "10");
    assert_eq!(job["write"]["clat_ns"]["percentile"]["99.000000"], 10_000_000);
    assert_eq!(job["write"]["clat_ns"]["N"], 100);
    assert_eq!(job["bramble_bench"]["verified_blocks"], 7);
    let back: Document = serde_json::from_value(json.clone()).unwrap();
    assert_eq!(serde_json::to_value(back).unwrap(), json);
    let bare: Document = serde_json::from_str(r#"{"fio version":"fio-3","jobs":[{"jobname":"a"}]}"#).unwrap();
    assert!((bare.jobs[0].rate()).abs() < 1e-9);
    assert!(table::summary(&bare).text().contains("| a "));
}

/// The keys of an object that reports writes and syncs; percentiles and our own object aside.
fn keys(prefix: &str, value: &Value, found: &mut BTreeSet<String>) {
    if let Value::Object(object) = value {
        for (key, value) in object {
            found.insert(format!("{prefix}/{key}"));
            keys(&format!("{prefix}/{key}"), value, found);
        }
    }
}

#[test]
fn json_has_the_keys_of_fios_own() {
    let dir = tempfile::tempdir().unwrap();
    let text = "[a]\nrw=randwrite\nbs=4k\nsize=256k\nfdatasync=4\n";
    let file = dir.path().join("a.fio");
    crate::files::write(&file, text).unwrap();
    let output = Command::new("fio")
        .arg("--output-format=json")
        .arg(&file)
        .current_dir(dir.path())
        .output();
    let Ok(output) = output else {
        eprintln!("SKIPPED: there is no fio on this machine to compare with");
        return;
    };
    let fio: Value = serde_json::from_slice(&output.stdout).unwrap();
    let files = Directory::open(dir.path()).unwrap();
    let runner = Runner {
        files: &files,
        clock: &SystemClock,
        observer: &Quiet,
        limit: None,
        keep: false,
    };
    let mut document = Document::new(&[], 0);
    let mut each = |outcome: Outcome| {
        document.add(&outcome);
        Ok(())
    };
    runner
        .run(&job::parse("a.fio", text).unwrap(), &mut each)
        .unwrap();
    let ours = serde_json::to_value(document).unwrap();
    for part in ["write", "sync"] {
        let (mut theirs, mut own) = (BTreeSet::new(), BTreeSet::new());
        keys("", &fio["jobs"][0][part], &mut theirs);
        keys("", &ours["jobs"][0][part], &mut own);
        assert!(theirs.len() > 10, "{fio}");
        let missing: Vec<_> = theirs.difference(&own).collect();
        assert!(missing.is_empty(), "{part}: {missing:?}");
    }
    assert_eq!(fio["jobs"][0]["job options"], ours["jobs"][0]["job options"]);
    assert_eq!(
        fio["jobs"][0]["write"]["total_ios"],
        ours["jobs"][0]["write"]["total_ios"]
    );
    // And fio's own report can be read.
    let read: Document = serde_json::from_value(fio).unwrap();
    assert!(read.jobs[0].rate() > 0.0);
    assert!(read.jobs[0].latency().at(99.0).is_some());
}

#[test]
fn tables_align() {
    let text = table::summary(&sample()).text();
    let widths: BTreeSet<_> = text.lines().map(|line| line.chars().count()).collect();
    assert_eq!(widths.len(), 1, "{text}");
    assert!(text.contains("76.9") && text.contains("30.0 ms"), "{text}");
}

#[test]
fn numbers_read_well() {
    for (value, text) in [
        (0.0, "0"),
        (0.123, "0.12"),
        (5.43, "5.4"),
        (1234567.8, "1,234,568"),
        (99.7, "100"),
    ] {
        assert_eq!(table::number(value), text);
    }
    for (ns, text) in [
        (12.0, "12 ns"),
        (1234.0, "1.23 us"),
        (45_600_000.0, "45.6 ms"),
        (2e9, "2.00 s"),
        (1e12, "1000 s"),
    ] {
        assert_eq!(table::time(ns), text);
    }
}

#[test]
fn comparisons_show_ratios() {
    let one = sample();
    let mut two = sample();
    two.jobs[0].write.iops *= 3.0;
    two.jobs[0].jobname.push_str("-other");
    two.jobs.push(sample().jobs.remove(0));
    two.jobs[1].write.iops *= 2.5;
    let reports = [("ext4", &one), ("bramble", &two)];
    let text = compare::RATE.table(&reports, &compare::to_first(&reports)).text();
    assert!(
        text.contains("bramble / ext4") && text.contains("2.5 x"),
        "{text}"
    );
    let other = text.lines().find(|line| line.contains("sample-other")).unwrap();
    assert!(other.contains("- |"), "{other}");
    assert!(
        compare::WAIT_P99
            .table(&reports, &[(1, 0)])
            .text()
            .contains("1.0 x")
    );
}

#[test]
fn a_job_that_failed_has_no_figures_but_a_reason() {
    let mut document = sample();
    let job = Job {
        name: "broken".to_owned(),
        ..Job::default()
    };
    let failure = Error::Usage("no <disk>\nand more".to_owned());
    document.add(&Outcome::failed(job, failure).unwrap());
    assert_eq!(document.failures().collect::<Vec<_>>(), ["broken: no <disk>"]);
    let reports = [("a", &document), ("b", &document)];
    for table in [
        table::summary(&document),
        compare::RATE.table(&reports, &compare::to_first(&reports)),
    ] {
        let text = table.text();
        let line = text.lines().find(|line| line.contains("broken")).unwrap();
        assert!(!line.contains(|c: char| ('1'..='9').contains(&c)), "{line}");
    }
    assert!(html::page("x", "", &[], &reports).contains("broken: no &lt;disk&gt;"));
    let back: Document = serde_json::from_str(&serde_json::to_string(&document).unwrap()).unwrap();
    assert_eq!(back.failures().count(), 1);
}

#[test]
fn a_page_is_complete_in_itself() {
    let document = sample();
    let summary = table::summary(&document);
    let html = html::page("A <run>", "note", &[&summary], &[("one", &document)]);
    assert!(
        html.contains("A &lt;run&gt;") && html.matches("<svg").count() == 2,
        "{html}"
    );
    assert!(!html.contains("http") && !html.contains("src="), "{html}");
    assert_eq!(
        html.matches("<section>").count(),
        html.matches("</section>").count()
    );
}

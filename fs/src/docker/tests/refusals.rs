//! Requests that cannot be carried out.

use rand::rngs::StdRng;
use rand::{Rng as _, RngCore as _, SeedableRng as _};

use super::*;

const CALLS: [&str; 9] = [
    "/Plugin.Activate",
    "/VolumeDriver.Capabilities",
    "/VolumeDriver.Create",
    "/VolumeDriver.Remove",
    "/VolumeDriver.Mount",
    "/VolumeDriver.Unmount",
    "/VolumeDriver.Path",
    "/VolumeDriver.Get",
    "/VolumeDriver.List",
];

#[tokio::test(flavor = "multi_thread")]
async fn options_are_refused_with_the_list() {
    let host = Host::new().await;
    for (option, value) in [("sise", "1G"), ("size", "0"), ("mode", "rwx"), ("keep", "maybe")] {
        let body = json!({ "Name": "db", "Opts": { option: value } });
        let why = host.refused("Create", body).await;
        let listed = OPTIONS.iter().all(|(name, _)| why.contains(&format!("{name} (")));
        assert!(why.contains(option) && listed, "{why}");
    }
    assert!(host.volumes.names().await.is_empty(), "nothing was made");
    host.ok("Create", json!({ "Name": "db", "Opts": { "size": "1G" } }))
        .await;
    host.refused("Create", json!({ "Name": "db", "Opts": { "size": "2G" } }))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_are_paths_are_refused() {
    let host = Host::new().await;
    for bad in [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "/etc",
        "a b",
        "\0",
        "-x",
        &"x".repeat(129),
    ] {
        for call in ["Create", "Remove", "Mount", "Unmount", "Path", "Get"] {
            let why = host.refused(call, json!({ "Name": bad, "ID": "a" })).await;
            assert!(why.contains("cannot be the name"), "{call} {bad:?}: {why}");
        }
    }
    assert!(host.volumes.names().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_request_is_refused() {
    let host = Host::new().await;
    for body in [
        "",
        "null",
        "[]",
        "{",
        "7",
        r#"{"Name":7}"#,
        r#"{"Name":"a","Opts":["x"]}"#,
    ] {
        let (status, answer) = host.post("/VolumeDriver.Create", body.as_bytes()).await.unwrap();
        assert_eq!(status, 200);
        assert!(
            answer["Err"].as_str().is_some_and(|why| !why.is_empty()),
            "{body}: {answer}"
        );
    }
    let (status, _) = host.post("/VolumeDriver.Explode", b"{}").await.unwrap();
    assert_eq!(status, 404);
    let answer = host
        .raw(b"GET /VolumeDriver.List HTTP/1.1\r\nHost: x\r\n\r\n")
        .await;
    assert!(
        answer.starts_with(b"HTTP/1.1 405"),
        "{}",
        String::from_utf8_lossy(&answer)
    );
    // What Docker says that it sends and accepts does not matter.
    let answer = host
        .raw(b"POST /VolumeDriver.List HTTP/1.1\r\nHost: x\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\n{}")
        .await;
    assert!(
        answer.starts_with(b"HTTP/1.1 200"),
        "{}",
        String::from_utf8_lossy(&answer)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_have_a_bound() {
    let host = Host::new().await;
    let large = json!({ "Name": "db", "Opts": { "path": "x".repeat(1 << 20) } }).to_string();
    let answer = host.post("/VolumeDriver.Create", large.as_bytes()).await;
    if let Some((status, answer)) = answer {
        assert_eq!(status, 413, "{answer}");
    }
    let chunked = b"POST /VolumeDriver.Create HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunk = [b"10000\r\n".to_vec(), vec![b' '; 0x10000], b"\r\n".to_vec()].concat();
    let answer = host.raw(&[chunked.to_vec(), chunk.repeat(20)].concat()).await;
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 413"));
    let head = format!(
        "POST /Plugin.Activate HTTP/1.1\r\nX: {}\r\n\r\n",
        "y".repeat(1 << 20)
    );
    let answer = host.raw(head.as_bytes()).await;
    assert!(!answer.starts_with(b"HTTP/1.1 200"));
    assert!(host.volumes.names().await.is_empty());
    host.ok("List", json!({})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_is_survived() {
    let seed = 7;
    let mut rng = StdRng::seed_from_u64(seed);
    let host = Host::new().await;
    for _ in 0..300 {
        let mut bytes = vec![0; rng.random_range(1..400)];
        rng.fill_bytes(&mut bytes);
        let call = CALLS[rng.random_range(0..CALLS.len())];
        if let Some((status, answer)) = host.post(call, &bytes).await {
            assert_eq!(status, 200, "{answer}");
        }
        // A head of their own.
        let mut stream = UnixStream::connect(host.socket()).await.unwrap();
        let _ = stream.write_all(&bytes).await;
    }
    // Requests with a few bytes changed.
    let good = json!({ "Name": "db", "Opts": { "size": "1G" }, "ID": "a" }).to_string();
    for _ in 0..300 {
        let mut bytes = good.clone().into_bytes();
        for _ in 0..rng.random_range(1..4) {
            let at = rng.random_range(0..bytes.len());
            bytes[at] = rng.random();
        }
        let call = CALLS[rng.random_range(0..CALLS.len())];
        assert!(host.post(call, &bytes).await.is_some());
    }
    host.ok("List", json!({})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_client_holds_nobody_up() {
    let host = Host::new().await;
    let mut silent = Vec::new();
    for _ in 0..40 {
        let mut stream = UnixStream::connect(host.socket()).await.unwrap();
        stream.write_all(b"POST /VolumeDriver.List HT").await.unwrap();
        silent.push(stream);
    }
    host.ok("List", json!({})).await;
}

//! What Docker asks when all is well.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn the_plugin_says_what_it_is() {
    let host = Host::new().await;
    let activated = host.call("Plugin.Activate", json!({})).await;
    assert_eq!(activated, json!({ "Implements": ["VolumeDriver"] }));
    let can = host.ok("Capabilities", json!({})).await;
    assert_eq!(can["Capabilities"]["Scope"], "global");
    // Docker sends some calls without a body.
    let (status, _) = host.post("/Plugin.Activate", b"").await.unwrap();
    assert_eq!(status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_lives() {
    let host = Host::new().await;
    let place = host.mount().join("volumes/db");
    let options = json!({ "size": "1G", "uid": "999", "keep": "false" });
    host.ok("Create", json!({ "Name": "db", "Opts": options })).await;
    host.ok("Create", json!({ "Name": "db", "Opts": options })).await;
    assert!(place.is_dir());

    let got = host.ok("Get", name("db")).await;
    let volume = &got["Volume"];
    assert_eq!(volume["Name"], "db");
    assert_eq!(volume["Mountpoint"], place.to_str().unwrap());
    assert_eq!(volume["CreatedAt"], "2023-11-14T22:13:20Z");
    assert_eq!(volume["Status"]["size_bytes"], 1 << 30);
    assert_eq!(volume["Status"]["used_bytes"], 4096);
    assert_eq!(volume["Status"]["replicas"], 3);
    assert_eq!(volume["Status"]["health"], "ok");

    host.ok(
        "Create",
        json!({ "Name": "elsewhere", "Opts": { "path": "apps/db" } }),
    )
    .await;
    let listed = host.ok("List", json!({})).await;
    let names: Vec<_> = listed["Volumes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|v| &v["Name"])
        .collect();
    assert_eq!(names, ["db", "elsewhere"]);
    let apart = host.ok("Mount", mount("elsewhere", "x")).await;
    assert_eq!(
        apart["Mountpoint"],
        host.mount().join("apps/db").to_str().unwrap()
    );

    let mounted = host.ok("Mount", mount("db", "a")).await;
    assert_eq!(mounted["Mountpoint"], place.to_str().unwrap());
    assert_eq!(
        host.ok("Path", name("db")).await["Mountpoint"],
        mounted["Mountpoint"]
    );
    host.ok("Unmount", mount("db", "a")).await;
    host.ok("Remove", name("db")).await;
    assert!(!place.exists());
    host.ok("Remove", name("db")).await;
    let why = host.refused("Get", name("db")).await;
    assert_eq!(why, "there is no volume db");
}

#[tokio::test(flavor = "multi_thread")]
async fn mounts_are_counted_by_id_and_keep_a_volume() {
    let host = Host::new().await;
    host.ok("Create", name("db")).await;
    for id in ["a", "a", "b"] {
        host.ok("Mount", mount("db", id)).await;
    }
    assert_eq!(
        host.volumes.holds("db").await,
        [("a".into(), 2), ("b".into(), 1)].into()
    );
    for id in ["a", "b", "b", "never"] {
        let why = host.refused("Remove", name("db")).await;
        assert!(why.contains("in use on pi-1"), "{why}");
        host.ok("Unmount", mount("db", id)).await;
    }
    let users = host.ok("Get", name("db")).await["Volume"]["Status"]["in_use_on"].clone();
    assert_eq!(users, json!(["pi-1"]));
    host.ok("Unmount", mount("db", "a")).await;
    host.ok("Remove", name("db")).await;
    host.ok("Unmount", mount("db", "a")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_may_be_missing_or_strange() {
    let host = Host::new().await;
    host.ok("Create", name("db")).await;
    let strange = "x y\n".repeat(5000);
    for body in [name("db"), mount("db", &strange)] {
        host.ok("Mount", body.clone()).await;
        assert_eq!(host.volumes.holds("db").await.len(), 1);
        host.ok("Unmount", body).await;
        assert!(host.volumes.holds("db").await.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_daemon_knows_what_is_mounted() {
    let mut host = Host::new().await;
    host.ok("Create", name("db")).await;
    host.ok("Mount", mount("db", "a")).await;
    host.stop().await;
    assert!(!host.socket().exists(), "the socket goes with the daemon");
    host.start().await;
    host.refused("Remove", name("db")).await;
    host.ok("Unmount", mount("db", "a")).await;
    host.ok("Remove", name("db")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_mounted_before_a_boot_is_not_in_use() {
    let mut host = Host::new().await;
    host.ok("Create", name("db")).await;
    for id in ["a", "a", "b"] {
        host.ok("Mount", mount("db", id)).await;
    }
    host.stop().await;
    let device = std::fs::metadata(host.mount()).unwrap().dev();
    host.start_on(device, "next").await;
    until("all to be taken back", async || {
        host.volumes.holds("db").await.is_empty()
    })
    .await;
    host.ok("Mount", mount("db", "a")).await;
    host.stop().await;
    host.start_on(device, "next").await;
    host.ok("List", json!({})).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(host.volumes.holds("db").await, [("a".into(), 1)].into());
}

#[tokio::test(flavor = "multi_thread")]
async fn of_creations_at_once_one_counts() {
    let host = Arc::new(Host::new().await);
    let create = |opts: Value| {
        let host = Arc::clone(&host);
        tokio::spawn(async move {
            let body = json!({ "Name": "db", "Opts": opts });
            host.call("VolumeDriver.Create", body).await["Err"] == ""
        })
    };
    // More than there are places for connections.
    let same: Vec<_> = (0..100).map(|_| create(json!({ "size": "1G" }))).collect();
    for answer in same {
        assert!(answer.await.unwrap());
    }
    assert_eq!(host.volumes.names().await, ["db"]);
    host.ok("Remove", name("db")).await;
    let other: Vec<_> = (1..=20)
        .map(|n| create(json!({ "size": format!("{n}G") })))
        .collect();
    let mut made = 0;
    for answer in other {
        made += u32::from(answer.await.unwrap());
    }
    assert_eq!(made, 1);
}

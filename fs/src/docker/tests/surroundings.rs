//! No quorum, no mount, a Docker that comes and goes.

use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

/// All calls that say something about volumes.
const ABOUT_VOLUMES: [&str; 7] = ["Create", "Remove", "Mount", "Unmount", "Path", "Get", "List"];

#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_the_connection_breaks() {
    let host = Host::new().await;
    host.ok("Create", name("db")).await;
    host.volumes.set_mood(Mood::Fail);
    for call in ABOUT_VOLUMES {
        for volume in ["db", "none"] {
            let body = mount(volume, "a").to_string();
            let answer = host.post(&format!("/VolumeDriver.{call}"), body.as_bytes()).await;
            assert_eq!(answer, None, "{call} {volume}");
        }
    }
    // Docker would take the plugin for local, or for none.
    host.call("Plugin.Activate", json!({})).await;
    assert_eq!(
        host.ok("Capabilities", json!({})).await["Capabilities"]["Scope"],
        "global"
    );
    host.volumes.set_mood(Mood::Answer);
    host.ok("Get", name("db")).await;
    assert!(host.volumes.holds("db").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_waits_for_the_quorum() {
    let host = Arc::new(Host::new().await);
    host.ok("Create", name("db")).await;
    host.volumes.set_mood(Mood::Wait);
    let waiting = tokio::spawn({
        let host = Arc::clone(&host);
        async move { host.ok("Get", name("db")).await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!waiting.is_finished());
    host.volumes.set_mood(Mood::Answer);
    assert_eq!(waiting.await.unwrap()["Volume"]["Name"], "db");
}

#[tokio::test(start_paused = true)]
async fn a_request_does_not_wait_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let volumes = Arc::new(MemoryVolumes::new(dir.path().into()));
    let device = std::fs::metadata(dir.path()).unwrap().dev();
    let tree = MountedTree::new(dir.path(), device);
    let driver = VolumeDriver::new(Arc::clone(&volumes) as Arc<dyn VolumeStore>, tree, here("boot"));
    volumes.set_mood(Mood::Wait);
    for call in [Call::Get, Call::List, Call::Create, Call::Mount, Call::Remove] {
        let body = mount("db", "a").to_string();
        assert!(driver.answer(call, body.as_bytes()).await.is_err(), "{call:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_that_nobody_waited_for_is_taken_back() {
    let host = Host::new().await;
    host.ok("Create", name("db")).await;
    host.volumes.set_mood(Mood::WaitToHold);
    let body = mount("db", "late").to_string();
    let head = format!(
        "POST /VolumeDriver.Mount HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let mut stream = UnixStream::connect(host.socket()).await.unwrap();
    stream
        .write_all(format!("{head}{body}").as_bytes())
        .await
        .unwrap();
    host.volumes.has_begun(1).await;
    drop(stream);
    // Until the plugin has noticed.
    tokio::time::sleep(Duration::from_millis(100)).await;
    host.volumes.set_mood(Mood::Answer);
    host.ok("Mount", mount("db", "other")).await;
    until("the mount to be taken back", async || {
        host.volumes.holds("db").await.len() == 1
    })
    .await;
    assert!(host.volumes.holds("db").await.contains_key("other"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_local_disk_is_never_handed_out() {
    let mut host = Host::new().await;
    host.ok("Create", name("db")).await;
    host.stop().await;
    // As if the mount had gone, and the directory below it were there.
    let device = std::fs::metadata("/proc").unwrap().dev();
    host.start_on(device, "boot").await;
    for call in ["Mount", "Path"] {
        let answer = host.call(&format!("VolumeDriver.{call}"), mount("db", "a")).await;
        assert!(
            answer["Err"].as_str().unwrap().contains("not mounted"),
            "{answer}"
        );
        assert!(answer.get("Mountpoint").is_none(), "{answer}");
    }
    assert!(
        host.volumes.holds("db").await.is_empty(),
        "what was not mounted is not in use"
    );
    host.stop().await;
    host.start().await;
    std::fs::remove_dir(host.mount().join("volumes/db")).unwrap();
    let why = host.refused("Mount", mount("db", "a")).await;
    assert!(why.contains("is not there"), "{why}");
    assert!(
        !host.mount().join("volumes/db").exists(),
        "it is not made, either"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_is_put_back_when_it_is_lost() {
    let host = Host::new().await;
    std::fs::remove_dir_all(host.dir.path().join("run")).unwrap();
    until("the socket to be back", async || host.socket().exists()).await;
    host.ok("List", json!({})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_daemon_leaves_the_first_its_socket_and_takes_over() {
    let mut host = Host::new().await;
    let first = host.plugin.take().unwrap();
    host.start().await;
    host.ok("List", json!({})).await;
    first.stop().await;
    until("the second to take over", async || {
        host.socket().exists() && UnixStream::connect(host.socket()).await.is_ok()
    })
    .await;
    host.ok("List", json!({})).await;
}

/// Answers `GET /volumes` like a Docker, with `failures` errors first; counts the requests.
fn fake_docker(host: &Host, failures: u32) -> (Arc<AtomicU32>, tokio::task::JoinHandle<()>) {
    let path = host.dir.path().join("run/docker.sock");
    let _ = std::fs::remove_file(&path);
    let listener = tokio::net::UnixListener::bind(path).unwrap();
    let asked = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&asked);
    let task = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            let len = stream.read(&mut request).await.unwrap();
            assert!(request[..len].starts_with(b"GET /volumes HTTP/1.1"));
            let status = if count.fetch_add(1, Ordering::Relaxed) < failures {
                500
            } else {
                200
            };
            let answer = format!("HTTP/1.1 {status} X\r\nContent-Length: 2\r\n\r\n{{}}");
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    (asked, task)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_docker_that_comes_up_is_asked_once() {
    let host = Host::new().await;
    let (asked, first) = fake_docker(&host, 1);
    let times = |asked: &Arc<AtomicU32>| asked.load(Ordering::Relaxed);
    until("Docker to be asked again", async || times(&asked) == 2).await;
    first.abort();
    let (again, _second) = fake_docker(&host, 0);
    until("the next Docker to be asked", async || times(&again) == 1).await;
    assert_eq!(times(&asked), 2);
}

//! Swarm: services whose node dies, and the example stacks.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bramble_tests::docker::{DockerHost, IMAGE, cluster, fetch, make_swarm};
use bramble_tests::images::MARIADB;
use bramble_tests::run::describe;
use bramble_tests::{Cluster, Seed, brief_or_full, wait_for};
use rand::Rng as _;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(120);

fn inspect(host: &DockerHost, kind: &str, name: &str) -> Value {
    let text = host.docker(&[kind, "inspect", name]);
    serde_json::from_str::<Value>(&text).unwrap()[0].clone()
}

/// Customers of the web application, who order one after the other and note what was confirmed.
struct Shop {
    url: String,
    netns: String,
    confirmed: Arc<Mutex<BTreeSet<u32>>>,
    closed: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Shop {
    /// Asks the application on a node; the orders are numbered from `first` on.
    fn open(cluster: &Cluster, index: usize, first: u32) -> Self {
        let node = cluster.node(index);
        let ip = node.listen.split(':').next().unwrap();
        let (url, netns) = (format!("http://{ip}:8081/cgi-bin"), node.netns.clone().unwrap());
        let confirmed = Arc::new(Mutex::new(BTreeSet::new()));
        let closed = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (url, netns) = (url.clone(), netns.clone());
            let (confirmed, closed) = (confirmed.clone(), closed.clone());
            move || {
                // A number is used once: whether it was written when nothing was confirmed, nobody knows.
                for n in first.. {
                    if closed.load(Ordering::Relaxed) {
                        return;
                    }
                    let answer = fetch(&netns, &format!("{url}/add?{n}"));
                    if answer.is_some_and(|text| text.trim() == n.to_string()) {
                        confirmed.lock().unwrap_or_else(PoisonError::into_inner).insert(n);
                    } else {
                        std::thread::sleep(Duration::from_millis(200));
                    }
                }
            }
        });
        Self {
            url,
            netns,
            confirmed,
            closed,
            thread,
        }
    }

    /// Orders that were confirmed so far.
    fn orders(&self) -> usize {
        self.confirmed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    fn wait_orders(&self, number: usize) {
        wait_for(&format!("{number} orders"), PATIENCE, || {
            (self.orders() >= number).then_some(())
        });
    }

    /// Ends the orders, and finds all that were confirmed.
    fn close(self) {
        self.closed.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        let confirmed = self.confirmed.lock().unwrap_or_else(PoisonError::into_inner);
        let text = fetch(&self.netns, &format!("{}/rows", self.url)).expect("the application answers");
        let rows: BTreeSet<u32> = text
            .lines()
            .map(|line| line.parse().unwrap_or_else(|_| panic!("{text}")))
            .collect();
        let lost: Vec<_> = confirmed.difference(&rows).collect();
        assert!(lost.is_empty(), "orders that were confirmed are lost: {lost:?}");
        eprintln!("{} orders confirmed, {} rows", confirmed.len(), rows.len());
    }
}

/// Where a service's task runs, if one does and it is not on `not_on`.
fn runs_on(host: &DockerHost, service: &str, not_on: Option<&str>) -> Option<String> {
    let format = "{{.Node}} {{.CurrentState}}";
    let output = host.try_docker(&[
        "service",
        "ps",
        "--filter",
        "desired-state=running",
        "--format",
        format,
        service,
    ]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let running = text
        .lines()
        .filter_map(|line| line.split_once(" Running").map(|(node, _)| node));
    running
        .map(str::to_owned)
        .find(|node| Some(node.as_str()) != not_on)
}

#[test]
fn services_come_up_on_another_node_with_their_data() {
    let cluster = cluster("swarm", 3);
    let mut seed = Seed::new();
    let hosts: Vec<_> = (0..3).map(|index| DockerHost::start(&cluster, index)).collect();
    let ip = |index: usize| cluster.node(index).listen.split(':').next().unwrap().to_owned();
    let index_of = |name: &str| cluster.nodes().iter().position(|node| node.name == name).unwrap();
    make_swarm(&cluster, &hosts);
    hosts.iter().for_each(|host| host.import(MARIADB));

    // All services begin on the node that is to die.
    let first = seed.random_range(0..3);
    let others: Vec<usize> = (0..3).filter(|index| *index != first).collect();
    let set_others = |availability: &str| {
        for other in &others {
            let name = &cluster.node(*other).name;
            hosts[0].docker(&["node", "update", "--availability", availability, name]);
        }
    };
    set_others("pause");
    let serve = "echo started >>/data/starts; sync /data/starts; exec httpd -f -p 8080 -h /data";
    let mount = "type=volume,source=web,target=/data,volume-driver=bramble,volume-opt=size=64M";
    let how = [
        "--endpoint-mode",
        "dnsrr",
        "--publish",
        "mode=host,target=8080,published=8080",
    ];
    let service = [
        "service",
        "create",
        "--detach",
        "--no-resolve-image",
        "--name",
        "web",
        "--mount",
        mount,
    ];
    hosts[0].docker(&[&service[..], &how, &[IMAGE, "sh", "-euc", serve]].concat());
    let stack = Path::new(env!("CARGO_MANIFEST_DIR")).join("stack");
    hosts[0].shell(
        &stack,
        "head -c 24 /dev/urandom | base64 | docker secret create shop_db_password -
         docker stack deploy --compose-file shop.yml shop",
    );
    for service in ["web", "shop_db"] {
        let at = wait_for(&format!("{service} to run"), PATIENCE, || {
            runs_on(&hosts[0], service, None)
        });
        assert_eq!(index_of(&at), first);
    }
    set_others("active");
    let page = |at: usize, name: &str| {
        let netns = cluster.node(others[0]).netns.clone().unwrap();
        fetch(&netns, &format!("http://{}:8080/{name}", ip(at)))
    };
    wait_for("the service to answer", Duration::from_secs(30), || {
        page(first, "starts")
    });

    // Each row is on the media before it counts as written.
    let container = hosts[first].docker(&["ps", "-q", "--filter", "label=com.docker.swarm.service.name=web"]);
    let write = "i=0; while [ $i -lt 40 ]; do i=$((i+1)); echo row $i >>/data/rows; sync /data/rows; echo row $i; done";
    let written = hosts[first].docker(&["exec", &container, "sh", "-euc", write]);
    assert_eq!(written.lines().count(), 40);

    // Another node's Docker sees the volume, and does not remove it.
    let shown = inspect(&hosts[others[0]], "volume", "web");
    let users = shown["Status"]["in_use_on"].as_array().unwrap().clone();
    assert_eq!(users, [cluster.node(first).name.as_str()], "{shown}");
    let why = hosts[others[0]].refused(&["volume", "rm", "web"]);
    assert!(
        why.contains("in use on") && why.contains(&cluster.node(first).name),
        "{why}"
    );

    let shop = Shop::open(&cluster, others[0], 1);
    shop.wait_orders(20);
    let database = hosts[first].docker(&[
        "ps",
        "-q",
        "--filter",
        "label=com.docker.swarm.service.name=shop_db",
    ]);
    let copy = cluster.local_dir("copy").join("starts");
    hosts[first].docker(&[
        "cp",
        &format!("{database}:/var/lib/mysql/starts"),
        copy.to_str().unwrap(),
    ]);
    assert_eq!(fs::read(&copy).unwrap(), b"installed\n");

    let killed = Instant::now();
    hosts[first].kill9();
    cluster.node(first).kill9();
    let gone = cluster.node(first).name.clone();
    let second = wait_for("the service to run elsewhere", Duration::from_secs(120), || {
        runs_on(&hosts[others[0]], "web", Some(&gone))
    });
    let second = index_of(&second);
    assert_ne!(second, first);
    let before = shop.orders();
    let starts = wait_for("the service to answer elsewhere", Duration::from_secs(60), || {
        page(second, "starts")
    });
    eprintln!(
        "node killed, service back after {:.1} s",
        killed.elapsed().as_secs_f64()
    );
    assert_eq!(starts, "started\nstarted\n");
    assert_eq!(
        page(second, "rows").unwrap().trim_end(),
        written,
        "all rows that were acknowledged"
    );

    // The database has recovered on what it had, and the application goes on.
    shop.wait_orders(before + 5);
    eprintln!(
        "node killed, orders are taken again within {:.1} s",
        killed.elapsed().as_secs_f64()
    );
    let database = wait_for("the database to run elsewhere", PATIENCE, || {
        runs_on(&hosts[others[0]], "shop_db", Some(&gone))
    });
    let database_host = &hosts[index_of(&database)];
    shop.close();
    let volume = cluster.node(second).path("volumes/shop_db");
    assert_eq!(
        fs::read_to_string(volume.join("starts")).unwrap(),
        "installed\nfound\n"
    );
    let container = database_host.docker(&[
        "ps",
        "-q",
        "--filter",
        "label=com.docker.swarm.service.name=shop_db",
    ]);
    let sql = "check table shop.orders extended";
    let client = [
        "mariadb",
        "--no-defaults",
        "-uroot",
        "-S",
        "/tmp/socket",
        "-N",
        "-e",
        sql,
    ];
    let checked = database_host.docker(&[&["exec", &container], &client[..]].concat());
    assert!(checked.ends_with("status\tOK"), "{checked}");

    // Without a quorum, Docker is not told that there is no such volume: it waits.
    let third = 3 - first - second;
    cluster.node(third).kill9();
    let mut asking = hosts[second].command(&["volume", "inspect", "web"]);
    let asking = asking
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_secs(3));
    cluster.start(third);
    let answer = asking.wait_with_output().unwrap();
    let text = describe(&answer).to_lowercase();
    assert!(!text.contains("no such volume"), "{text}");
    wait_for("the volume to be seen again", Duration::from_secs(60), || {
        let seen = hosts[second].try_docker(&["volume", "inspect", "web"]);
        seen.status.success().then_some(())
    });

    // The node that died comes back, and then all lose their power.
    let mut hosts = hosts;
    hosts[first].clear_run();
    cluster.start(first);
    cluster.node(first).wait_healthy();
    hosts[first] = DockerHost::boot(&cluster, first);
    for round in 0..brief_or_full(1, 20) {
        let shop = Shop::open(&cluster, others[0], (round + 1) * 10_000);
        shop.wait_orders(5);
        hosts = blackout(&cluster, hosts, &mut seed);
        let booted = Instant::now();
        let before = shop.orders();
        shop.wait_orders(before + 5);
        wait_for("the service to answer after a blackout", PATIENCE, || {
            (0..3).find_map(|at| page(at, "rows").filter(|rows| rows.trim_end() == written))
        });
        eprintln!(
            "blackout {round}: all services were back {:.1} s after the last Docker",
            booted.elapsed().as_secs_f64()
        );
        shop.close();
    }
    let starts = fs::read_to_string(volume.join("starts")).unwrap();
    assert!(
        starts.starts_with("installed\nfound\nfound\n") && starts.matches("installed").count() == 1,
        "{starts}"
    );
}

/// All hosts lose their power at once, and boot in random order: the nodes, and Docker once its node is ready, as the
/// drop-in for Docker has it.
fn blackout(cluster: &Cluster, hosts: Vec<DockerHost>, seed: &mut Seed) -> Vec<DockerHost> {
    std::thread::scope(|scope| {
        for (host, node) in hosts.iter().zip(cluster.nodes()) {
            scope.spawn(|| host.kill9());
            scope.spawn(|| node.kill9());
        }
    });
    hosts.iter().for_each(DockerHost::clear_run);
    drop(hosts);
    let delays: Vec<_> = (0..3)
        .map(|_| Duration::from_millis(seed.random_range(0..4000)))
        .collect();
    std::thread::scope(|scope| {
        let boots: Vec<_> = delays
            .iter()
            .enumerate()
            .map(|(index, delay)| {
                scope.spawn(move || {
                    std::thread::sleep(*delay);
                    cluster.start(index);
                    let _ = cluster.node(index).cli_ok(&["wait"]);
                    DockerHost::boot(cluster, index)
                })
            })
            .collect();
        boots.into_iter().map(|boot| boot.join().unwrap()).collect()
    })
}

/// What an example stack is to come to: services, with the targets and sources of their mounts (`volume:NAME` or a path).
struct Example {
    file: &'static str,
    stack: &'static str,
    services: &'static [(&'static str, &'static [(&'static str, &'static str)])],
}

const DOCKER_SOCKET: (&str, &str) = ("/var/run/docker.sock", "/var/run/docker.sock");

const EXAMPLES: &[Example] = &[
    Example {
        file: "wordpress.yml",
        stack: "wordpress",
        services: &[
            ("db", &[("/var/lib/mysql", "volume:wordpress_db")]),
            ("wordpress", &[("/var/www/html", "volume:wordpress_html")]),
        ],
    },
    Example {
        file: "wordpress-bind.yml",
        stack: "wordpress",
        services: &[
            ("db", &[("/var/lib/mysql", "/mnt/cluster/wordpress/db")]),
            ("wordpress", &[("/var/www/html", "/mnt/cluster/wordpress/html")]),
        ],
    },
    Example {
        file: "portainer.yml",
        stack: "portainer",
        services: &[
            (
                "agent",
                &[
                    DOCKER_SOCKET,
                    ("/var/lib/docker/volumes", "/var/lib/docker/volumes"),
                ],
            ),
            ("portainer", &[("/data", "volume:portainer_data")]),
        ],
    },
    Example {
        file: "traefik.yml",
        stack: "traefik",
        services: &[(
            "traefik",
            &[("/certificates", "volume:traefik_certificates"), DOCKER_SOCKET],
        )],
    },
    Example {
        file: "zabbix.yml",
        stack: "zabbix",
        services: &[
            ("agent", &[]),
            ("db", &[("/var/lib/mysql", "volume:zabbix_db")]),
            ("server", &[]),
            ("web", &[]),
        ],
    },
];

/// The commands in the head of an example: its lines that are indented by a tab stop.
fn commands(text: &str) -> String {
    let head = text.lines().take_while(|line| line.starts_with('#'));
    let commands: Vec<_> = head.filter_map(|line| line.strip_prefix("#     ")).collect();
    commands.join("\n")
}

/// What holds for each service of an example.
fn check_service(host: &DockerHost, example: &Example, service: &str, tree: &Path) {
    let name = format!("{}_{service}", example.stack);
    let spec = inspect(host, "service", &name)["Spec"].clone();
    let task = &spec["TaskTemplate"];
    let container = &task["ContainerSpec"];
    let (_, expected) = example
        .services
        .iter()
        .find(|(name, _)| *name == service)
        .unwrap();
    let mounts = container["Mounts"].as_array().cloned().unwrap_or_default();
    let mut found: Vec<_> = mounts
        .iter()
        .map(|mount| {
            let source = mount["Source"].as_str().unwrap();
            let source = match mount["Type"].as_str().unwrap() {
                "volume" => {
                    let driver = &mount["VolumeOptions"]["DriverConfig"];
                    assert_eq!(driver["Name"], "bramble", "{name}: {mount}");
                    assert!(driver["Options"]["size"].is_string(), "{name}: {mount}");
                    format!("volume:{source}")
                }
                _ => source.replace(tree.to_str().unwrap(), "/mnt/cluster"),
            };
            (mount["Target"].as_str().unwrap().to_owned(), source)
        })
        .collect();
    found.sort();
    let mut expected: Vec<_> = expected
        .iter()
        .map(|(target, source)| ((*target).to_owned(), (*source).to_owned()))
        .collect();
    expected.sort();
    assert_eq!(found, expected, "{name}");

    // Started again without end, within a limit of memory; one ends before the next begins.
    let restart = &task["RestartPolicy"];
    assert_eq!(restart["Condition"], "any", "{name}: {restart}");
    assert!(
        restart["MaxAttempts"].as_u64().unwrap_or(0) == 0,
        "{name}: {restart}"
    );
    let limit = task["Resources"]["Limits"]["MemoryBytes"].as_u64();
    assert!(limit.is_some_and(|bytes| bytes <= 512 << 20), "{name}: {limit:?}");
    assert_eq!(spec["UpdateConfig"]["Order"], "stop-first", "{name}");
    if service == "db" {
        assert_eq!(spec["Mode"]["Replicated"]["Replicas"], 1, "{name}");
        assert!(container["Healthcheck"]["Test"].is_array(), "{name}");
        assert!(
            container["StopGracePeriod"].as_u64() >= Some(60_000_000_000),
            "{name}"
        );
    }
    // No password is in the file.
    let environment = container["Env"].as_array().cloned().unwrap_or_default();
    for variable in environment.iter().map(|variable| variable.as_str().unwrap()) {
        let (key, value) = variable.split_once('=').unwrap();
        assert!(
            !key.contains("PASSWORD")
                || value.starts_with("/run/secrets/")
                || key.ends_with("RANDOM_ROOT_PASSWORD"),
            "{name}: {key}"
        );
    }
}

#[test]
fn the_example_stacks_deploy_as_their_heads_say() {
    let cluster = cluster("example_stacks", 1);
    let host = DockerHost::start(&cluster, 0);
    let hosts = [host];
    make_swarm(&cluster, &hosts);
    let host = &hosts[0];
    let tree = cluster.node(0).path("");
    let tree = tree.to_str().unwrap().trim_end_matches('/');
    let dir = cluster.local_dir("stacks");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/stacks");
    let files = fs::read_dir(&source)
        .unwrap()
        .map(|entry| entry.unwrap().file_name());
    let files: BTreeSet<_> = files
        .filter(|name| name.to_str().unwrap().ends_with(".yml"))
        .collect();
    assert_eq!(
        files,
        EXAMPLES.iter().map(|example| example.file.into()).collect()
    );
    for example in EXAMPLES {
        // The tree is mounted elsewhere here.
        let text = fs::read_to_string(source.join(example.file)).unwrap();
        let text = text.replace("/mnt/cluster", tree);
        fs::write(dir.join(example.file), &text).unwrap();
        let commands = commands(&text);
        assert!(commands.contains(example.file), "{}: {commands}", example.file);
        if commands.contains("export ") {
            let without: Vec<_> = commands
                .lines()
                .filter(|line| !line.contains("export "))
                .collect();
            let output = host.try_shell(&dir, &without.join("\n"));
            assert!(!output.status.success(), "{}: needs nothing", example.file);
        }
        host.shell(&dir, &commands);
        let listed = host.docker(&["stack", "services", "--format", "{{.Name}}", example.stack]);
        let listed: BTreeSet<_> = listed.lines().map(str::to_owned).collect();
        let expected = example
            .services
            .iter()
            .map(|(service, _)| format!("{}_{service}", example.stack));
        assert_eq!(listed, expected.collect());
        for (service, _) in example.services {
            check_service(host, example, service, Path::new(tree));
        }
        // Nothing is left of it for the next.
        host.docker(&["stack", "rm", example.stack]);
        for secret in host.docker(&["secret", "ls", "-q"]).lines() {
            host.docker(&["secret", "rm", secret]);
        }
        let of_stack = format!("label=com.docker.stack.namespace={}", example.stack);
        wait_for("the stack's networks to be gone", PATIENCE, || {
            host.docker(&["network", "ls", "-q", "--filter", &of_stack])
                .is_empty()
                .then_some(())
        });
    }
}

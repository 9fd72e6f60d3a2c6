//! Machines of a cluster whose Dockers are simulated.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use super::rules::{Step, next_step};
use super::*;

/// Where one Docker stands.
#[derive(Debug, Clone, Default)]
struct Machine {
    swarm: Option<String>,
    node_id: String,
    /// The whole machine has no power.
    is_off: bool,
    /// Docker is not asked for an answer in vain.
    is_silent: bool,
}

#[derive(Debug, Default)]
struct State {
    machines: BTreeMap<String, Machine>,
    swarms: BTreeMap<String, Vec<SwarmNode>>,
    recorded: Option<String>,
    ids: u32,
    made: u32,
    /// A machine that loses its power between making a Swarm and writing it down.
    dies_after_init: Option<String>,
}

impl State {
    fn id(&mut self, what: &str) -> String {
        self.ids += 1;
        format!("{what}{}", self.ids)
    }

    fn own(&self, name: &str) -> OwnSwarm {
        let machine = &self.machines[name];
        let nodes = machine.swarm.as_ref().map(|id| &self.swarms[id]);
        let manages =
            nodes.is_some_and(|nodes| nodes.iter().any(|n| n.id == machine.node_id && n.is_manager));
        OwnSwarm {
            hostname: name.to_owned(),
            state: if machine.swarm.is_some() {
                SwarmState::Active
            } else {
                SwarmState::Inactive
            },
            node_id: machine.node_id.clone(),
            swarm_id: machine.swarm.clone().filter(|_| manages),
            managers: vec![format!("{name}:2377")],
            ..OwnSwarm::default()
        }
    }

    fn add(&mut self, name: &str, swarm: &str, is_manager: bool) {
        let node_id = self.id("n");
        let nodes = self.swarms.entry(swarm.to_owned()).or_default();
        nodes.push(SwarmNode {
            id: node_id.clone(),
            hostname: name.to_owned(),
            is_manager,
            is_reachable: is_manager,
            ..SwarmNode::default()
        });
        let machine = self.machines.entry(name.to_owned()).or_default();
        (machine.swarm, machine.node_id) = (Some(swarm.to_owned()), node_id);
    }

    /// The Swarm's managers see that a machine has gone.
    fn mark_down(&mut self, name: &str) {
        for node in self
            .swarms
            .values_mut()
            .flatten()
            .filter(|node| node.hostname == name)
        {
            (node.is_down, node.is_reachable) = (true, false);
        }
    }
}

#[derive(Clone, Default)]
struct World {
    state: Arc<Mutex<State>>,
    lock: Arc<tokio::sync::Mutex<()>>,
    /// Nobody waits for anybody, as if each lock was lost at once.
    no_lock: bool,
}

impl World {
    fn of(names: &[&str]) -> Self {
        let world = Self::default();
        for name in names {
            world
                .state()
                .machines
                .insert((*name).to_owned(), Machine::default());
        }
        world
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn enroll(&self, name: &str) -> Result<Enrolled, EnrollError> {
        let here = Here {
            world: self.clone(),
            name: name.to_owned(),
        };
        let enroll = Enroll {
            docker: &here,
            peers: &here,
            register: &here,
            advertise: [192, 0, 2, 1].into(),
            say: &|_| {},
        };
        enroll.run().await
    }

    fn made(&self) -> u32 {
        self.state().made
    }

    fn managers(&self, swarm: &str) -> usize {
        self.state().swarms[swarm]
            .iter()
            .filter(|node| node.is_manager)
            .count()
    }

    /// Takes a machine's power, and what it knew.
    fn destroy(&self, name: &str) {
        let mut state = self.state();
        state.mark_down(name);
        state.machines.insert(name.to_owned(), Machine::default());
    }
}

/// One machine, and its way to the others.
#[derive(Clone)]
struct Here {
    world: World,
    name: String,
}

struct Turn(#[expect(dead_code, reason = "holds the lock")] Option<tokio::sync::OwnedMutexGuard<()>>);
impl Hold for Turn {}

#[async_trait]
impl Docker for Here {
    async fn own(&self) -> Result<OwnSwarm, DockerError> {
        tokio::task::yield_now().await;
        let state = self.world.state();
        if state.machines[&self.name].is_silent {
            return Err(DockerError::Silent("socket".into(), "refused".into()));
        }
        Ok(state.own(&self.name))
    }
    async fn nodes(&self) -> Result<Vec<SwarmNode>, DockerError> {
        let state = self.world.state();
        let swarm = state.machines[&self.name].swarm.clone().unwrap();
        Ok(state.swarms[&swarm].clone())
    }
    async fn tokens(&self) -> Result<JoinTokens, DockerError> {
        Ok(JoinTokens {
            manager: "m".into(),
            worker: "w".into(),
        })
    }
    async fn init(&self, _advertise: IpAddr) -> Result<(), DockerError> {
        tokio::task::yield_now().await;
        let mut state = self.world.state();
        let swarm = state.id("s");
        state.made += 1;
        state.add(&self.name, &swarm, true);
        Ok(())
    }
    async fn join(&self, _advertise: IpAddr, managers: &[String], token: &str) -> Result<(), DockerError> {
        tokio::task::yield_now().await;
        let mut state = self.world.state();
        let manager = managers[0].split(':').next().unwrap();
        let swarm = state.machines[manager].swarm.clone().unwrap();
        state.add(&self.name, &swarm, token == "m");
        Ok(())
    }
    async fn leave(&self) -> Result<(), DockerError> {
        let mut state = self.world.state();
        let machine = state.machines.get_mut(&self.name).unwrap();
        let (swarm, id) = (
            machine.swarm.take().unwrap(),
            std::mem::take(&mut machine.node_id),
        );
        state.swarms.get_mut(&swarm).unwrap().retain(|node| node.id != id);
        Ok(())
    }
    async fn demote(&self, _node_id: &str) -> Result<(), DockerError> {
        unreachable!("the daemon of a manager does that")
    }
    async fn remove(&self, _node_id: &str) -> Result<(), DockerError> {
        unreachable!("the daemon of a manager does that")
    }
}

#[async_trait]
impl Peers for Here {
    async fn look(&self) -> Result<Vec<View>, String> {
        tokio::task::yield_now().await;
        let state = self.world.state();
        let view = |name: &String| {
            let machine = &state.machines[name];
            if machine.is_off {
                return Err("cannot connect".to_owned());
            }
            if machine.is_silent {
                return Ok(Seen {
                    trouble: "Docker does not answer".into(),
                    ..Seen::default()
                });
            }
            let own = state.own(name);
            let nodes = own.swarm_id.as_ref().map(|id| state.swarms[id].clone());
            Ok(Seen {
                state: own.state,
                tokens: own.swarm_id.as_ref().map(|_| JoinTokens {
                    manager: "m".into(),
                    worker: "w".into(),
                }),
                swarm_id: own.swarm_id,
                managers: own.managers,
                nodes: nodes.unwrap_or_default(),
                ..Seen::default()
            })
        };
        let views = state.machines.keys().map(|name| View {
            node: name.clone(),
            seen: view(name),
        });
        Ok(views.collect())
    }

    async fn remove(&self, via: &str, node_id: &str) -> Result<(), String> {
        let mut state = self.world.state();
        let swarm = state.machines[via].swarm.clone().unwrap();
        let nodes = state.swarms.get_mut(&swarm).unwrap();
        let node = nodes.iter().find(|node| node.id == node_id).unwrap();
        rules::may_remove(nodes, node)?;
        nodes.retain(|node| node.id != node_id);
        Ok(())
    }
}

#[async_trait]
impl Register for Here {
    async fn hold(&self) -> Result<Box<dyn Hold>, String> {
        let turn = match self.world.no_lock {
            true => None,
            false => Some(Arc::clone(&self.world.lock).lock_owned().await),
        };
        Ok(Box::new(Turn(turn)))
    }
    fn recorded(&self) -> Result<Option<String>, String> {
        Ok(self.world.state().recorded.clone())
    }
    fn record(&self, swarm_id: &str) -> Result<String, String> {
        let mut state = self.world.state();
        if state.dies_after_init.as_deref() == Some(self.name.as_str()) {
            state.dies_after_init = None;
            return Err("the power is gone".into());
        }
        Ok(state.recorded.get_or_insert_with(|| swarm_id.to_owned()).clone())
    }
}

#[tokio::test(start_paused = true)]
async fn machines_that_begin_at_once_end_in_one_swarm() {
    let names = ["a", "b", "c", "d", "e", "f", "g"];
    for no_lock in [false, true] {
        let world = World {
            no_lock,
            ..World::of(&names)
        };
        let all = futures::future::join_all(names.map(|name| world.enroll(name))).await;
        let all: Vec<Enrolled> = all.into_iter().map(Result::unwrap).collect();
        assert!(
            all.iter().all(|end| end.swarm_id == all[0].swarm_id),
            "no lock: {no_lock}: {all:?}"
        );
        let swarm = all[0].swarm_id.clone();
        assert_eq!(world.state().swarms[&swarm].len(), names.len());
        if no_lock {
            assert!(world.made() > 1, "the race took place");
        } else {
            assert_eq!((world.made(), world.managers(&swarm)), (1, MANAGERS_MAX));
        }
        // Again: nothing changes.
        let before = format!("{:?}", world.state());
        for name in names {
            world.enroll(name).await.unwrap();
        }
        assert_eq!(format!("{:?}", world.state()), before);
    }
}

#[tokio::test(start_paused = true)]
async fn a_swarm_that_was_made_by_hand_is_found_through_any_machine() {
    let world = World::of(&["a", "b", "c"]);
    world.state().add("c", "by-hand", true);
    let end = world.enroll("a").await.unwrap();
    assert_eq!((end.swarm_id.as_str(), end.managers), ("by-hand", 2));
    assert_eq!(world.state().recorded.as_deref(), Some("by-hand"));
    assert_eq!(world.state().made, 0);
}

#[tokio::test(start_paused = true)]
async fn a_power_cut_between_making_and_writing_down_leaves_one_swarm() {
    let world = World::of(&["a", "b"]);
    world.state().dies_after_init = Some("a".into());
    assert!(world.enroll("a").await.is_err());
    world.state().machines.get_mut("a").unwrap().is_off = true;
    // It may have made one: no second is made while nobody knows.
    let why = world.enroll("b").await.unwrap_err().to_string();
    assert!(why.contains("whether a is in a Swarm is not known"), "{why}");
    assert_eq!(world.state().made, 1);
    world.state().machines.get_mut("a").unwrap().is_off = false;
    let swarm = world.enroll("b").await.unwrap().swarm_id;
    assert_eq!(world.enroll("a").await.unwrap().swarm_id, swarm);
    assert_eq!((world.made(), world.managers(&swarm)), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn a_docker_that_does_not_answer_is_waited_for() {
    let world = World::of(&["a", "b"]);
    world.state().machines.get_mut("b").unwrap().is_silent = true;
    let (late, end) = (world.clone(), world.enroll("a"));
    let answers = async {
        tokio::time::sleep(std::time::Duration::from_secs(20)).await;
        assert_eq!(late.state().made, 0);
        late.state().machines.get_mut("b").unwrap().is_silent = false;
    };
    let (end, ()) = tokio::join!(end, answers);
    assert!(end.unwrap().is_manager);
}

#[tokio::test(start_paused = true)]
async fn a_blank_machine_takes_a_dead_ones_place() {
    let world = World::of(&["a", "b", "c"]);
    for name in ["a", "b", "c"] {
        world.enroll(name).await.unwrap();
    }
    let swarm = world.state().recorded.clone().unwrap();
    world.destroy("b");
    let end = world.enroll("b").await.unwrap();
    assert_eq!((end.managers, end.nodes, end.is_manager), (3, 3, true));
    let names: Vec<String> = world.state().swarms[&swarm]
        .iter()
        .map(|n| n.hostname.clone())
        .collect();
    assert_eq!(names, ["a", "c", "b"]);

    // A machine that lives keeps its place, whoever has its name.
    world.state().machines.insert("b".into(), Machine::default());
    let why = world.enroll("b").await.unwrap_err().to_string();
    assert!(why.contains("takes another machine named b"), "{why}");
    assert_eq!(world.state().swarms[&swarm].len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_blank_machine_takes_a_dead_workers_place() {
    let names = ["a", "b", "c", "d", "e", "f"];
    let world = World::of(&names);
    for name in names {
        world.enroll(name).await.unwrap();
    }
    let swarm = world.state().recorded.clone().unwrap();
    let old = world.state().machines["f"].node_id.clone();
    world.destroy("f");
    let end = world.enroll("f").await.unwrap();
    assert_eq!(
        (end.managers, end.nodes, end.is_manager),
        (MANAGERS_MAX, 6, false)
    );
    assert!(world.state().swarms[&swarm].iter().all(|node| node.id != old));

    // Only managers count for the Swarm's quorum: a dead worker goes also while there is just enough of them.
    world.destroy("f");
    world.state().mark_down("d");
    world.state().mark_down("e");
    assert!(world.enroll("f").await.is_ok());
    // One that lives keeps its place.
    world.state().machines.insert("f".into(), Machine::default());
    let why = world.enroll("f").await.unwrap_err().to_string();
    assert!(why.contains("takes another machine named f"), "{why}");
}

#[tokio::test(start_paused = true)]
async fn a_dead_machines_role_does_not_count() {
    let names = ["a", "b", "c", "d"];
    let world = World::of(&names);
    for name in names {
        world.enroll(name).await.unwrap();
    }
    // Demoted by an administrator, or by a removal that ended halfway: nobody knows which, and the second left the Swarm a
    // manager short.
    let swarm = world.state().recorded.clone().unwrap();
    let demote = |node: &mut SwarmNode| {
        if node.hostname == "d" {
            (node.is_manager, node.is_reachable) = (false, false);
        }
    };
    world
        .state()
        .swarms
        .get_mut(&swarm)
        .unwrap()
        .iter_mut()
        .for_each(demote);
    // While it lives, nobody changes that.
    let end = world.enroll("d").await.unwrap();
    assert_eq!((end.managers, end.nodes, end.is_manager), (3, 4, false));
    world.destroy("d");
    let end = world.enroll("d").await.unwrap();
    assert_eq!((end.managers, end.nodes, end.is_manager), (4, 4, true));
}

#[tokio::test(start_paused = true)]
async fn a_swarm_never_loses_its_quorum_to_a_removal() {
    let world = World::of(&["a", "b", "c"]);
    for name in ["a", "b", "c"] {
        world.enroll(name).await.unwrap();
    }
    let swarm = world.state().recorded.clone().unwrap();
    world.destroy("b");
    world.state().mark_down("c");
    let why = world.enroll("b").await.unwrap_err().to_string();
    assert!(why.contains("1 of 2 managers"), "{why}");
    assert_eq!(world.state().swarms[&swarm].len(), 3);
}

#[tokio::test(start_paused = true)]
async fn what_is_of_another_swarm_is_left_alone() {
    let world = World::of(&["a", "b"]);
    world.enroll("a").await.unwrap();
    world.state().add("b", "other", true);
    let before = format!("{:?}", world.state());
    let why = world.enroll("b").await.unwrap_err().to_string();
    assert!(
        why.contains("not the cluster's") && why.contains("swarm leave"),
        "{why}"
    );
    assert_eq!(format!("{:?}", world.state()), before);

    // Two that nobody has chosen from.
    world.state().recorded = None;
    let why = world.enroll("a").await.unwrap_err().to_string();
    assert!(
        why.contains("different Swarms") && why.contains("b is in other"),
        "{why}"
    );
    // A worker of one that cannot be asked.
    let world = World::of(&["a", "b"]);
    world.state().add("far", "far-away", true);
    world.state().add("b", "far-away", false);
    world.state().machines.remove("far");
    let why = world.enroll("a").await.unwrap_err().to_string();
    assert!(why.contains("b works in a Swarm"), "{why}");
}

#[test]
fn a_recorded_swarm_without_a_manager_is_not_replaced() {
    let own = OwnSwarm::default();
    let views = [View {
        node: "a".into(),
        seen: Ok(Seen::default()),
    }];
    let Step::Wait(why) = next_step(&own, Some("s"), &views) else {
        panic!("a second Swarm would be made")
    };
    assert!(
        why.contains("--force-new-cluster") && why.contains("swarm.json"),
        "{why}"
    );
    assert_eq!(next_step(&own, None, &views), Step::Make);
    let locked = OwnSwarm {
        state: SwarmState::Locked,
        ..OwnSwarm::default()
    };
    assert!(matches!(next_step(&locked, Some("s"), &views), Step::Refuse(_)));
}

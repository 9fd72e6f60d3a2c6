//! Sessions, repeats, and the cluster's own records.

use bytes::Bytes;

use super::support::*;
use crate::meta::apply::sessions::ANSWERS_MAX;
use crate::meta::*;

fn proposal(session: SessionId, seq: u64, ack_floor: u64, name: &str) -> Proposal {
    let new = NewInode {
        kind: FileKind::Regular,
        mode: 0o644,
        umask: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        target: Bytes::new(),
    };
    let name = Bytes::copy_from_slice(name.as_bytes());
    Proposal {
        session,
        seq,
        ack_floor,
        chunk_floor: 0,
        time: Default::default(),
        op: Op::Create {
            parent: ROOT_INO,
            name,
            new,
            exclusive: true,
            ino: None,
        },
        payload: Bytes::new(),
    }
}

fn malformed(answer: &Answer) -> bool {
    matches!(answer, Err(MetaError::Malformed(_)))
}

#[test]
fn a_repeat_gets_the_same_answer_and_does_nothing() {
    let bench = Bench::new();
    let session = bench.local.session();
    let propose = |seq, floor, name| {
        bench
            .local
            .propose(proposal(session, seq, floor, name))
            .unwrap()
            .1
    };
    let first = propose(1, 1, "a");
    // Proposals may arrive in another order than they were numbered.
    let third = propose(3, 1, "c");
    let second = propose(2, 1, "b");
    let failed = propose(4, 1, "a");
    assert_eq!(failed, refused(Refusal::Exists));
    assert_eq!(inode_of(second.clone()).ino, inode_of(third.clone()).ino + 1);
    bench.unlink_as_system("a");
    let (_, events) = bench.listen(|| {
        assert_eq!(propose(1, 1, "a"), first);
        assert_eq!(propose(2, 1, "b"), second);
        assert_eq!(propose(3, 1, "c"), third);
        assert_eq!(propose(4, 1, "a"), failed);
    });
    assert_eq!(events, []);
    assert_eq!(bench.names(ROOT_INO), ["c", "b"]);
    // What was acknowledged is forgotten.
    assert!(propose(5, 3, "d").is_ok());
    assert_eq!(propose(2, 1, "b"), Err(MetaError::Stale));
    assert_eq!(propose(3, 1, "c"), third);
    // An older floor does not lower it.
    assert!(propose(6, 1, "e").is_ok());
    assert_eq!(propose(2, 1, "b"), Err(MetaError::Stale));
    assert_eq!(bench.reader().session(session).unwrap().unwrap().ack_floor, 3);
    assert_eq!(bench.kept_answers(session), [3, 4, 5, 6]);
}

#[test]
fn refuses_numbers_that_make_no_sense() {
    let bench = Bench::new();
    let session = bench.local.session();
    let propose = |seq, floor| bench.local.propose(proposal(session, seq, floor, "x")).unwrap().1;
    assert!(malformed(&propose(0, 0)));
    assert!(malformed(&propose(5, 6)));
    assert!(malformed(&propose(ANSWERS_MAX + 1, 1)));
    assert!(malformed(&propose(u64::MAX, u64::MAX - ANSWERS_MAX)));
    assert_eq!(bench.names(ROOT_INO), Vec::<String>::new());
    assert_eq!(bench.kept_answers(session), []);
    assert!(propose(ANSWERS_MAX, 1).is_ok());
    // A jump of the floor is no long work.
    assert_eq!(propose(u64::MAX, u64::MAX), refused(Refusal::Exists));
    assert_eq!(bench.kept_answers(session), [u64::MAX]);
}

#[test]
fn an_expired_session_is_refused() {
    let bench = Bench::new();
    let old = bench.local.session();
    bench.mkfile(ROOT_INO, "a");
    let (new, events) = bench.listen(|| bench.local.open_session().unwrap());
    assert!(new > old);
    assert_eq!(events, [Event::SessionExpired { session: old }]);
    let answer = bench.local.propose(proposal(old, 1, 1, "a")).unwrap().1;
    assert_eq!(answer, Err(MetaError::SessionExpired(old)));
    let answer = bench.local.propose(proposal(old, 99, 99, "b")).unwrap().1;
    assert_eq!(answer, Err(MetaError::SessionExpired(old)));
    assert_eq!(bench.reader().session(old).unwrap(), None);
    assert_eq!(bench.kept_answers(old), []);
    let sessions = bench.reader().sessions().unwrap();
    assert_eq!(
        sessions.iter().map(|session| session.id).collect::<Vec<_>>(),
        [new]
    );
    let (answer, events) = bench.listen(|| bench.local.system(Op::ExpireSession { session: old }).unwrap().1);
    assert_eq!((answer, events), (Ok(Reply::Done), vec![]));
    // A session may also end itself.
    assert_eq!(bench.submit(Op::ExpireSession { session: new }), Ok(Reply::Done));
    assert_eq!(
        bench.submit(Op::Reap { inodes: vec![] }),
        Err(MetaError::SessionExpired(new))
    );
    bench.check();
}

#[test]
fn only_a_member_opens_a_session() {
    let bench = Bench::new();
    assert_eq!(
        bench.local.system(Op::OpenSession { node: 77 }).unwrap().1,
        refused(Refusal::NotFound)
    );
}

fn add_node(bench: &Bench, name: &str, token_hash: Option<[u8; 32]>) -> Answer {
    let op = Op::AddNode {
        name: name.into(),
        listen: "10.0.0.1:1".into(),
        token_hash,
    };
    bench.local.system(op).unwrap().1
}

fn node_of(answer: Answer) -> NodeId {
    match answer {
        Ok(Reply::Node(node)) => node.id,
        other => panic!("no node in {other:?}"),
    }
}

#[test]
fn there_is_one_cluster() {
    let bench = Bench::new();
    let info = ClusterInfo {
        cluster_id: "again".into(),
        replicas: 3,
    };
    assert_eq!(
        bench.local.system(Op::InitCluster(info)).unwrap().1,
        refused(Refusal::Exists)
    );
    assert_eq!(bench.reader().cluster().unwrap().unwrap().cluster_id, "local");
    let root = bench.inode(ROOT_INO);
    assert_eq!(
        (root.nlink, root.parent, root.mode, root.kind),
        (2, ROOT_INO, 0o755, FileKind::Directory)
    );
}

#[test]
fn a_token_lets_one_node_in() {
    let bench = Bench::new();
    let hash = [7; 32];
    let system = |op| bench.local.system(op).unwrap().1;
    assert_eq!(add_node(&bench, "b", Some(hash)), Err(MetaError::BadToken));
    system(Op::AddToken { hash, valid_s: 60 }).unwrap();
    system(Op::AddToken {
        hash: [8; 32],
        valid_s: 90,
    })
    .unwrap();
    assert_eq!(bench.reader().tokens().unwrap(), [(hash, 60), ([8; 32], 90)]);
    assert_eq!(node_of(add_node(&bench, "b", Some(hash))), 2);
    assert_eq!(add_node(&bench, "c", Some(hash)), Err(MetaError::BadToken));
    assert_eq!(system(Op::ExpireToken { hash: [8; 32] }), Ok(Reply::Done));
    assert_eq!(add_node(&bench, "c", Some([8; 32])), Err(MetaError::BadToken));
    assert_eq!(bench.reader().tokens().unwrap(), []);
    assert_eq!(bench.reader().nodes().unwrap().len(), 2);
}

#[test]
fn a_node_that_comes_back_has_a_new_id() {
    let bench = Bench::new();
    let system = |op| bench.local.system(op).unwrap().1;
    let old = node_of(add_node(&bench, "b", None));
    let Ok(Reply::Session(session)) = system(Op::OpenSession { node: old }) else {
        panic!()
    };
    system(Op::SetPlacement {
        group: 3,
        nodes: vec![1, old],
    })
    .unwrap();
    system(Op::SetPlacement {
        group: 4,
        nodes: vec![old],
    })
    .unwrap();
    let (new, events) = bench.listen(|| node_of(add_node(&bench, "b", None)));
    assert_eq!(new, old + 1);
    for event in [Event::SessionExpired { session }, Event::Placement, Event::Nodes] {
        assert!(events.contains(&event), "{event:?}");
    }
    let ids: Vec<NodeId> = bench
        .reader()
        .nodes()
        .unwrap()
        .iter()
        .map(|node| node.id)
        .collect();
    assert_eq!(ids, [1, new]);
    assert_eq!(bench.reader().placement(3).unwrap(), [1]);
    assert_eq!(bench.reader().placement(4).unwrap(), []);
    assert_eq!(system(Op::OpenSession { node: old }), refused(Refusal::NotFound));
    system(Op::RemoveNode { node: new }).unwrap();
    assert_eq!(system(Op::RemoveNode { node: new }), Ok(Reply::Done));
    assert_eq!(node_of(add_node(&bench, "b", None)), new + 1);
}

#[test]
fn nodes_and_placement_change() {
    let bench = Bench::new();
    let system = |op| bench.local.system(op).unwrap().1;
    let id = node_of(add_node(&bench, "b", None));
    let info = NodeInfo {
        id,
        name: "b".into(),
        listen: "10.0.0.9:9".into(),
        draining: true,
    };
    let (_, events) = bench.listen(|| system(Op::UpdateNode(info.clone())).unwrap());
    assert_eq!(events, [Event::Nodes]);
    assert_eq!(bench.reader().nodes().unwrap()[1], info);
    let unknown = NodeInfo {
        id: 99,
        ..info.clone()
    };
    assert_eq!(system(Op::UpdateNode(unknown)), refused(Refusal::NotFound));
    let taken = NodeInfo {
        name: "local".into(),
        ..info
    };
    assert_eq!(system(Op::UpdateNode(taken)), refused(Refusal::Exists));
    assert!(malformed(&add_node(&bench, "", None)));
    let place = |group, nodes: &[NodeId]| {
        system(Op::SetPlacement {
            group,
            nodes: nodes.to_vec(),
        })
    };
    let (_, events) = bench.listen(|| place(0, &[id, 1]).unwrap());
    assert_eq!(
        (events, bench.reader().placement(0).unwrap()),
        (vec![Event::Placement], vec![id, 1])
    );
    let (_, events) = bench.listen(|| place(0, &[id, 1]).unwrap());
    assert_eq!(events, []);
    assert!(malformed(&place(PLACEMENT_GROUPS, &[1])));
    assert!(malformed(&place(0, &[1, 1])));
    assert_eq!(place(0, &[1, 99]), refused(Refusal::NotFound));
}

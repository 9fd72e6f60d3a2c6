//! The cluster's own records: nodes, placement, join tokens.

use crate::meta::keys::{self, Counter};
use crate::meta::types::*;
use crate::meta::{Event, MetaError, NO_PROJECT, Refusal, Reply, tables, value};

use super::step::{Fail, Step, malformed};

/// Longest name or address of a node, bytes.
const NODE_TEXT_BYTES_MAX: usize = 255;
/// Join tokens that are valid at the same time.
const TOKENS_MAX: usize = 1024;
/// Nodes of a cluster.
const NODES_MAX: usize = 1024;

pub(super) fn init(step: &mut Step<'_, '_>, info: &ClusterInfo) -> Result<Reply, Fail> {
    if tables::cluster(step.txn)?.is_some() {
        return Err(Refusal::Exists.into());
    }
    step.txn.put(keys::cluster().into(), value::encode(info)?);
    let time = step.time();
    step.add_inode(Inode {
        ino: ROOT_INO,
        kind: FileKind::Directory,
        mode: 0o755,
        uid: 0,
        gid: 0,
        nlink: 2,
        rdev: 0,
        size: 0,
        allocated_bytes: 0,
        atime: time,
        mtime: time,
        ctime: time,
        btime: time,
        parent: ROOT_INO,
        target: bytes::Bytes::new(),
        next_cookie: FIRST_COOKIE,
        has_xattrs: false,
        data_version: 0,
        contents_time: time,
        project: NO_PROJECT,
    });
    Ok(Reply::Done)
}

fn check_node_text(name: &str, listen: &str) -> Result<(), Fail> {
    if name.is_empty() || listen.is_empty() || name.len().max(listen.len()) > NODE_TEXT_BYTES_MAX {
        return Err(malformed("a node's name or address is empty or too long"));
    }
    Ok(())
}

pub(super) fn add_node(
    step: &mut Step<'_, '_>,
    name: &str,
    listen: &str,
    token_hash: Option<[u8; 32]>,
) -> Result<Reply, Fail> {
    check_node_text(name, listen)?;
    if let Some(hash) = token_hash {
        tables::token(step.txn, &hash)?.ok_or(MetaError::BadToken)?;
        step.txn.delete(keys::token(&hash).into());
    }
    let nodes = tables::nodes(step.txn)?;
    for old in nodes.iter().filter(|node| node.name == name) {
        step.retire_node(old.id)?;
    }
    if nodes.len() >= NODES_MAX {
        return Err(Refusal::NoSpace.into());
    }
    let id = step.count(Counter::NextNode, 1, 1)?;
    let node = NodeInfo {
        id,
        name: name.into(),
        listen: listen.into(),
        draining: false,
    };
    step.txn.put(keys::node(id).into(), value::encode(&node)?);
    step.events.push(Event::Nodes);
    Ok(Reply::Node(node))
}

pub(super) fn update_node(step: &mut Step<'_, '_>, info: &NodeInfo) -> Result<Reply, Fail> {
    check_node_text(&info.name, &info.listen)?;
    tables::node(step.txn, info.id)?.ok_or(Refusal::NotFound)?;
    if tables::nodes(step.txn)?
        .iter()
        .any(|node| node.id != info.id && node.name == info.name)
    {
        return Err(Refusal::Exists.into());
    }
    step.txn.put(keys::node(info.id).into(), value::encode(info)?);
    step.events.push(Event::Nodes);
    Ok(Reply::Done)
}

pub(super) fn remove_node(step: &mut Step<'_, '_>, node: NodeId) -> Result<Reply, Fail> {
    if tables::node(step.txn, node)?.is_some() {
        step.retire_node(node)?;
    }
    Ok(Reply::Done)
}

pub(super) fn set_placement(step: &mut Step<'_, '_>, group: u32, nodes: &[NodeId]) -> Result<Reply, Fail> {
    if group >= PLACEMENT_GROUPS {
        return Err(malformed("there is no such placement group"));
    }
    for (at, node) in nodes.iter().enumerate() {
        if nodes[..at].contains(node) {
            return Err(malformed("a placement group has a node twice"));
        }
        tables::node(step.txn, *node)?.ok_or(Refusal::NotFound)?;
    }
    step.put_placement(group, nodes)?;
    Ok(Reply::Done)
}

pub(super) fn add_token(step: &mut Step<'_, '_>, hash: &[u8; 32], valid_s: u64) -> Result<Reply, Fail> {
    if tables::tokens(step.txn)?.len() >= TOKENS_MAX {
        return Err(Refusal::NoSpace.into());
    }
    step.txn.put(keys::token(hash).into(), value::encode(&valid_s)?);
    Ok(Reply::Done)
}

pub(super) fn expire_token(step: &mut Step<'_, '_>, hash: &[u8; 32]) -> Result<Reply, Fail> {
    step.txn.delete(keys::token(hash).into());
    Ok(Reply::Done)
}

impl Step<'_, '_> {
    fn put_placement(&mut self, group: u32, nodes: &[NodeId]) -> Result<(), Fail> {
        if tables::placement(self.txn, group)? == nodes {
            return Ok(());
        }
        match nodes {
            [] => self.txn.delete(keys::placement(group).into()),
            _ => self
                .txn
                .put(keys::placement(group).into(), value::encode(&nodes)?),
        }
        if !self.events.contains(&Event::Placement) {
            self.events.push(Event::Placement);
        }
        Ok(())
    }

    /// Removes a node with its sessions, and takes it out of its placement groups.
    fn retire_node(&mut self, node: NodeId) -> Result<(), Fail> {
        self.expire_sessions_of(node)?;
        self.release_all(node)?;
        for group in 0..PLACEMENT_GROUPS {
            let mut nodes = tables::placement(self.txn, group)?;
            nodes.retain(|member| *member != node);
            self.put_placement(group, &nodes)?;
        }
        self.txn.delete(keys::node(node).into());
        self.events.push(Event::Nodes);
        Ok(())
    }
}

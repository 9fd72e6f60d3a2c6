//! Which nodes hold which placement group. A pure function: balanced, and moving as little as possible.

use std::collections::BTreeMap;

use raftstore::meta::NodeId;

/// New contents for the groups whose nodes change. `table[group]` are the present nodes of each group, `eligible` the
/// nodes that may hold chunks.
#[must_use]
pub fn changes(table: &[Vec<NodeId>], eligible: &[NodeId], replicas: usize) -> BTreeMap<u32, Vec<NodeId>> {
    let wanted = replicas.min(eligible.len());
    if wanted == 0 {
        return BTreeMap::new();
    }
    let mut plan: Vec<Vec<NodeId>> = table
        .iter()
        .map(|nodes| {
            nodes
                .iter()
                .copied()
                .filter(|node| eligible.contains(node))
                .collect()
        })
        .collect();
    for group in 0..plan.len() {
        while plan[group].len() > wanted {
            let loads = loads(&plan, eligible);
            // The last of equals goes: the first of the chain stays.
            let heaviest = (0..plan[group].len()).max_by_key(|i| (loads[&plan[group][*i]], *i));
            plan[group].remove(heaviest.unwrap_or(0));
        }
        while plan[group].len() < wanted {
            let loads = loads(&plan, eligible);
            let free = loads.iter().filter(|(node, _)| !plan[group].contains(node));
            let Some((lightest, _)) =
                free.min_by_key(|(node, load)| (**load, group_order(group, **node, eligible)))
            else {
                break;
            };
            let lightest = *lightest;
            plan[group].push(lightest);
        }
    }
    balance(&mut plan, eligible);
    balance_heads(&mut plan, table, eligible);
    let changed = plan
        .into_iter()
        .enumerate()
        .filter(|(group, nodes)| table[*group] != *nodes);
    changed
        .filter_map(|(group, nodes)| Some((u32::try_from(group).ok()?, nodes)))
        .collect()
}

/// Breaks ties differently in each group.
fn group_order(group: usize, node: NodeId, eligible: &[NodeId]) -> usize {
    let place = eligible.iter().position(|n| *n == node).unwrap_or(0);
    (place + eligible.len() - group % eligible.len()) % eligible.len()
}

fn loads(plan: &[Vec<NodeId>], eligible: &[NodeId]) -> BTreeMap<NodeId, usize> {
    let mut loads: BTreeMap<NodeId, usize> = eligible.iter().map(|node| (*node, 0)).collect();
    for node in plan.iter().flatten() {
        if let Some(load) = loads.get_mut(node) {
            *load += 1;
        }
    }
    loads
}

/// Moves single replicas from the heaviest to the lightest node until they differ by one at most.
fn balance(plan: &mut [Vec<NodeId>], eligible: &[NodeId]) {
    loop {
        let loads = loads(plan, eligible);
        let (Some((light, low)), Some((heavy, high))) = (
            loads.iter().min_by_key(|(_, load)| **load),
            loads.iter().max_by_key(|(_, load)| **load),
        ) else {
            return;
        };
        if high - low <= 1 {
            return;
        }
        let movable = plan
            .iter_mut()
            .find(|nodes| nodes.contains(heavy) && !nodes.contains(light));
        let Some(nodes) = movable else { return };
        for node in nodes.iter_mut().filter(|node| *node == heavy) {
            *node = *light;
        }
    }
}

/// Spreads the chains' first nodes, in groups that change anyway.
fn balance_heads(plan: &mut [Vec<NodeId>], table: &[Vec<NodeId>], eligible: &[NodeId]) {
    let mut heads: BTreeMap<NodeId, usize> = eligible.iter().map(|node| (*node, 0)).collect();
    let unchanged = |group: usize, nodes: &Vec<NodeId>| table[group] == *nodes;
    for (group, nodes) in plan.iter().enumerate() {
        if unchanged(group, nodes)
            && let Some(count) = nodes.first().and_then(|head| heads.get_mut(head))
        {
            *count += 1;
        }
    }
    for (group, nodes) in plan.iter_mut().enumerate() {
        if unchanged(group, nodes) {
            continue;
        }
        if let Some(least) = (0..nodes.len()).min_by_key(|i| heads.get(&nodes[*i]).copied().unwrap_or(0)) {
            nodes.rotate_left(least);
        }
        if let Some(count) = nodes.first().and_then(|head| heads.get_mut(head)) {
            *count += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUPS: usize = 64;

    fn apply(table: &mut [Vec<NodeId>], changes: BTreeMap<u32, Vec<NodeId>>) -> usize {
        let mut moved = 0;
        for (group, nodes) in changes {
            let old = &table[group as usize];
            moved += nodes.iter().filter(|node| !old.contains(node)).count();
            table[group as usize] = nodes;
        }
        moved
    }

    fn check(table: &[Vec<NodeId>], eligible: &[NodeId], replicas: usize) {
        for nodes in table {
            let mut distinct = nodes.clone();
            distinct.sort_unstable();
            distinct.dedup();
            assert_eq!(distinct.len(), replicas.min(eligible.len()));
            assert!(nodes.iter().all(|node| eligible.contains(node)));
        }
        let loads = loads(table, eligible);
        assert!(
            loads.values().max().unwrap() - loads.values().min().unwrap() <= 1,
            "{loads:?}"
        );
    }

    #[test]
    fn grows_and_shrinks_balanced_with_few_moves() {
        let mut table = vec![Vec::new(); GROUPS];
        for nodes in 1..=6u64 {
            let eligible: Vec<NodeId> = (1..=nodes).collect();
            let planned = changes(&table, &eligible, 3);
            let moved = apply(&mut table, planned);
            check(&table, &eligible, 3);
            let share = GROUPS * 3.min(nodes as usize) / nodes as usize + 1;
            assert!(moved <= share, "{nodes} nodes: {moved} moves, a share is {share}");
            assert!(
                changes(&table, &eligible, 3).is_empty(),
                "a settled table stays as it is"
            );
        }
        let eligible = [1, 2, 4, 6];
        let planned = changes(&table, &eligible, 3);
        let moved = apply(&mut table, planned);
        check(&table, &eligible, 3);
        assert!(moved <= GROUPS * 3 * 2 / 6 + 8, "{moved}");
    }

    #[test]
    fn chains_start_everywhere() {
        let mut table = vec![Vec::new(); GROUPS];
        let first = changes(&table, &[1, 2, 3], 3);
        apply(&mut table, first);
        for node in 1..=3 {
            let heads = table.iter().filter(|nodes| nodes[0] == node).count();
            assert!((20..=23).contains(&heads), "node {node} heads {heads}");
        }
    }

    #[test]
    fn no_nodes_no_changes() {
        assert!(changes(&vec![vec![1]; GROUPS], &[], 3).is_empty());
    }
}

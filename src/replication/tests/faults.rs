use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use proptest::prelude::*;

use super::harness::{World, bytes, eventually, policy};
use crate::backends::MemoryBackend;
use crate::backends::wrap::{Fault, FaultPlan, Wrapped};
use crate::content::parse_node;
use crate::metadata::CopyState;
use crate::types::Cid;

/// Every node was stored after all that it links to.
fn order_holds(world: &World, stored: &[Cid]) -> Result<(), String> {
    let mut seen = HashSet::new();
    for id in stored {
        let data = world.store.get(id).unwrap().unwrap();
        for child in parse_node(id, &data).unwrap().children() {
            if !seen.contains(&child) {
                return Err(format!("{id} was stored before its child {child}"));
            }
        }
        seen.insert(*id);
    }
    Ok(())
}

/// Wherever a root is recorded, all of its blocks are.
fn records_hold(
    world: &World,
    root: &Cid,
    places: &[(&str, &MemoryBackend)],
) -> Result<(), String> {
    for (name, place) in places {
        let counts =
            matches!(world.state_at(root, name), Some(CopyState::Claimed | CopyState::Verified));
        let lacking =
            super::harness::blocks(world, root).into_iter().find(|id| !place.contains(id));
        if let (true, Some(block)) = (counts, lacking) {
            return Err(format!("a copy of {root} at {name} is recorded, without {block}"));
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 16, ..ProptestConfig::default() })]

    #[test]
    fn under_faults_parents_follow_children_and_no_copy_is_recorded_that_is_not_whole(
        seed in any::<u64>(),
        sizes in prop::collection::vec((0u64..4, 0usize..3000), 1..12),
        refused in 0u8..8,
        applied_then_failed in 0u8..20,
        full in 0u8..5,
    ) {
        let mut world = World::new();
        let plan = FaultPlan { refused, applied_then_failed, full, ..FaultPlan::default() };
        let [a, b] = ["a", "b"].map(|name| {
            let place = Arc::new(MemoryBackend::new(name));
            place.set_durable(true);
            place
        });
        for (n, (name, place)) in [("a", &a), ("b", &b)].into_iter().enumerate() {
            let faulty = Wrapped::new(place.clone(), Fault::new(plan, seed.wrapping_add(n as u64)));
            world.add(name, Arc::new(faulty));
        }
        world.start();
        let places = [("a", a.as_ref()), ("b", b.as_ref())];
        // Few seeds: contents share prefixes, so DAGs share blocks.
        let roots: BTreeSet<Cid> =
            sizes.iter().map(|(of, len)| world.commit(&bytes(*of, *len), &policy(""))).collect();
        let mut broken = None;
        eventually("all copies are there in the end", || {
            broken = roots.iter().find_map(|root| records_hold(&world, root, &places).err());
            broken.is_some() || world.namespace.stats().queued == 0
        });
        prop_assert_eq!(broken, None);
        for root in &roots {
            prop_assert_eq!(records_hold(&world, root, &places), Ok(()));
            let copies: Vec<String> =
                world.record(root).copies.iter().map(|c| c.backend.to_string()).collect();
            prop_assert_eq!(copies.iter().collect::<BTreeSet<_>>().len(), 3, "{:?}", copies);
            prop_assert_eq!(copies.len(), 3, "one record a place");
        }
        prop_assert_eq!(order_holds(&world, &a.stored()), Ok(()));
        prop_assert_eq!(order_holds(&world, &b.stored()), Ok(()));
    }
}

#[test]
fn a_put_that_was_done_and_reported_as_failed_ends_in_one_copy() {
    let mut world = World::new();
    let place = Arc::new(MemoryBackend::new("a"));
    place.set_durable(true);
    let plan = FaultPlan { applied_then_failed: 60, ..FaultPlan::default() };
    world.add("a", Arc::new(Wrapped::new(place.clone(), Fault::new(plan, 42))));
    world.start();
    let roots: Vec<Cid> = (0..20).map(|n| world.commit(&bytes(n, 30), &policy(""))).collect();
    world.until_drained();
    for root in roots {
        let record = world.record(&root);
        let there = record.copies.iter().filter(|copy| copy.backend.as_str() == "a").count();
        assert_eq!(there, 1);
        assert!(place.contains(&root));
    }
}

#[test]
fn a_content_that_cannot_be_read_fails_alone_in_its_batch() {
    let (mut world, places) = World::with(&["a"]);
    places[0].fail_all(crate::backends::ErrorKind::Unavailable);
    let mut roots: Vec<Cid> = (0..10).map(|n| world.commit(&bytes(n, 20), &policy(""))).collect();
    let lost = roots.remove(4);
    eventually("all wait", || world.namespace.stats().queued == 10);
    world.stop();
    crate::store::BlockIndex::apply(
        world.index.as_ref(),
        &[crate::store::IndexChange::Remove(lost)],
    )
    .unwrap();
    world.crash();
    places[0].heal();
    world.start();
    eventually("the others are sent", || world.namespace.stats().queued == 1);
    for root in roots {
        assert!(places[0].contains(&root));
    }
    assert!(!places[0].contains(&lost));
    eventually("the row says why", || {
        world.row(&lost).is_some_and(|row| row.last_error.contains("cannot be read"))
    });
    assert_eq!(world.state_at(&lost, "a"), None);
}

//! What is explained is what the engine then does.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::harness::{World, bytes, eventually, policy};
use crate::backends::{Backend, BackendSpec, MemoryBackend};
use crate::metadata::{BackendRecord, ContentRecord};
use crate::replication::machine::{Content, Plan, plan};
use crate::types::{BackendId, Cid};

/// Two places of the tiers ssd and disk each, one of archive, one of none.
const PLACES: [(&str, &str); 6] = [
    ("s1", "tier=ssd"),
    ("s2", "tier=ssd"),
    ("d1", "tier=disk"),
    ("d2", "tier=disk"),
    ("r", "tier=archive"),
    ("n", "priority=1"),
];

fn world() -> World {
    let mut world = World::new();
    for (name, settings) in PLACES {
        let place = Arc::new(MemoryBackend::new(name));
        place.set_durable(true);
        let url = format!("file:///nonexistent/{name}?{settings}");
        let spec = BackendSpec { id: name.parse().unwrap(), url };
        world.registry.add(spec, BackendRecord::default(), Ok(place as Arc<dyn Backend>));
    }
    world.start();
    world
}

/// Nothing is left to do, or nothing can be done.
fn is_settled(world: &World, root: &Cid) -> bool {
    let (machine, record) = (world.replicator().machine(), world.record(root));
    let (places, policy) = (machine.places(), machine.policy_of(&record));
    let content = Content { root, record: &record, policy: &policy };
    !matches!(plan(&content, &machine.moment(&places)).plan, Plan::Act(_))
}

fn good(record: &ContentRecord) -> BTreeSet<BackendId> {
    record.good_copies().map(|copy| copy.backend.clone()).collect()
}

#[test]
fn the_places_that_are_explained_are_those_that_the_engine_then_uses() {
    let mut world = world();
    let mut seed = 0;
    // Of the harness's contents the age is that of the epoch: 50 years and more.
    for (kind, drained, closed) in
        [("young", None, None), ("old", None, None), ("old", Some("d1"), Some("s1"))]
    {
        {
            let mut fleet = world.registry.fleet().write();
            for (id, set) in [(drained, true), (closed, false)] {
                let Some(id) = id.map(|id| id.parse().unwrap()) else { continue };
                let now = world.clock.now();
                assert!(if set {
                    fleet.set_draining(&id, true)
                } else {
                    fleet.set_read_only(&id, true, now)
                });
            }
        }
        let archive = if kind == "young" { "40000d" } else { "30d" };
        for text in [
            format!(
                "min=1,target=3,max=6,level=TIERED,tiers=ssd:1/disk:1/archive:1:after={archive}"
            ),
            format!(
                "min=1,target=2,max=6,level=PROGRESSIVE,tiers=disk:1/ssd:1/archive:1:after={archive}"
            ),
            format!(
                "min=1,target=5,max=6,level=PROGRESSIVE,strategy=priority,tiers=disk:1/archive:1:after={archive}:by=access"
            ),
            format!(
                "min=1,target=4,max=6,level=TIERED,prefer=d2,exclude=s2,tiers=disk:2/archive:1:after={archive}"
            ),
            "min=1,target=4,max=6,level=PROGRESSIVE,tiers=ssd:2:until=30d/disk:1".to_owned(),
            "min=2,target=4,max=6".to_owned(),
        ] {
            let policy = policy(&text);
            for _ in 0..4 {
                seed += 1;
                let root = world.commit(&bytes(seed, 200), &policy);
                eventually(&format!("seed {seed} is settled by {text}"), || {
                    is_settled(&world, &root)
                });
                let mut begun = world.record(&root);
                let copies = good(&begun);
                begun.copies.retain(|copy| copy.backend.is_local());
                let told = world.replicator().explain(Some((&root, &begun)), &policy).unwrap();
                let chosen = told.places.iter().filter(|place| place.chosen);
                let chosen: BTreeSet<BackendId> = chosen.map(|place| place.id.clone()).collect();
                assert_eq!(chosen, copies, "seed {seed}, {kind}, {text}: {told:#?}");
                for place in &told.places {
                    assert_eq!(place.chosen, place.why_not.is_empty(), "{place:?}");
                    assert_eq!(
                        place.chosen && !place.id.is_local(),
                        place.steps.len() == 1,
                        "{place:?}"
                    );
                }
                // When it is done, it is explained as it is.
                let record = world.record(&root);
                let told = world.replicator().explain(Some((&root, &record)), &policy).unwrap();
                assert!(told.places.iter().all(|place| place.steps.is_empty()), "{told:#?}");
            }
        }
    }
}

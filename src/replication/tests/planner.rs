//! The planner over very many pins. `scripts/soak planner` runs it with 10,000,000.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::metadata::{
    Change, ContentRecord, CopyRecord, CopyState, EmbeddedEngine, Namespace, PinState, VerifyMethod,
};
use crate::replication::PolicyBook;
use crate::replication::machine::{Facts, Fleet, Machine, MachineOptions, Plan};
use crate::runtime::ManualClock;
use crate::types::{BackendId, Timestamp, cid};

const BACKENDS: u64 = 20;
const NOW: Timestamp = Timestamp { seconds: 1_700_000_000, nanoseconds: 0 };

fn id(n: u64) -> BackendId {
    format!("backend-{:02}", n % BACKENDS).parse().unwrap()
}

/// A content with copies here and at two of the backends; one in `short_in` lacks one.
fn record(n: u64, short_in: u64) -> ContentRecord {
    let short = n % short_in == 1;
    let copy = |backend: BackendId| CopyRecord {
        backend,
        state: CopyState::Verified,
        at: NOW,
        method: VerifyMethod::ReadBack,
    };
    let mut copies = vec![copy(BackendId::local()), copy(id(n))];
    if !short {
        copies.push(copy(id(n + 1 + n / BACKENDS % (BACKENDS - 1))));
    }
    ContentRecord {
        size: 4096 + n % 1000,
        tsize: 4096 + n % 1000,
        blocks: 1,
        refs: 1,
        profile: String::new(),
        min: 2,
        target: 3,
        max: 5,
        pin: if short { PinState::BelowTarget } else { PinState::AtTarget },
        copies,
        holes: 0,
        policies: Vec::new(),
        created_s: NOW.seconds,
        accessed_s: 0,
    }
}

fn size_of(dir: &std::path::Path) -> u64 {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    entries
        .map(|entry| {
            let data = entry.metadata().unwrap();
            if data.is_dir() { size_of(&entry.path()) } else { data.len() }
        })
        .sum()
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
#[test]
fn every_pin_is_planned_and_a_look_at_all_ends_with_what_is_short_in_the_queue() {
    let count: u64 =
        std::env::var("CAIRN_PLANNED").ok().and_then(|n| n.parse().ok()).unwrap_or(20_000);
    let dir = tempfile::tempdir().unwrap();
    let engine = Arc::new(EmbeddedEngine::open(dir.path(), 64 << 20).unwrap());
    let namespace = Arc::new(Namespace::open(engine, NOW).unwrap());
    let mut fleet = Fleet::new("here".into(), Duration::from_mins(15));
    for n in 0..BACKENDS {
        let domain = format!("disk-{n}");
        let facts = Facts { kind: "sim".into(), domain, durable: true, read_only: false };
        let (settings, row) = Default::default();
        fleet.add(id(n), String::new(), settings, row, NOW);
        fleet.opened(&id(n), facts, NOW);
    }
    let fleet = Arc::new(parking_lot::RwLock::new(fleet));
    let policies = Arc::new(PolicyBook::new(Vec::new()));
    let machine = Machine::new(
        Arc::clone(&namespace),
        fleet,
        Arc::new(ManualClock::at(NOW)),
        MachineOptions::default(),
        policies,
    );
    // The decision alone: one in ten needs a place for a copy.
    let (mut took, mut short) = (Duration::ZERO, 0);
    let places = machine.places();
    let moment = machine.moment(&places);
    for start in (0..count).step_by(4096) {
        let records: Vec<_> = (start..count.min(start + 4096))
            .map(|n| (cid::of_raw(&n.to_le_bytes()), record(n, 10)))
            .collect();
        let begun = Instant::now();
        for (root, record) in &records {
            match machine.plan(root, record, &moment).plan {
                Plan::Act(jobs) => {
                    assert_eq!(jobs.len(), 1);
                    short += 1;
                }
                plan => assert_eq!(plan, Plan::Satisfied),
            }
        }
        took += begun.elapsed();
    }
    assert_eq!(short, count.div_ceil(10));
    let rate = |took: Duration| count as f64 / took.as_secs_f64();
    println!("{count} pins, {BACKENDS} backends, one in ten short: {:.0} plans/s", rate(took));
    // A look at all rows: what is short gets a row of the queue.
    let change =
        |n| Ok(Change::Content(cid::of_raw(&u64::to_le_bytes(n)), Some(record(n, 10_000))));
    namespace.load_rows(&mut (0..count).map(change)).unwrap();
    namespace.engine().persist().unwrap();
    let resident = crate::telemetry::resident_bytes().0;
    machine.request_sweep();
    let begun = Instant::now();
    while !machine.is_swept() {
        machine.turn().unwrap();
    }
    let took = begun.elapsed();
    let grown = crate::telemetry::resident_bytes().0.saturating_sub(resident);
    assert_eq!(namespace.stats().queued, (count + 9_998) / 10_000);
    println!(
        "a look at all rows, one in 10,000 short: {:.0} pins/s; {:.0} bytes a pin on the disk, \
         with its indexes; {:.1} bytes a pin more in memory ({:.0} MiB)",
        rate(took),
        size_of(dir.path()) as f64 / count as f64,
        grown as f64 / count as f64,
        grown as f64 / f64::from(1 << 20),
    );
}

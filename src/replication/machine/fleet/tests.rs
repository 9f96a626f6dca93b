//! What a fleet says of its places, and what they cost.

use super::*;
use crate::backends::ErrorKind;

#[test]
fn what_is_read_and_asked_counts_for_the_ceiling_over_restarts_until_the_month_ends() {
    let at = |seconds| Timestamp { seconds, nanoseconds: 0 };
    // 2026-11-16 and 2026-12-01.
    let (middle, next) = (at(1_794_787_200), at(1_796_083_200));
    let a: BackendId = "a".parse().unwrap();
    let fleet = || {
        let mut fleet = Fleet::new("here".into(), Duration::from_mins(15));
        let mut settings = PlaceSettings::default();
        (settings.price.gb_out, settings.price.request) = (Micros(90_000), Micros(5));
        fleet.add(a.clone(), String::new(), settings, BackendRecord::default(), middle);
        fleet.set_ceiling(Some(Micros(200_000)));
        fleet
    };
    let mut first = fleet();
    first.spend(&[(a.clone(), (1000, 2_000_000_000))], middle);
    assert_eq!((first.costs().0, first.used_up()), (Micros(185_000), Micros(185_000)));
    assert_eq!(first.forecast(middle), Micros(370_000));
    assert!(!first.places().thrifty);
    // Another life goes on with it, and comes above.
    let mut second = fleet();
    second.resume_spent(&first.spent(), middle);
    assert!(!second.places().thrifty);
    second.spend(&[(a.clone(), (3001, 0))], middle);
    assert_eq!(second.costs().0, Micros(200_005));
    assert!(second.places().thrifty);
    // A new month begins at zero, in the same life and in another.
    let mut third = fleet();
    third.resume_spent(&second.spent(), next);
    second.spend(&[], next);
    for fleet in [&second, &third] {
        assert_eq!((fleet.costs().0, fleet.forecast(next)), (Micros(0), Micros(0)));
        assert!(!fleet.places().thrifty);
    }
}

#[test]
fn a_place_that_is_away_at_the_start_shares_the_domain_that_it_had() {
    let facts = |domain: &str| Facts {
        kind: "dir".into(),
        domain: domain.into(),
        durable: true,
        read_only: false,
    };
    let now = Timestamp::default();
    let (a, b): (BackendId, BackendId) = ("a".parse().unwrap(), "b".parse().unwrap());
    let fleet = |records: BTreeMap<BackendId, BackendRecord>| {
        let mut fleet = Fleet::new("here".into(), Duration::from_mins(15));
        for id in [&a, &b] {
            let record = records.get(id).cloned().unwrap_or_default();
            fleet.add(id.clone(), String::new(), PlaceSettings::default(), record, now);
        }
        fleet
    };
    let mut first = fleet(BTreeMap::new());
    assert_ne!(first.domain_of(&a), first.domain_of(&b), "nothing is known");
    first.opened(&a, facts("disk"), now);
    first.opened(&b, facts("disk"), now);
    let kept: BTreeMap<BackendId, BackendRecord> = first.take_unsaved().into_iter().collect();
    let mut second = fleet(kept);
    second.opened(&b, facts("disk"), now);
    assert_eq!(second.domain_of(&a), Some("disk"));
    assert!(second.take_unsaved().iter().all(|(id, _)| *id != b), "nothing new");
    // It comes back on another disk.
    second.opened(&a, facts("other"), now);
    assert_eq!(second.take_unsaved()[0].1.domain, "other");
}

#[test]
fn the_places_are_always_as_the_fleet_is() {
    let mut random = fastrand::Rng::with_seed(7);
    let ids: Vec<BackendId> = (0..4).map(|n| format!("b{n}").parse().unwrap()).collect();
    let mut fleet = Fleet::new("here".into(), Duration::from_mins(15));
    let mut seconds = 1000;
    for step in 0..4000 {
        let id = &ids[random.usize(..ids.len())];
        seconds += random.i64(0..600);
        let now = Timestamp { seconds, nanoseconds: 0 };
        let facts = || Facts {
            kind: "sim".into(),
            domain: format!("d{}", seconds % 3),
            durable: seconds % 5 > 0,
            read_only: seconds % 7 == 0,
        };
        match random.u8(0..15) {
            0 => {
                let settings = PlaceSettings::default();
                fleet.add(id.clone(), String::new(), settings, BackendRecord::default(), now);
            }
            1 => drop(fleet.remove(id)),
            2 => drop(fleet.opened(id, facts(), now)),
            3 => fleet.set_facts(id, facts()),
            4 => drop(fleet.reached(id, now)),
            5 => {
                let took = Duration::from_millis(random.u64(..100));
                if let Some(health) = fleet.health_mut(id) {
                    health.answered(1 << 20, took, now);
                }
            }
            6 | 7 => {
                let kinds = [ErrorKind::Unavailable, ErrorKind::Full, ErrorKind::ReadOnly];
                let kind = kinds[random.usize(..kinds.len())];
                fleet.failed(id, &BackendError::new(kind, "a fault"), now);
            }
            8 => drop(fleet.tick(now)),
            9 => drop(fleet.set_draining(id, random.bool())),
            10 => drop(fleet.set_paused(random.bool().then_some(id), random.bool())),
            11 => drop(fleet.set_read_only(id, random.bool(), now)),
            12 => drop(fleet.recovered(id, facts(), now)),
            13 => {
                let free = random.u64(..1 << 30);
                fleet.set_usage(id, Usage { available_bytes: Some(free), ..Usage::default() });
                fleet.set_ceiling(random.bool().then_some(Micros(random.u64(..100))));
            }
            _ => {
                let held = (random.u64(..9), random.u64(..1 << 30));
                fleet.set_held(&BTreeMap::from([(id.clone(), held)]));
            }
        }
        let (places, seen) = (fleet.places(), fleet.seen());
        assert_eq!((&places.all, places.thrifty), (&seen.all, seen.thrifty), "step {step}");
    }
}

#[test]
fn what_is_used_is_what_the_place_said_and_what_came_since() {
    let mut fleet = Fleet::new("here".into(), Duration::from_mins(1));
    let id: BackendId = "a".parse().unwrap();
    let mut settings = PlaceSettings { stop_bytes: Some(1000), ..PlaceSettings::default() };
    settings.price.gb_month = Micros(2_000_000_000);
    let record = BackendRecord::default();
    fleet.add(id.clone(), String::new(), settings, record, Timestamp::default());
    let held = |bytes| BTreeMap::from([(id.clone(), (1, bytes))]);
    let state = |fleet: &Fleet| {
        let member = fleet.get(&id).unwrap();
        (member.used(), member.stopped())
    };
    fleet.set_held(&held(400));
    assert_eq!(state(&fleet), (400, false), "by our own count");
    let usage = |used| Usage { used_bytes: Some(used), ..Usage::default() };
    fleet.set_usage(&id, usage(700));
    assert_eq!(state(&fleet), (700, false));
    fleet.set_held(&held(700));
    assert_eq!(state(&fleet), (1000, true), "before it says so itself");
    let epoch = fleet.epoch();
    fleet.set_usage(&id, usage(500));
    assert_eq!(state(&fleet), (500, false));
    assert_eq!(fleet.epoch(), epoch + 1, "what found no place is due");
    fleet.set_ceiling(Some(Micros(1399)));
    assert_eq!(fleet.costs(), (Micros(1400), Some(Micros(1399))));
    assert!(fleet.places().thrifty);
}

#[test]
fn proofs_of_an_earlier_life_do_not_count_for_a_clock_that_was_set_back_before_this_one() {
    let at = |seconds| Timestamp { seconds, nanoseconds: 0 };
    let a: BackendId = "a".parse().unwrap();
    let mut fleet = Fleet::new("here".into(), Duration::from_mins(15));
    fleet.set_newest_proofs([(a.clone(), at(9000))].into());
    let record =
        BackendRecord { away_since: Some(at(10)), given_up: true, ..BackendRecord::default() };
    fleet.add(a.clone(), String::new(), PlaceSettings::default(), record, at(5000));
    let facts =
        Facts { kind: "dir".into(), domain: "disk".into(), durable: true, read_only: false };
    fleet.opened(&a, facts, at(5000));
    let places = fleet.places();
    assert!(places.get(&a).is_some_and(|place| !place.given_up && place.trusted_since > at(9000)));
}

//! The planner and placement, over places that are written down.

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::backends::{Micros, PlaceSettings, Price, Scrub};
use crate::metadata::{CopyRecord, CopyState, PinState, VerifyMethod};
use crate::replication::{BackendState, Domain, Level, Policy, Strategy, TierClock, TierRule};
use crate::types::{Cid, Timestamp, cid};

const NOW: Timestamp = Timestamp { seconds: 10_000_000, nanoseconds: 0 };
const DAY: Duration = Duration::from_hours(24);

fn place(name: &str, domain: &str, state: BackendState, free: u64) -> Candidate {
    let up = matches!(state, BackendState::Up | BackendState::Degraded);
    Candidate {
        id: name.parse().unwrap(),
        domains: [domain, "host", "site", "provider"].map(str::to_owned),
        durable: true,
        cache: false,
        state,
        readable: state != BackendState::Down,
        available: up,
        space: Some((1000, free)),
        room: None,
        stopped: false,
        draining: false,
        paused: false,
        given_up: false,
        trusted_since: Timestamp::default(),
        latency: Duration::ZERO,
        mebibyte: Duration::ZERO,
        settings: PlaceSettings::default(),
    }
}

fn local() -> Candidate {
    Candidate { space: None, ..place("local", "here", BackendState::Up, 0) }
}

/// The local store and these, each in a domain of its own, all up.
fn places(names: &[&str]) -> Vec<Candidate> {
    let up = names.iter().map(|name| place(name, name, BackendState::Up, 900));
    std::iter::once(local()).chain(up).collect()
}

fn copy(name: &str, state: CopyState) -> CopyRecord {
    CopyRecord { backend: name.parse().unwrap(), state, at: NOW, method: VerifyMethod::ReadBack }
}

fn record(copies: &[(&str, CopyState)]) -> ContentRecord {
    ContentRecord {
        size: 10,
        tsize: 10,
        blocks: 1,
        refs: 1,
        profile: String::new(),
        min: 2,
        target: 3,
        max: 5,
        pin: PinState::BelowMin,
        copies: copies.iter().map(|(name, state)| copy(name, *state)).collect(),
        holes: 0,
        policies: Vec::new(),
        created_s: NOW.seconds,
        accessed_s: NOW.seconds,
    }
}

fn planned(record: &ContentRecord, policy: &Policy, all: Vec<Candidate>) -> Verdict {
    let places = Places::new(all);
    let root = cid::of_raw(b"root");
    let content = Content { root: &root, record, policy };
    plan(&content, &Moment { places: &places, now: NOW, proof_age: DAY })
}

/// The jobs as text, sorted.
fn jobs(verdict: &Verdict) -> Vec<String> {
    let Plan::Act(jobs) = &verdict.plan else { panic!("{:?}", verdict.plan) };
    let mut jobs: Vec<String> = jobs.iter().map(|(id, job)| format!("{job:?} {id}")).collect();
    jobs.sort();
    jobs
}

fn policy(min: u8, target: u8, max: u8) -> Policy {
    Policy { min, target, max, ..Policy::default() }
}

use CopyState::{Claimed, Corrupt, Lost, Released, Verified};

fn states() -> impl proptest::strategy::Strategy<Value = BackendState> {
    prop_oneof![
        4 => Just(BackendState::Up),
        1 => Just(BackendState::Degraded),
        1 => Just(BackendState::Down),
        1 => Just(BackendState::ReadOnly),
        1 => Just(BackendState::Full),
    ]
}

fn of_names(names: &[String], choice: &[usize], places: &Places) -> Vec<usize> {
    choice
        .iter()
        .map(|n| names.iter().position(|name| *name == places.all[*n].id.as_str()).unwrap())
        .collect()
}

proptest! {
    #[test]
    fn a_choice_has_distinct_domains_in_reach_and_reaches_the_target_if_it_can(
        backends in prop::collection::vec((0usize..6, states(), 0u64..1000), 0..8),
        target in 1usize..6,
        size in 0u64..500,
        seed in any::<u64>(),
    ) {
        let mut all = vec![local()];
        all[0].domains[0] = "d0".into();
        all.extend(backends.iter().enumerate().map(|(n, (domain, state, free))| {
            place(&format!("b{n}"), &format!("d{domain}"), *state, *free)
        }));
        let names: Vec<String> = all.iter().map(|p| p.id.to_string()).collect();
        let places = Places::new(all.clone());
        let root = cid::of_raw(&seed.to_le_bytes());
        let policy = Policy::default();
        let mut covered = DomainSet::default();
        covered.insert(places.domain(0, Domain::Device));
        let wanted =
            Wanted { root: &root, bytes: size, policy: &policy, copies: target, tier: None, successor: None, untimely: &[] };
        let choice = choose(&wanted, &covered, &[], &places);
        let mut seen = BTreeSet::from(["d0".to_owned()]);
        let mut possible = seen.clone();
        for number in &choice.selected {
            let chosen = &places.all[*number];
            prop_assert!(chosen.available && chosen.takes(size));
            prop_assert!(seen.insert(chosen.domains[0].clone()), "two copies in one domain");
        }
        let able = all.iter().skip(1).filter(|c| c.takes(size));
        possible.extend(able.map(|c| c.domains[0].clone()));
        prop_assert_eq!(seen.len(), target.min(possible.len()).max(1));
        prop_assert_eq!(choice.selected.len() + choice.passed_over.len(), all.len() - 1);
        let mut shuffled = all.clone();
        shuffled[1..].reverse();
        let shuffled = Places::new(shuffled);
        let mut covered = DomainSet::default();
        covered.insert(shuffled.domain(0, Domain::Device));
        let again = choose(&wanted, &covered, &[], &shuffled);
        prop_assert_eq!(
            of_names(&names, &choice.selected, &places),
            of_names(&names, &again.selected, &shuffled)
        );
    }

    /// Whatever the copies and places are: what a plan brings and takes away leads
    /// to a state that asks for nothing more, and never through too few copies.
    #[test]
    fn a_plan_that_is_carried_out_ends_and_never_goes_below_what_is_proven(
        copies in prop::collection::vec((0usize..8, 0u8..5, 0u64..100_000), 0..8),
        backends in prop::collection::vec((0usize..6, states(), any::<[bool; 3]>()), 8),
        limits in prop::array::uniform3(1u8..5),
        excluded in prop::collection::btree_set(0usize..8, 0..2),
        way in prop::option::of((0usize..8, 0usize..8)),
    ) {
        let mut limits = limits;
        limits.sort_unstable();
        let mut policy = policy(limits[0], limits[1], limits[2]);
        policy.exclude = excluded.iter().map(|n| format!("b{n}").parse().unwrap()).collect();
        let mut all = vec![local()];
        all.extend(backends.iter().enumerate().map(|(n, (domain, state, flags))| {
            let mut place = place(&format!("b{n}"), &format!("d{domain}"), *state, 900);
            place.draining = flags[0] && flags[1];
            place.given_up = *state == BackendState::Down && flags[2];
            place.trusted_since =
                if flags[1] { Timestamp { seconds: NOW.seconds - 50_000, ..NOW } } else { Timestamp::default() };
            place
        }));
        let mut places = Places::new(all);
        if let Some((from, to)) = way {
            let id = |n: usize| format!("b{n}").parse().unwrap();
            let mut moves = Moves::default();
            moves.add(cid::of_raw(b"root"), &id(from), &id(to));
            places.moves = moves.into();
        }
        let mut record = record(&[("local", Verified)]);
        for (n, state, age) in &copies {
            let id: BackendId = format!("b{n}").parse().unwrap();
            if record.copies.iter().any(|c| c.backend == id) {
                continue;
            }
            let state = [Claimed, Verified, Corrupt, Lost, Released][usize::from(*state)];
            let at = Timestamp { seconds: NOW.seconds - i64::try_from(*age).unwrap(), ..NOW };
            record.copies.push(CopyRecord { backend: id, state, at, method: VerifyMethod::ReadBack });
        }
        let root = cid::of_raw(b"root");
        let moment = Moment { places: &places, now: NOW, proof_age: DAY };
        for round in 0.. {
            prop_assert!(round < 40, "it goes on for ever: {record:?}");
            let content = Content { root: &root, record: &record, policy: &policy };
            let Plan::Act(jobs) = plan(&content, &moment).plan else { break };
            // One result at a time, as they come.
            let (id, job) = jobs[0].clone();
            let outcome = match job {
                Job::Send | Job::Repair => Outcome::Stored(Claimed, VerifyMethod::Written),
                Job::Verify => Outcome::Verified(VerifyMethod::ReadBack),
                Job::Audit => Outcome::Audited,
                Job::Release => Outcome::Released(content.witnesses(&moment)),
            };
            let before = places.copies(&record, &policy);
            let witnesses = content.witnesses(&moment).len();
            prop_assert!(apply(&root, &mut record, &policy, (&id, &outcome), &moment), "{id} {job:?}");
            if job == Job::Release {
                let after = places.copies(&record, &policy);
                prop_assert!(witnesses >= usize::from(policy.target).min(before));
                prop_assert!(after >= usize::from(policy.target) || after >= before);
                prop_assert!(!id.is_local());
            }
        }
    }
}

fn one_copy<'a>(root: &'a Cid, policy: &'a Policy) -> Wanted<'a> {
    Wanted { root, bytes: 1, policy, copies: 1, tier: None, successor: None, untimely: &[] }
}

#[test]
fn contents_spread_in_proportion_to_free_space() {
    let all = vec![
        local(),
        place("b1", "d1", BackendState::Up, 900),
        place("b2", "d2", BackendState::Up, 300),
    ];
    let places = Places::new(all);
    let mut first = 0;
    for n in 0..4000u32 {
        let root = cid::of_raw(&n.to_le_bytes());
        let policy = Policy::default();
        let wanted = one_copy(&root, &policy);
        let choice = choose(&wanted, &DomainSet::default(), &[], &places);
        first += u32::from(choice.selected == [1]);
    }
    assert!((2800..3200).contains(&first), "{first} of 4000 went to the emptier backend");
}

#[test]
fn a_backend_with_a_damaged_copy_is_asked_first_and_reasons_are_given() {
    let places = Places::new(vec![
        local(),
        place("b1", "d1", BackendState::Up, 900),
        place("b2", "d2", BackendState::Degraded, 900),
        place("b3", "d3", BackendState::Down, 900),
    ]);
    let (root, policy) = (cid::of_raw(b"root"), Policy::default());
    let wanted = one_copy(&root, &policy);
    let choice = choose(&wanted, &DomainSet::default(), &[2], &places);
    assert_eq!(choice.selected, [2]);
    let reasons: Vec<&str> = choice.passed_over.iter().map(|(_, why)| *why).collect();
    assert_eq!(reasons, ["not needed", "down"]);
}

#[test]
fn what_is_missing_is_sent_and_a_bad_copy_is_repaired_where_it_lies() {
    let all = || places(&["a", "b", "c"]);
    let verdict = planned(&record(&[("local", Verified)]), &policy(2, 3, 5), all());
    assert_eq!((verdict.pin, verdict.copies, jobs(&verdict).len()), (PinState::BelowMin, 1, 2));
    let bad = record(&[("local", Verified), ("a", Verified), ("b", Corrupt)]);
    assert_eq!(jobs(&planned(&bad, &policy(2, 3, 5), all())), ["Repair b"]);
    let elsewhere = record(&[("a", Verified), ("b", Claimed)]);
    assert_eq!(jobs(&planned(&elsewhere, &policy(2, 3, 5), all())), ["Send local"]);
}

#[test]
fn without_a_good_copy_places_are_asked_and_bad_copies_are_looked_at_again() {
    let all = || places(&["a", "b"]);
    // After a recovery: the rows are older than what lies there.
    let unknown = planned(&record(&[]), &policy(2, 3, 5), all());
    assert_eq!(jobs(&unknown), ["Send a", "Send b"]);
    let bad = record(&[("local", Corrupt), ("a", Lost)]);
    let verdict = planned(&bad, &policy(2, 3, 5), all());
    assert_eq!(jobs(&verdict), ["Send b", "Verify a", "Verify local"]);
}

#[test]
fn copies_at_a_place_that_is_away_count_until_the_grace_period_is_over() {
    let mut all = places(&["a", "b", "c"]);
    all[1].state = BackendState::Down;
    (all[1].readable, all[1].available) = (false, false);
    let held = record(&[("local", Verified), ("a", Verified), ("b", Verified)]);
    assert_eq!(planned(&held, &policy(2, 3, 5), all.clone()).plan, Plan::Satisfied);
    all[1].given_up = true;
    let verdict = planned(&held, &policy(2, 3, 5), all);
    assert_eq!((jobs(&verdict), verdict.copies), (vec!["Send c".to_owned()], 2));
}

#[test]
fn a_copy_at_a_place_that_returned_counts_when_it_was_proven_again() {
    let mut all = places(&["a", "b"]);
    all[1].trusted_since = Timestamp { seconds: NOW.seconds + 1, nanoseconds: 0 };
    let held = record(&[("local", Verified), ("a", Verified), ("b", Verified)]);
    let verdict = planned(&held, &policy(2, 3, 5), all.clone());
    assert_eq!((jobs(&verdict), verdict.copies), (vec!["Verify a".to_owned()], 2));
    let root = cid::of_raw(b"root");
    let places = Places::new(all);
    let moment = Moment { places: &places, now: NOW, proof_age: DAY };
    let mut record = held;
    let proven = Outcome::Verified(VerifyMethod::ReadBack);
    let policy = policy(2, 3, 5);
    assert!(apply(&root, &mut record, &policy, (&"a".parse().unwrap(), &proven), &moment));
    assert_eq!(places.copies(&record, &policy), 3, "also while the clock is behind");
}

#[test]
fn a_bad_copy_beyond_the_target_is_mended_or_goes_and_never_stays_bad() {
    let all = places(&["a", "b", "c", "d"]);
    let bad = |max| {
        let held = record(&[("local", Verified), ("a", Verified), ("b", Verified), ("c", Corrupt)]);
        planned(&held, &policy(2, 3, max), all.clone())
    };
    assert_eq!(jobs(&bad(4)), ["Repair c"]);
    assert_eq!(jobs(&bad(3)), ["Release c"]);
    let mut one = all.clone();
    one[3].domains = one[2].domains.clone();
    let held = record(&[("local", Verified), ("a", Verified), ("b", Verified), ("c", Lost)]);
    assert_eq!(jobs(&planned(&held, &policy(2, 3, 5), one.clone())), ["Release c"]);
    (one[3].readable, one[3].available) = (false, false);
    assert_eq!(planned(&held, &policy(2, 3, 5), one).plan, Plan::Satisfied, "it is away");
    let only = record(&[("local", Verified), ("c", Corrupt)]);
    assert_eq!(jobs(&planned(&only, &policy(1, 1, 1), all.clone())), ["Release c"]);
    assert_eq!(jobs(&planned(&only, &policy(1, 1, 2), all)), ["Repair c"]);
}

#[test]
fn an_audit_keeps_what_a_copy_was_and_lets_no_other_go() {
    let mut all = places(&["a", "b", "c"]);
    all[1].trusted_since = Timestamp { seconds: NOW.seconds + 1, nanoseconds: 0 };
    let (root, policy) = (cid::of_raw(b"root"), policy(1, 2, 2));
    let apply_at = |all: &[Candidate], record: &mut ContentRecord, id: &str| {
        let places = Places::new(all.to_vec());
        let moment = Moment { places: &places, now: NOW, proof_age: DAY };
        apply(&root, record, &policy, (&id.parse().unwrap(), &Outcome::Audited), &moment)
    };
    let state =
        |record: &ContentRecord, n: usize| (record.copies[n].state, record.copies[n].method);
    let mut held = record(&[("a", Verified), ("b", Corrupt), ("c", Released)]);
    for id in ["a", "b", "c"] {
        assert!(!apply_at(&all, &mut held, id), "{id} does not count");
    }
    all[1].settings.scrub = Scrub::Audit;
    assert!(apply_at(&all, &mut held, "a"), "where audits are all that is asked for");
    assert_eq!(state(&held, 2), (Claimed, VerifyMethod::Audit));
    let stale = record(&[("local", Verified), ("a", Verified)]);
    assert_eq!(jobs(&planned(&stale, &policy, all.clone())), ["Audit a"]);
    all[1].trusted_since = Timestamp::default();
    let mut held = record(&[("local", Verified), ("a", Verified), ("b", Verified)]);
    assert_eq!(jobs(&planned(&held, &policy, all.clone())), ["Release b"]);
    assert!(apply_at(&all, &mut held, "a"));
    assert_eq!(state(&held, 2), (Verified, VerifyMethod::Audit));
    let mut one = all.clone();
    one[2].draining = true;
    assert_eq!(jobs(&planned(&held, &policy, one)), ["Verify a"], "all of it is read first");
}

#[test]
fn only_copies_that_nobody_looked_at_for_long_are_aged() {
    let mut held = record(&[("local", Verified), ("a", Verified), ("b", Claimed), ("c", Lost)]);
    for copy in &mut held.copies {
        copy.at.seconds -= 8 * 24 * 3600;
    }
    held.copies[2].at = NOW;
    let mut all = places(&["a", "b", "c", "d"]);
    let aged = |held: &ContentRecord, all: &[Candidate]| {
        let (places, root, policy) =
            (Places::new(all.to_vec()), cid::of_raw(b"root"), Policy::default());
        let moment = Moment { places: &places, now: NOW, proof_age: DAY };
        Content { root: &root, record: held, policy: &policy }.aged(DAY * 7, &moment)
    };
    assert_eq!(aged(&held, &all), ["a".parse().unwrap()]);
    assert!(aged(&record(&[("a", Verified)]), &all).is_empty());
    all[1].readable = false;
    assert!(aged(&held, &all).is_empty());
}

#[test]
fn more_than_max_are_trimmed_to_max_the_worst_placed_first() {
    let mut all = places(&["a", "b", "c", "d"]);
    let full = record(&[
        ("local", Verified),
        ("a", Verified),
        ("b", Verified),
        ("c", Verified),
        ("d", Verified),
    ]);
    let mut wishes = policy(1, 2, 3);
    wishes.prefer = BTreeSet::from(["b".parse().unwrap()]);
    all[4].state = BackendState::Degraded;
    let verdict = planned(&full, &wishes, all);
    assert_eq!(verdict.pin, PinState::OverMax);
    let jobs = jobs(&verdict);
    assert_eq!(jobs.len(), 2, "{jobs:?}");
    assert!(jobs.contains(&"Release d".to_owned()), "the one with errors: {jobs:?}");
    assert!(!jobs.iter().any(|job| job.ends_with(" b") || job.ends_with(" local")), "{jobs:?}");
}

#[test]
fn a_copy_goes_only_when_enough_others_are_proven_and_not_long_ago() {
    let all = || places(&["a", "b", "c"]);
    let claimed = record(&[("local", Verified), ("a", Claimed), ("b", Verified), ("c", Verified)]);
    let mut wishes = policy(2, 2, 2);
    wishes.prefer = ["a", "b"].map(|id| id.parse().unwrap()).into();
    let mut trimmed = claimed.clone();
    trimmed.copies.retain(|copy| copy.backend.as_str() != "b");
    // `c` goes: `local` and `a` stay, of which `a` has no proof.
    assert_eq!(jobs(&planned(&trimmed, &wishes, all())), ["Verify a"]);
    let mut old = trimmed.clone();
    old.copies[1].state = Verified;
    assert_eq!(jobs(&planned(&old, &wishes, all())), ["Release c"]);
    old.copies[1].at = Timestamp { seconds: NOW.seconds - 90_000, nanoseconds: 0 };
    assert_eq!(jobs(&planned(&old, &wishes, all())), ["Verify a"], "its proof is a day old");
}

#[test]
fn a_release_is_refused_when_too_few_places_confirm() {
    let all = places(&["a", "b", "c"]);
    let full = record(&[("local", Verified), ("a", Verified), ("b", Verified), ("c", Verified)]);
    let (root, places, policy) = (cid::of_raw(b"root"), Places::new(all), policy(2, 3, 3));
    let moment = Moment { places: &places, now: NOW, proof_age: DAY };
    let content = Content { root: &root, record: &full, policy: &policy };
    let Plan::Act(jobs) = plan(&content, &moment).plan else { panic!() };
    let [(gone, Job::Release)] = jobs.as_slice() else { panic!("{jobs:?}") };
    let witnesses = content.witnesses(&moment);
    assert_eq!(witnesses.len(), 3);
    assert!(content.may_release(gone, &witnesses, &moment));
    assert!(!content.may_release(gone, &witnesses[1..], &moment));
    let mut record = full.clone();
    let refused = Outcome::Released(witnesses[1..].to_vec());
    assert!(!apply(&root, &mut record, &policy, (gone, &refused), &moment));
    assert_eq!(record, full);
}

#[test]
fn a_place_that_is_drained_is_emptied_after_others_have_what_it_held() {
    let mut all = places(&["a", "b", "c"]);
    all[1].draining = true;
    let held = record(&[("local", Verified), ("a", Verified), ("b", Verified)]);
    assert_eq!(jobs(&planned(&held, &policy(2, 3, 5), all.clone())), ["Send c"]);
    let mut moved = held.clone();
    moved.copies.push(copy("c", Claimed));
    assert_eq!(jobs(&planned(&moved, &policy(2, 3, 5), all.clone())), ["Verify c"]);
    moved.copies[3].state = Verified;
    assert_eq!(jobs(&planned(&moved, &policy(2, 3, 5), all.clone())), ["Release a"]);
    // Nothing else can hold it: it stays, and says why.
    all.truncate(2);
    let last = record(&[("local", Verified), ("a", Verified)]);
    let Plan::Stuck(reason) = planned(&last, &policy(2, 3, 5), all).plan else { panic!() };
    assert!(reason.contains("at a is not wanted any more and stays: 1 of 2"), "{reason}");
}

#[test]
fn hosts_sites_and_providers_can_be_what_must_differ() {
    let mut all = places(&["a", "b", "c"]);
    for (n, host) in ["h1", "h1", "h2"].into_iter().enumerate() {
        all[n + 1].domains[1] = host.into();
    }
    let wishes = Policy { distinct: Domain::Host, ..policy(2, 3, 5) };
    let verdict = planned(&record(&[("local", Verified)]), &wishes, all.clone());
    let sent = jobs(&verdict);
    assert!(sent.len() == 2 && sent.contains(&"Send c".to_owned()), "{sent:?}");
    let two = record(&[("local", Verified), ("a", Verified), ("b", Verified)]);
    assert_eq!(planned(&two, &wishes, all).copies, 2);
}

fn chosen(strategy: Strategy, bytes: u64, change: impl Fn(&mut [Candidate])) -> String {
    let mut all = places(&["a", "b", "c"]);
    all.iter_mut().for_each(|place| place.space = None);
    change(&mut all);
    let mut wishes = Policy { strategy, ..policy(1, 2, 3) };
    wishes.weights = [("c".parse().unwrap(), 1000), ("a".parse().unwrap(), 0)].into();
    let record = ContentRecord { size: bytes, tsize: bytes, ..record(&[("local", Verified)]) };
    jobs(&planned(&record, &wishes, all)).concat()
}

#[test]
fn each_strategy_chooses_by_its_own_measure() {
    let quick = chosen(Strategy::Performance, 1, |all| {
        all[1].latency = Duration::from_millis(90);
        all[2].latency = Duration::from_millis(2);
        all[3].latency = Duration::from_millis(40);
    });
    assert_eq!(quick, "Send b");
    // Of a large content the throughput counts.
    let moving = |bytes| {
        chosen(Strategy::Performance, bytes, |all| {
            for (n, latency, mebibyte) in [(1, 9, 90), (2, 2, 40), (3, 9, 4)] {
                all[n].latency = Duration::from_millis(latency);
                all[n].mebibyte = Duration::from_millis(mebibyte);
            }
        })
    };
    assert_eq!((moving(1).as_str(), moving(64 << 20).as_str()), ("Send b", "Send c"));
    let cheap = chosen(Strategy::Cost, 1 << 20, |all| {
        let price = |month, request| Price {
            gb_month: Micros(month),
            gb_out: Micros(0),
            request: Micros(request),
        };
        all[1].settings.price = price(23_000, 0);
        all[2].settings.price = price(4_000, 500);
        all[3].settings.price = price(9_000, 0);
    });
    assert_eq!(cheap, "Send c", "requests count, too");
    let first = chosen(Strategy::Priority, 1, |all| all[3].settings.priority = 1);
    assert_eq!(first, "Send c");
    let roomy = |all: &mut [Candidate]| {
        all[1].space = Some((1 << 40, 1 << 39));
        all[1].latency = Duration::from_millis(90);
        all[2].space = Some((1 << 40, 1 << 30));
        all[3].space = Some((1 << 40, 1 << 30));
        all[3].latency = Duration::from_millis(20);
    };
    assert_eq!(chosen(Strategy::Size, 64 << 20, roomy), "Send a");
    assert_eq!(chosen(Strategy::Size, 4096, roomy), "Send b");
    assert_eq!(chosen(Strategy::Custom, 1, |_| {}), "Send c");
}

fn tiers() -> Policy {
    let rule = |tier: &str, copies, after: u64, until: Option<u64>| TierRule {
        tier: tier.into(),
        copies,
        after: Duration::from_hours(24 * after),
        until: until.map(|days| Duration::from_hours(24 * days)),
        by: TierClock::Age,
    };
    Policy {
        level: Level::Tiered,
        tiers: vec![
            rule("ssd", 1, 0, Some(30)),
            rule("disk", 1, 0, None),
            rule("archive", 1, 90, None),
        ],
        ..policy(1, 2, 5)
    }
}

fn tiered() -> Vec<Candidate> {
    let mut all = places(&["s", "d", "r"]);
    for (n, tier) in ["ssd", "disk", "archive"].into_iter().enumerate() {
        all[n + 1].settings.tier = Some(tier.into());
    }
    all
}

#[test]
fn tiers_follow_one_another_in_order_and_by_age() {
    let aged = |days: i64, copies: &[(&str, CopyState)]| ContentRecord {
        created_s: NOW.seconds - days * 86_400,
        ..record(copies)
    };
    let policy = tiers();
    let new = aged(0, &[("local", Verified)]);
    assert_eq!(jobs(&planned(&new, &policy, tiered())), ["Send s"], "the first tier first");
    let then = aged(0, &[("local", Verified), ("s", Verified)]);
    assert_eq!(jobs(&planned(&then, &policy, tiered())), ["Send d"]);
    let both = &[("local", Verified), ("s", Verified), ("d", Verified)];
    assert_eq!(planned(&aged(29, both), &policy, tiered()).plan, Plan::Satisfied);
    assert_eq!(jobs(&planned(&aged(30, both), &policy, tiered())), ["Release s"]);
    assert_eq!(jobs(&planned(&aged(90, both), &policy, tiered())), ["Send r"]);
    let old = aged(90, &[("local", Verified), ("s", Verified), ("d", Verified), ("r", Verified)]);
    assert_eq!(jobs(&planned(&old, &policy, tiered())), ["Release s"]);
}

#[test]
fn what_a_tier_does_not_want_yet_or_any_more_is_not_made_for_the_target() {
    for (days, wanted) in [(0, ["Send s", "Send d"]), (40, ["Send d", ""])] {
        let new = ContentRecord {
            created_s: NOW.seconds - days * 86_400,
            ..record(&[("local", Verified)])
        };
        let policy = Policy { target: 4, ..tiers() };
        let places = Places::new(tiered());
        let moment = Moment { places: &places, now: NOW, proof_age: DAY };
        let root = cid::of_raw(b"root");
        let coming = forecast(&Content { root: &root, record: &new, policy: &policy }, &moment);
        let steps: Vec<String> =
            coming.steps.iter().map(|step| format!("{:?} {}", step.job, step.place)).collect();
        let wanted: Vec<&str> = wanted.into_iter().filter(|step| !step.is_empty()).collect();
        assert_eq!(steps, wanted, "{days} days old");
        let Plan::Stuck(reason) = coming.end.plan else { panic!("{:?}", coming.end) };
        assert!(reason.contains("r: its tier wants none of this age"), "{reason}");
    }
}

#[test]
fn a_tier_whose_place_is_away_does_not_hold_the_next_one_up_and_says_so() {
    let mut all = tiered();
    all[1].state = BackendState::Down;
    (all[1].readable, all[1].available) = (false, false);
    let new = record(&[("local", Verified)]);
    assert_eq!(jobs(&planned(&new, &tiers(), all.clone())), ["Send d"]);
    let waits = record(&[("local", Verified), ("d", Verified)]);
    let Plan::Stuck(reason) = planned(&waits, &tiers(), all).plan else { panic!() };
    assert!(reason.contains("tier ssd has 0 of 1 copies"), "{reason}");
}

/// The verdict while the content is to move.
fn moving(
    record: &ContentRecord,
    policy: &Policy,
    all: Vec<Candidate>,
    (from, to): (&str, &str),
) -> (Stage, Verdict) {
    let mut places = Places::new(all);
    let root = cid::of_raw(b"root");
    let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
    let mut moves = Moves::default();
    moves.add(root, &from, &to);
    places.moves = moves.into();
    let content = Content { root: &root, record, policy };
    let moment = Moment { places: &places, now: NOW, proof_age: DAY };
    (content.stage(&from, &to, &moment), plan(&content, &moment))
}

#[test]
fn a_copy_moves_by_a_new_copy_its_proof_and_then_a_release_and_nothing_undoes_it() {
    let all = || places(&["a", "b", "c"]);
    let (wishes, way) = (policy(2, 3, 5), ("a", "c"));
    let mut held = record(&[("local", Verified), ("a", Verified), ("b", Verified)]);
    let (stage, verdict) = moving(&held, &wishes, all(), way);
    assert_eq!((stage, jobs(&verdict)), (Stage::Send, vec!["Send c".to_owned()]));
    held.copies.push(copy("c", Claimed));
    let (stage, verdict) = moving(&held, &wishes, all(), way);
    assert_eq!((stage, jobs(&verdict)), (Stage::Leave, vec!["Verify c".to_owned()]));
    held.copies[3].state = Verified;
    assert_eq!(jobs(&moving(&held, &wishes, all(), way).1), ["Release a"]);
    held.copies[1].state = Released;
    let (stage, verdict) = moving(&held, &wishes, all(), way);
    assert_eq!((stage, verdict.plan), (Stage::Done, Plan::Satisfied));
    assert_eq!(planned(&held, &wishes, all()).plan, Plan::Satisfied);
}

#[test]
fn the_policy_stands_above_a_move_and_a_place_that_is_away_is_waited_for() {
    let held = record(&[("local", Verified), ("a", Verified), ("b", Verified)]);
    let stage = |wishes: &Policy, change: &dyn Fn(&mut [Candidate])| {
        let mut all = places(&["a", "b", "c"]);
        change(&mut all);
        let (stage, verdict) = moving(&held, wishes, all, ("a", "c"));
        if stage != Stage::Send && wishes.target == 3 {
            assert_eq!(verdict.plan, Plan::Satisfied, "{stage:?}");
        }
        stage
    };
    let plain = policy(2, 3, 5);
    assert_eq!(stage(&plain, &|_| {}), Stage::Send);
    let excluding = Policy { exclude: ["c".parse().unwrap()].into(), ..plain.clone() };
    assert_eq!(stage(&excluding, &|_| {}), Stage::Stays("its policy wants no copy there"));
    let both = Stage::Stays("without both it would have fewer copies than its target");
    assert_eq!(stage(&plain, &|all| all[3].domains[0] = "b".into()), both);
    assert_eq!(stage(&policy(2, 4, 5), &|_| {}), both);
    let waits = stage(&plain, &|all| {
        all[3].state = BackendState::Down;
        (all[3].readable, all[3].available) = (false, false);
    });
    assert_eq!(waits, Stage::Waits("the place it goes to is down"));
    let small = stage(&plain, &|all| all[3].space = Some((1000, 5)));
    assert_eq!(small, Stage::Waits("the place it goes to has too little space"));
}

#[test]
fn what_is_missing_goes_to_the_place_that_takes_the_place_of_another() {
    let mut all = places(&["a", "b", "c", "d"]);
    all[1].draining = true;
    for policy in
        [policy(2, 3, 5), Policy { prefer: ["b".parse().unwrap()].into(), ..policy(2, 3, 5) }]
    {
        for n in 0..20u8 {
            let mut places = Places::new(all.clone());
            let pair = ("a".parse().unwrap(), "d".parse().unwrap());
            places.moves = Moves::of_pairs(vec![pair]).into();
            let root = cid::of_raw(&[n]);
            let held = record(&[("local", Verified), ("a", Verified), ("c", Verified)]);
            let content = Content { root: &root, record: &held, policy: &policy };
            let verdict = plan(&content, &Moment { places: &places, now: NOW, proof_age: DAY });
            assert_eq!(jobs(&verdict), ["Send d"]);
        }
    }
}

#[test]
fn a_place_above_its_stop_takes_nothing_new_and_above_the_ceiling_the_cheaper_comes_first() {
    let mut all = places(&["a", "b", "c"]);
    all[1].stopped = true;
    let wishes =
        Policy { prefer: ["a", "b"].map(|id| id.parse().unwrap()).into(), ..policy(1, 2, 3) };
    let new = record(&[("local", Verified)]);
    assert_eq!(jobs(&planned(&new, &wishes, all.clone())), ["Send b"]);
    let held = record(&[("local", Verified), ("a", Verified)]);
    assert_eq!(planned(&held, &wishes, all.clone()).plan, Plan::Satisfied, "what is there stays");
    let only = policy(2, 4, 4);
    let Plan::Stuck(reason) = planned(
        &record(&[("local", Verified), ("b", Verified), ("c", Verified)]),
        &only,
        all.clone(),
    )
    .plan
    else {
        panic!()
    };
    assert!(reason.contains("a: above its stop threshold"), "{reason}");
    all[1].stopped = false;
    for (n, price) in [(1, 9), (2, 5), (3, 1)] {
        all[n].settings.price.gb_month = Micros(price);
    }
    let root = cid::of_raw(b"root");
    for (thrifty, target, wanted) in [
        (false, 2, vec!["Send a"]),
        (true, 2, vec!["Send c"]),
        (true, 4, vec!["Send a", "Send b", "Send c"]),
    ] {
        let mut places = Places::new(all.clone());
        places.thrifty = thrifty;
        let wishes = Policy { prefer: ["a".parse().unwrap()].into(), ..policy(1, target, 5) };
        let content = Content { root: &root, record: &new, policy: &wishes };
        let verdict = plan(&content, &Moment { places: &places, now: NOW, proof_age: DAY });
        assert_eq!(jobs(&verdict), wanted, "the policy's copies are made all the same");
    }
}

#[test]
fn a_content_that_is_read_stays_where_tiers_by_access_keep_it() {
    let wishes: Policy =
        "min=1,target=1,max=2,tiers=near:1:until=30d:by=access/far:1:after=30d:by=access"
            .parse()
            .unwrap();
    let tiered = || {
        let mut all = places(&["a", "b"]);
        all[1].settings.tier = Some("near".into());
        all[2].settings.tier = Some("far".into());
        all
    };
    let mut content = record(&[("local", Verified), ("a", Verified)]);
    let days = |days: u64| i64::try_from(DAY.as_secs() * days).unwrap();
    (content.created_s, content.accessed_s) = (NOW.seconds - days(90), NOW.seconds - days(90));
    assert_eq!(jobs(&planned(&content, &wishes, tiered())), ["Send b"], "nobody read it");
    content.accessed_s = NOW.seconds - days(2);
    let verdict = planned(&content, &wishes, tiered());
    assert!(!matches!(&verdict.plan, Plan::Act(jobs) if !jobs.is_empty()), "{verdict:?}");
}

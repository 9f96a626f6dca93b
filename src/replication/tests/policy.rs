use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;
use proptest::strategy::Strategy as Generator;

use crate::replication::{
    Domain, Level, OnDegraded, Policy, Strategy, TierClock, TierRule, WaitOn,
};
use crate::types::BackendId;

fn ids() -> impl Generator<Value = BTreeSet<BackendId>> {
    let id = "[a-c][a-z0-9._-]{0,3}".prop_map(|id| id.parse().unwrap());
    prop::collection::btree_set(id, 0..4)
}

fn tier() -> impl Generator<Value = TierRule> {
    let until = prop::option::of(1u64..10_000_000);
    let by = prop_oneof![Just(TierClock::Age), Just(TierClock::Access)];
    ("[A-Za-z0-9._-]{1,8}", 1u8..4, 0u64..10_000_000, until, by).prop_map(
        |(tier, copies, after, until, by)| TierRule {
            tier,
            copies,
            after: Duration::from_secs(after),
            until: until.map(|length| Duration::from_secs(after + length)),
            by,
        },
    )
}

/// Policies that hold, with every part.
fn policies() -> impl Generator<Value = Policy> {
    let level = prop_oneof![
        Just(Level::LocalDurability),
        Just(Level::Single),
        Just(Level::Quorum),
        Just(Level::All),
        Just(Level::Tiered),
        Just(Level::Progressive),
    ];
    let wait_on = prop_oneof![Just(WaitOn::Close), Just(WaitOn::Fsync)];
    let on_degraded = prop_oneof![Just(OnDegraded::Queue), Just(OnDegraded::Fail)];
    let counts = prop::array::uniform3(1u8..=100);
    let distinct = prop_oneof![
        Just(Domain::Device),
        Just(Domain::Host),
        Just(Domain::Site),
        Just(Domain::Provider)
    ];
    let strategy = prop_oneof![
        Just(Strategy::Balanced),
        Just(Strategy::Performance),
        Just(Strategy::Cost),
        Just(Strategy::Priority),
        Just(Strategy::Size),
        Just(Strategy::Custom),
    ];
    let weights = prop::collection::btree_map(
        "[a-z]{1,3}".prop_map(|id| id.parse::<BackendId>().unwrap()),
        0u32..1000,
        0..4,
    );
    let lists = (weights, ids(), ids(), prop::collection::vec(tier(), 0..4));
    ((counts, level, wait_on, on_degraded), distinct, strategy, lists).prop_map(
        |((mut counts, level, wait_on, on_degraded), distinct, strategy, lists)| {
            counts.sort_unstable();
            let [mut min, target, mut max] = counts;
            let (mut weights, prefer, mut exclude, mut tiers) = lists;
            if strategy != Strategy::Custom {
                weights.clear();
            }
            exclude.retain(|id| !prefer.contains(id));
            if level == Level::Tiered || !tiers.is_empty() {
                // One copy at any age; with all the others no more than 10.
                let (after, until) = (Duration::ZERO, None);
                let always =
                    TierRule { tier: "disk".into(), copies: 1, after, until, by: TierClock::Age };
                tiers.insert(0, always);
                (min, max) = (1, max.max(10));
            }
            Policy {
                min,
                target,
                max,
                level,
                wait_on,
                on_degraded,
                distinct,
                strategy,
                weights,
                prefer,
                exclude,
                tiers,
            }
        },
    )
}

proptest! {
    #[test]
    fn a_policy_is_its_text_and_its_json(policy in policies()) {
        prop_assert_eq!(policy.to_string().parse::<Policy>(), Ok(policy.clone()));
        let json = serde_json::to_string(&policy).unwrap();
        prop_assert_eq!(serde_json::from_str::<Policy>(&json).unwrap(), policy);
    }

    #[test]
    fn an_override_changes_what_it_names_only(policy in policies(), other in policies()) {
        let distinct = other.parts()[6].1.clone();
        let changed = policy.overridden_by(&format!("distinct={distinct},wait_on=fsync")).unwrap();
        let wanted =
            Policy { distinct: other.distinct, wait_on: WaitOn::Fsync, ..policy.clone() };
        prop_assert_eq!(changed, wanted);
        prop_assert_eq!(policy.overridden_by("").unwrap(), policy.clone());
        // All parts by name are the whole.
        let all: Vec<String> = other.parts().map(|(key, value)| format!("{key}={value}")).into();
        prop_assert_eq!(policy.overridden_by(&all.join(",")).unwrap(), other);
    }

    #[test]
    fn a_level_waits_for_no_more_than_target_and_places_allow(policy in policies(), places in 1usize..9) {
        let selected = places.min(usize::from(policy.target));
        let wait = policy.copies_to_wait_for(selected, true);
        let tier = policy.tiers.first().map_or(1, |tier| usize::from(tier.copies));
        prop_assert!(wait >= 1 && wait <= usize::from(policy.target).max(2).max(tier));
        if policy.level == Level::All {
            prop_assert_eq!(wait, selected);
        }
    }

    #[test]
    fn any_text_is_a_policy_or_is_explained(text in "\\PC{0,40}") {
        if let Err(error) = text.parse::<Policy>() {
            prop_assert!(!error.reason.is_empty());
        }
    }
}

#[test]
fn what_is_wrong_is_said_with_what_to_write() {
    for (text, hint) in [
        ("min", "key=value"),
        ("minimum=2", "use min, target, max, level, wait_on, on_degraded, distinct, strategy"),
        ("min=0", "from 1 to 100"),
        ("max=101", "from 1 to 100"),
        ("min=4", "min <= target <= max does not hold for 4, 3, 5"),
        ("target=9", "does not hold"),
        ("level=SOME", "LOCAL_DURABILITY, SINGLE, QUORUM, ALL, TIERED or PROGRESSIVE"),
        ("wait_on=open", "close or fsync"),
        ("on_degraded=panic", "queue or fail"),
        ("distinct=room", "device, host, site or provider"),
        ("strategy=best", "balanced, performance, cost, priority, size or custom"),
        ("weights=a:3", "strategy=custom"),
        ("strategy=custom,weights=a", "BACKEND:NUMBER"),
        ("strategy=custom,weights=a:1/a:2", "`a` has two"),
        ("prefer=A", "not a backend id"),
        ("prefer=a/b,exclude=b", "`b` is both preferred and excluded"),
        ("exclude=local", "every write lands in the local store first"),
        ("level=TIERED", "name tiers="),
        ("level=TIERED,tiers=ssd:2:after=1d/disk:2", "not wanted at first"),
        ("tiers=ssd", "from 1 to 100"),
        ("tiers=:2", "name of a tier"),
        ("tiers=ssd:2:until=soon", "is no time"),
        ("tiers=ssd:2:until=10ms", "whole seconds"),
        ("tiers=ssd:2:for=1d", "after=TIME, until=TIME or by=age|access"),
        ("tiers=ssd:2:after=1d:until=1d/disk:2", "ends before it begins"),
        ("tiers=ssd:2:until=30d", "0 copies are wanted of what is 30d old"),
        ("tiers=ssd:1/disk:1:after=1h", "1 copies are wanted of what is 0s old"),
        ("tiers=a:3/b:3", "6 copies are wanted of what is 0s old and was read 0s ago, above max=5"),
        ("max=3,tiers=disk:2/b:2:after=90d:by=access", "read 90d ago, above max=3"),
    ] {
        let error = text.parse::<Policy>().unwrap_err().to_string();
        assert!(error.contains(hint), "{text}: {error}");
    }
    let long = format!("prefer={}", "a/".repeat(2000));
    assert!(long.parse::<Policy>().unwrap_err().to_string().contains("at most 2048"));
}

#[test]
fn a_text_with_every_part_is_read_and_empty_lists_clear() {
    let text = "min=2,target=3,max=5,level=TIERED,wait_on=close,on_degraded=queue,distinct=site,\
        strategy=custom,weights=a:3/b:1,prefer=a/b,exclude=c,\
        tiers=ssd:1:until=30d/disk:2/archive:1:after=90d:by=access";
    let policy: Policy = text.parse().unwrap();
    assert_eq!(policy.to_string(), text);
    let ages: Vec<_> = policy.tiers.iter().map(|t| (t.after.as_secs(), t.until)).collect();
    let days = |n: u64| Duration::from_secs(n * 86_400);
    assert_eq!(ages, [(0, Some(days(30))), (0, None), (90 * 86_400, None)]);
    let json = serde_json::to_value(&policy).unwrap();
    assert_eq!(json["tiers"][0]["until"], "30d");
    let clear = "level=QUORUM,distinct=device,strategy=balanced,weights=,prefer=,exclude=,tiers=";
    assert_eq!(policy.overridden_by(clear).unwrap(), Policy::default());
    assert_eq!(
        "tiers=a:2:after=0s:until=1d2h3m4s/b:2".parse::<Policy>().unwrap().parts()[11].1,
        "a:2:until=1d2h3m4s/b:2"
    );
}

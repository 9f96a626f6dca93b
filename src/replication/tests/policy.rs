use proptest::prelude::*;

use crate::replication::{Level, OnDegraded, Policy, WaitOn};

fn policies() -> impl Strategy<Value = Policy> {
    let level = prop_oneof![
        Just(Level::LocalDurability),
        Just(Level::Single),
        Just(Level::Quorum),
        Just(Level::All)
    ];
    let wait_on = prop_oneof![Just(WaitOn::Close), Just(WaitOn::Fsync)];
    let on_degraded = prop_oneof![Just(OnDegraded::Queue), Just(OnDegraded::Fail)];
    let counts = prop::array::uniform3(1u8..=100);
    (counts, level, wait_on, on_degraded).prop_map(|(mut counts, level, wait_on, on_degraded)| {
        counts.sort_unstable();
        let [min, target, max] = counts;
        Policy { min, target, max, level, wait_on, on_degraded, ..Policy::default() }
    })
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
        let text = format!("level={},wait_on=fsync", other.level.as_str());
        let changed = policy.overridden_by(&text).unwrap();
        let wanted = Policy { level: other.level, wait_on: WaitOn::Fsync, ..policy.clone() };
        prop_assert_eq!(changed, wanted);
        prop_assert_eq!(policy.overridden_by("").unwrap(), policy);
    }

    #[test]
    fn a_level_waits_for_no_more_than_target_and_places_allow(policy in policies(), places in 1usize..9) {
        let selected = places.min(usize::from(policy.target));
        let wait = policy.copies_to_wait_for(selected);
        prop_assert!(wait >= 1 && wait <= usize::from(policy.target).max(2));
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
        ("minimum=2", "use min, target, max, level, wait_on or on_degraded"),
        ("min=0", "from 1 to 100"),
        ("max=101", "from 1 to 100"),
        ("min=4", "min <= target <= max does not hold for 4, 3, 5"),
        ("target=9", "does not hold"),
        ("level=SOME", "LOCAL_DURABILITY, SINGLE, QUORUM or ALL"),
        ("wait_on=open", "close or fsync"),
        ("on_degraded=panic", "queue or fail"),
    ] {
        let error = text.parse::<Policy>().unwrap_err().to_string();
        assert!(error.contains(hint), "{text}: {error}");
    }
}

//! The text form of a policy, and what makes one consistent.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::policy::{
    Domain, InvalidPolicy, Level, OnDegraded, Policy, Strategy, TierClock, TierRule, WaitOn,
};
use crate::types::{BackendId, printable};

/// The most copies that a policy may name.
const MOST_COPIES: u8 = 100;
/// Backends in one of a policy's lists.
const MOST_BACKENDS: usize = 64;
/// Tiers of a policy: its consistency is looked at by every pair of their times.
const MOST_TIERS: usize = 8;
/// Bytes of one text: longer ones are no policies that somebody wrote.
pub(super) const LONGEST_TEXT: usize = 2048;
/// Bytes of a tier's name.
const LONGEST_TIER: usize = 32;
/// The highest weight.
const HEAVIEST: u32 = 1_000_000;

const LEVELS: &[(&str, Level)] = &[
    ("LOCAL_DURABILITY", Level::LocalDurability),
    ("LOCAL", Level::LocalDurability),
    ("SINGLE", Level::Single),
    ("QUORUM", Level::Quorum),
    ("ALL", Level::All),
    ("TIERED", Level::Tiered),
    ("PROGRESSIVE", Level::Progressive),
];
const WAITS: &[(&str, WaitOn)] = &[("close", WaitOn::Close), ("fsync", WaitOn::Fsync)];
const DEGRADED: &[(&str, OnDegraded)] = &[("queue", OnDegraded::Queue), ("fail", OnDegraded::Fail)];
const DOMAINS: &[(&str, Domain)] = &[
    ("device", Domain::Device),
    ("host", Domain::Host),
    ("site", Domain::Site),
    ("provider", Domain::Provider),
];
const STRATEGIES: &[(&str, Strategy)] = &[
    ("balanced", Strategy::Balanced),
    ("performance", Strategy::Performance),
    ("cost", Strategy::Cost),
    ("priority", Strategy::Priority),
    ("size", Strategy::Size),
    ("custom", Strategy::Custom),
];
const CLOCKS: &[(&str, TierClock)] = &[("age", TierClock::Age), ("access", TierClock::Access)];

const KEYS: &str = "min, target, max, level, wait_on, on_degraded, distinct, strategy, weights, prefer, exclude or tiers";

/// The value of a word, whatever its case; else what to write.
fn value_of<T: Copy>(key: &str, word: &str, words: &[(&str, T)]) -> Result<T, String> {
    let found = words.iter().find(|(name, _)| name.eq_ignore_ascii_case(word));
    found.map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<&str> =
            words.iter().map(|(name, _)| *name).filter(|name| *name != "LOCAL").collect();
        let (last, first) = names.split_last().unwrap_or((&"", &[]));
        format!("{key}={word}: use {} or {last}", first.join(", "))
    })
}

fn word_of<T: Copy + PartialEq>(value: T, words: &[(&'static str, T)]) -> &'static str {
    words.iter().find(|(_, known)| *known == value).map_or("", |(name, _)| name)
}

fn count(key: &str, value: &str) -> Result<u8, String> {
    match value.parse::<u8>() {
        Ok(n) if (1..=MOST_COPIES).contains(&n) => Ok(n),
        _ => Err(format!("{key}={value}: write a number from 1 to {MOST_COPIES}")),
    }
}

fn backend(key: &str, id: &str) -> Result<BackendId, String> {
    id.parse().map_err(|e| format!("{key}: {e}"))
}

/// `a/b`; empty is none.
fn backends(key: &str, value: &str) -> Result<BTreeSet<BackendId>, String> {
    let ids: Result<BTreeSet<_>, _> =
        value.split('/').filter(|id| !id.is_empty()).map(|id| backend(key, id)).collect();
    let ids = ids?;
    match ids.len() {
        n if n > MOST_BACKENDS => Err(format!("{key}: {n} backends; at most {MOST_BACKENDS}")),
        _ => Ok(ids),
    }
}

/// `a:3/b:1`; empty is none.
fn weights(value: &str) -> Result<BTreeMap<BackendId, u32>, String> {
    let mut weights = BTreeMap::new();
    for part in value.split('/').filter(|part| !part.is_empty()) {
        let bad =
            || format!("weights: `{part}` is not BACKEND:NUMBER (0 to {HEAVIEST}), as in a:3/b:1");
        let (id, weight) = part.split_once(':').ok_or_else(bad)?;
        let weight = weight.parse().ok().filter(|n| *n <= HEAVIEST).ok_or_else(bad)?;
        if weights.insert(backend("weights", id)?, weight).is_some() {
            return Err(format!("weights: `{id}` has two"));
        }
    }
    match weights.len() {
        n if n > MOST_BACKENDS => Err(format!("weights: {n} backends; at most {MOST_BACKENDS}")),
        _ => Ok(weights),
    }
}

fn age_of(text: &str) -> Result<Duration, String> {
    let age = humantime::parse_duration(text)
        .map_err(|e| format!("`{text}` is no time ({e}): write 30d, 12h or 1d12h"))?;
    if age.subsec_nanos() > 0 {
        return Err(format!("`{text}`: write whole seconds"));
    }
    Ok(age)
}

/// As `age_of` reads it, without blanks: `1d12h`.
fn age_text(age: Duration) -> String {
    let (mut left, mut parts) = (age.as_secs(), Vec::new());
    for (unit, seconds) in [("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)] {
        if left >= seconds {
            parts.push(format!("{}{unit}", left / seconds));
            left %= seconds;
        }
    }
    if parts.is_empty() { "0s".into() } else { parts.concat() }
}

/// `ssd:1:until=30d`, `archive:1:after=90d:by=access`.
fn tier(text: &str) -> Result<TierRule, String> {
    let mut parts = text.split(':');
    let (name, copies) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if name.is_empty() || name.len() > LONGEST_TIER || !name.bytes().all(allowed) {
        return Err(format!(
            "tiers: `{text}` does not begin with the name of a tier, as in ssd:1:until=30d/disk:2"
        ));
    }
    let copies = count(&format!("tiers: {name}"), copies)?;
    let mut rule = TierRule {
        tier: name.to_owned(),
        copies,
        after: Duration::ZERO,
        until: None,
        by: TierClock::Age,
    };
    for part in parts {
        let of_tier = |reason: String| format!("tiers: {name}: {reason}");
        match part.split_once('=') {
            Some(("after", value)) => rule.after = age_of(value).map_err(of_tier)?,
            Some(("until", value)) => rule.until = Some(age_of(value).map_err(of_tier)?),
            Some(("by", value)) => rule.by = value_of("by", value, CLOCKS).map_err(of_tier)?,
            _ => {
                return Err(of_tier(format!(
                    "`{part}` is not after=TIME, until=TIME or by=age|access"
                )));
            }
        }
    }
    Ok(rule)
}

fn tiers(value: &str) -> Result<Vec<TierRule>, String> {
    let rules: Vec<TierRule> =
        value.split('/').filter(|part| !part.is_empty()).map(tier).collect::<Result<_, _>>()?;
    match rules.len() {
        n if n > MOST_TIERS => Err(format!("tiers: {n} of them; at most {MOST_TIERS}")),
        _ => Ok(rules),
    }
}

fn joined<T>(items: impl IntoIterator<Item = T>, text: impl Fn(T) -> String) -> String {
    items.into_iter().map(text).collect::<Vec<_>>().join("/")
}

impl fmt::Display for TierRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tier, copies, after, until, by } = self;
        write!(f, "{tier}:{copies}")?;
        if !after.is_zero() {
            write!(f, ":after={}", age_text(*after))?;
        }
        if let Some(until) = until {
            write!(f, ":until={}", age_text(*until))?;
        }
        match by {
            TierClock::Age => Ok(()),
            TierClock::Access => write!(f, ":by={}", word_of(*by, CLOCKS)),
        }
    }
}

impl TierRule {
    fn is_wanted(&self, age: Duration, access: Duration) -> bool {
        let old = match self.by {
            TierClock::Age => age,
            TierClock::Access => access,
        };
        self.after <= old && self.until.is_none_or(|until| old < until)
    }
}

impl Policy {
    /// This policy with the parts that `text` names replaced.
    ///
    /// # Errors
    /// [`InvalidPolicy`] for unknown words, and when the whole is not consistent.
    pub fn overridden_by(&self, text: &str) -> Result<Self, InvalidPolicy> {
        let invalid = |reason: String| InvalidPolicy { text: printable(text), reason };
        if text.len() > LONGEST_TEXT {
            let reason = format!("{} bytes; at most {LONGEST_TEXT}", text.len());
            return Err(InvalidPolicy { text: "...".into(), reason });
        }
        let mut policy = self.clone();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            policy.set(part).map_err(invalid)?;
        }
        policy.inconsistency().map_or(Ok(policy), |reason| Err(invalid(reason)))
    }

    fn set(&mut self, part: &str) -> Result<(), String> {
        let (key, value) = part.split_once('=').ok_or_else(|| {
            format!("`{part}` is not key=value, as in min=2,target=3,max=5,level=QUORUM")
        })?;
        match key {
            "min" => self.min = count(key, value)?,
            "target" => self.target = count(key, value)?,
            "max" => self.max = count(key, value)?,
            "level" => self.level = value_of(key, value, LEVELS)?,
            "wait_on" => self.wait_on = value_of(key, value, WAITS)?,
            "on_degraded" => self.on_degraded = value_of(key, value, DEGRADED)?,
            "distinct" => self.distinct = value_of(key, value, DOMAINS)?,
            "strategy" => self.strategy = value_of(key, value, STRATEGIES)?,
            "weights" => self.weights = weights(value)?,
            "prefer" => self.prefer = backends(key, value)?,
            "exclude" => self.exclude = backends(key, value)?,
            "tiers" => self.tiers = tiers(value)?,
            _ => return Err(format!("`{key}` is not a part of a policy: use {KEYS}")),
        }
        Ok(())
    }

    /// Why it cannot hold, and what to write.
    fn inconsistency(&self) -> Option<String> {
        let Self { min, target, max, .. } = self;
        if min > target || target > max {
            return Some(format!("min <= target <= max does not hold for {min}, {target}, {max}"));
        }
        if let Some(both) = self.prefer.intersection(&self.exclude).next() {
            return Some(format!("`{both}` is both preferred and excluded"));
        }
        if self.exclude.iter().any(BackendId::is_local) {
            return Some("exclude=local: every write lands in the local store first".into());
        }
        if !self.weights.is_empty() && self.strategy != Strategy::Custom {
            return Some("weights hold with strategy=custom only; weights= clears them".into());
        }
        if self.level == Level::Tiered && self.tiers.is_empty() {
            return Some(
                "level=TIERED waits for the first tier: name tiers=NAME:COPIES/...".into(),
            );
        }
        self.inconsistent_tiers()
    }

    fn inconsistent_tiers(&self) -> Option<String> {
        for rule in &self.tiers {
            if rule.until.is_some_and(|until| until <= rule.after) {
                return Some(format!("tiers: {rule}: it ends before it begins"));
            }
        }
        let first = self.tiers.first()?;
        if self.level == Level::Tiered && !first.after.is_zero() {
            return Some(format!(
                "level=TIERED waits for the first tier, and {first} is not wanted at first"
            ));
        }
        let times: BTreeSet<Duration> =
            self.tiers.iter().flat_map(|rule| [Some(rule.after), rule.until]).flatten().collect();
        let times: Vec<Duration> = std::iter::once(Duration::ZERO)
            .chain(times.into_iter().filter(|t| !t.is_zero()))
            .collect();
        for (index, age) in times.iter().enumerate() {
            // It was read at some time since it came.
            for access in &times[..=index] {
                let wanted = self.tiers.iter().filter(|rule| rule.is_wanted(*age, *access));
                let copies: u32 = wanted.map(|rule| u32::from(rule.copies)).sum();
                let at = || {
                    format!(
                        "tiers: {copies} copies are wanted of what is {} old and was read {} ago",
                        age_text(*age),
                        age_text(*access)
                    )
                };
                if copies > u32::from(self.max) {
                    return Some(format!("{}, above max={}", at(), self.max));
                }
                if copies < u32::from(self.min) {
                    return Some(format!("{}, below min={}", at(), self.min));
                }
            }
        }
        None
    }

    /// Each part of the text form, and whether it is as built in.
    #[must_use]
    pub fn parts(&self) -> [(&'static str, String); 12] {
        [
            ("min", self.min.to_string()),
            ("target", self.target.to_string()),
            ("max", self.max.to_string()),
            ("level", self.level.as_str().to_owned()),
            ("wait_on", word_of(self.wait_on, WAITS).to_owned()),
            ("on_degraded", word_of(self.on_degraded, DEGRADED).to_owned()),
            ("distinct", word_of(self.distinct, DOMAINS).to_owned()),
            ("strategy", word_of(self.strategy, STRATEGIES).to_owned()),
            ("weights", joined(&self.weights, |(id, weight)| format!("{id}:{weight}"))),
            ("prefer", joined(&self.prefer, ToString::to_string)),
            ("exclude", joined(&self.exclude, ToString::to_string)),
            ("tiers", joined(&self.tiers, ToString::to_string)),
        ]
    }
}

impl FromStr for Policy {
    type Err = InvalidPolicy;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::default().overridden_by(text)
    }
}

/// The first six parts always, the others when they are not as built in.
impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let default = Self::default().parts();
        for (index, (part, built_in)) in self.parts().iter().zip(&default).enumerate() {
            if index >= 6 && part == built_in {
                continue;
            }
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{}={}", part.0, part.1)?;
        }
        Ok(())
    }
}

/// Ages in JSON: as in the text.
pub(super) mod age {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(in super::super) fn serialize<S: Serializer>(
        age: &Duration,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.serialize_str(&super::age_text(*age))
    }

    pub(in super::super) fn deserialize<'d, D: Deserializer<'d>>(
        from: D,
    ) -> Result<Duration, D::Error> {
        super::age_of(&String::deserialize(from)?).map_err(de::Error::custom)
    }
}

/// As [`age`], or nothing.
pub(super) mod age_or_none {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

    #[expect(clippy::ref_option, reason = "serde passes references")]
    pub(in super::super) fn serialize<S: Serializer>(
        age: &Option<Duration>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        age.map(super::age_text).serialize(to)
    }

    pub(in super::super) fn deserialize<'d, D: Deserializer<'d>>(
        from: D,
    ) -> Result<Option<Duration>, D::Error> {
        let text = Option::<String>::deserialize(from)?;
        text.map(|text| super::age_of(&text).map_err(de::Error::custom)).transpose()
    }
}

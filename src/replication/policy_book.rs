//! Which policy each number in a content's record stands for.
//!
//! A *rule* is what is set at a file or directory: parts of a policy, or the NAME of
//! a definition with parts after it. An *expression* is the rules from the root
//! down, with `;` between them; one that a mount's options put before all begins with
//! `@`. Records hold numbers of expressions, so that a definition that changes, or
//! the volume's own policy, changes the policy of all contents at once and no tree
//! is walked. Pure: who asks for a new number keeps it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use super::policy_text::LONGEST_TEXT;
use super::{InvalidPolicy, Policy, TierClock};
use crate::types::printable;

/// Expressions at most: each is in memory.
const MOST_EXPRESSIONS: usize = 16_384;
/// Bytes of all expressions.
const MOST_BYTES: usize = 8 << 20;
/// Bytes of one expression; a longer one loses the rules that a name resets.
const LONGEST_EXPRESSION: usize = 8 << 10;
/// Merged policies that are kept.
const MOST_MERGED: usize = 4096;
/// Numbers of one content; then the strictest are kept.
pub(super) const MOST_NUMBERS: usize = 16;
/// Names that were logged as not defined: each once.
const MOST_TOLD: usize = 256;
/// Definitions of a volume.
const MOST_DEFINITIONS: usize = 1024;
/// Bytes of a name.
const LONGEST_NAME: usize = 64;

/// A named policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Definition {
    /// As it was written.
    pub text: String,
    /// With the volume's own policy below it.
    pub policy: Policy,
}

/// There are too many different policies for one more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the volume has too many different policies ({MOST_EXPRESSIONS}); define one by name (`cairn policy define`) and use it in several places"
)]
pub struct TooManyPolicies;

/// What rules come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// The policy in force.
    pub policy: Policy,
    /// After each rule: the policy so far, and why the rule holds in part or not at
    /// all.
    pub steps: Vec<(Policy, Option<String>)>,
}

struct Entry {
    expression: String,
    policy: Arc<Policy>,
}

#[derive(Default)]
struct Inner {
    base: Arc<Policy>,
    definitions: BTreeMap<String, Definition>,
    entries: BTreeMap<u32, Entry>,
    numbers: HashMap<String, u32>,
    bytes: usize,
    merged: HashMap<Vec<u32>, Arc<Policy>>,
    /// A policy has tiers by access.
    by_access: bool,
}

fn counts_access(policy: &Policy) -> bool {
    policy.tiers.iter().any(|rule| rule.by == TierClock::Access)
}

/// The policies of a volume by name and by number.
#[derive(Default)]
pub struct PolicyBook {
    inner: RwLock<Inner>,
    /// Numbers are given one at a time.
    adding: Mutex<()>,
    told: Mutex<BTreeSet<String>>,
}

/// The name that a rule begins with, and its parts.
#[must_use]
pub fn split_rule(rule: &str) -> (Option<&str>, &str) {
    let (first, rest) = rule.split_once(',').unwrap_or((rule, ""));
    let first = first.trim();
    if first.is_empty() || first.contains('=') { (None, rule) } else { (Some(first), rest) }
}

/// Whether this can name a policy.
///
/// # Errors
/// What to write.
pub fn check_name(name: &str) -> Result<(), InvalidPolicy> {
    let allowed =
        |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.');
    let starts = name.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
    if starts && name.len() <= LONGEST_NAME && name.bytes().all(allowed) {
        return Ok(());
    }
    Err(InvalidPolicy {
        text: printable(name),
        reason: format!(
            "a name has 1 to {LONGEST_NAME} of a-z, 0-9, `-`, `_` and `.`, and begins with a letter"
        ),
    })
}

/// A definition's policy over the volume's own.
///
/// # Errors
/// `InvalidPolicy`: it names another, or does not hold.
pub fn check_definition(base: &Policy, name: &str, text: &str) -> Result<Policy, InvalidPolicy> {
    check_name(name)?;
    if let (Some(other), _) = split_rule(text) {
        let reason =
            format!("`{other}` is not key=value; a definition is made of parts, not of names");
        return Err(InvalidPolicy { text: printable(text), reason });
    }
    base.overridden_by(text)
}

/// Blanks away, and parts that are empty.
fn tidied(rule: &str) -> String {
    let parts = rule.split(',').map(str::trim).filter(|part| !part.is_empty());
    parts.collect::<Vec<_>>().join(",")
}

/// The rules from the root down as one text.
#[must_use]
pub fn expression(mount: &str, rules: &[String]) -> String {
    let mount = Some(tidied(mount)).filter(|rule| !rule.is_empty()).map(|rule| format!("@{rule}"));
    // No rule that was ever accepted has the separator in it.
    let rules = rules.iter().filter(|rule| !rule.contains([';', '@'])).map(|rule| tidied(rule));
    let mut all: Vec<String> =
        mount.into_iter().chain(rules.filter(|rule| !rule.is_empty())).collect();
    all.dedup();
    let length = |all: &[String]| all.iter().map(|rule| rule.len() + 1).sum::<usize>();
    if length(&all) > LONGEST_EXPRESSION
        && let Some(reset) = all.iter().rposition(|rule| split_rule(rule).0.is_some())
    {
        let first = usize::from(all[0].starts_with('@')).min(reset);
        all.drain(first..reset);
    }
    while length(&all) > LONGEST_EXPRESSION && all.len() > 1 {
        // The parts of two rules in one: those that both name are the later one's.
        let last = all.pop().unwrap_or_default();
        if let Some(rule) = all.last_mut() {
            *rule = together(rule, &last);
        }
    }
    all.join(";")
}

fn together(first: &str, second: &str) -> String {
    let key = |part: &str| part.split_once('=').map(|(key, _)| key.to_owned());
    let later: BTreeSet<String> = second.split(',').filter_map(key).collect();
    let earlier = first.split(',').filter(|part| key(part).is_none_or(|key| !later.contains(&key)));
    tidied(&earlier.chain([second]).collect::<Vec<_>>().join(","))
}

impl Inner {
    /// What is inherited with a rule over it. With a problem, as much of the rule as
    /// holds.
    fn ruled(&self, base: &Policy, inherited: &Policy, rule: &str) -> (Policy, Option<String>) {
        let (name, parts) = split_rule(rule);
        let (start, problem) = match name.map(|name| (name, self.definitions.get(name))) {
            None => (inherited.clone(), None),
            Some((name, None)) => {
                let text = format!("policy `{name}` is not defined: what is inherited holds");
                (inherited.clone(), Some(text))
            }
            Some((_, Some(definition))) => match base.overridden_by(&definition.text) {
                Ok(policy) => (policy, None),
                Err(error) => (inherited.clone(), Some(error.to_string())),
            },
        };
        match start.overridden_by(parts) {
            Ok(policy) => (policy, problem),
            Err(error) => {
                let error = format!("passed over: {error}");
                (start, Some(problem.map_or(error.clone(), |first| format!("{first}; {error}"))))
            }
        }
    }

    fn resolve(&self, expression: &str) -> Policy {
        let mut rules = expression.split(';').filter(|rule| !rule.is_empty()).peekable();
        let mut base = (*self.base).clone();
        if let Some(mount) = rules.peek().and_then(|rule| rule.strip_prefix('@')) {
            base = base.overridden_by(mount).unwrap_or(base);
            rules.next();
        }
        rules.fold(base.clone(), |policy, rule| self.ruled(&base, &policy, rule).0)
    }

    fn of_one(&self, number: u32) -> Option<Arc<Policy>> {
        match number {
            0 => Some(Arc::clone(&self.base)),
            _ => self.entries.get(&number).map(|entry| Arc::clone(&entry.policy)),
        }
    }

    /// The strictest first.
    fn by_strictness(&self, numbers: &[u32]) -> Vec<(u32, Arc<Policy>)> {
        let mut all: Vec<_> = numbers.iter().filter_map(|n| Some((*n, self.of_one(*n)?))).collect();
        all.sort_by_key(|(n, policy)| (std::cmp::Reverse((policy.min, policy.target)), *n));
        all.dedup_by_key(|(n, _)| *n);
        all
    }

    fn merge(&self, numbers: &[u32]) -> Arc<Policy> {
        let all = self.by_strictness(numbers);
        let Some((_, strictest)) = all.first() else { return Arc::clone(&self.base) };
        let mut merged = (**strictest).clone();
        for (_, policy) in &all[1..] {
            merged.min = merged.min.max(policy.min);
            merged.target = merged.target.max(policy.target);
            merged.max = merged.max.max(policy.max);
            merged.distinct = merged.distinct.max(policy.distinct);
            merged.exclude.retain(|id| policy.exclude.contains(id));
            merged.prefer.extend(policy.prefer.iter().cloned());
        }
        let Policy { prefer, exclude, .. } = &mut merged;
        prefer.retain(|id| !exclude.contains(id));
        Arc::new(merged)
    }
}

impl PolicyBook {
    /// With the expressions that were kept.
    #[must_use]
    pub fn new(kept: Vec<(u32, String)>) -> Self {
        let mut inner = Inner::default();
        for (number, expression) in kept {
            let policy = Arc::new(inner.resolve(&expression));
            inner.bytes += expression.len();
            inner.by_access |= counts_access(&policy);
            inner.numbers.insert(expression.clone(), number);
            inner.entries.insert(number, Entry { expression, policy });
        }
        Self { inner: RwLock::new(inner), ..Self::default() }
    }

    /// The volume's own policy and its definitions from now on; every number means
    /// what they say.
    ///
    /// # Errors
    /// `InvalidPolicy`: nothing changed then.
    pub fn define(
        &self,
        base: &Policy,
        definitions: &BTreeMap<String, String>,
    ) -> Result<(), InvalidPolicy> {
        if definitions.len() > MOST_DEFINITIONS {
            let reason = format!("{} definitions; at most {MOST_DEFINITIONS}", definitions.len());
            return Err(InvalidPolicy { text: "[policies]".into(), reason });
        }
        let mut checked = BTreeMap::new();
        for (name, text) in definitions {
            let policy = check_definition(base, name, text).map_err(|error| InvalidPolicy {
                text: format!("{name}: {}", error.text),
                reason: error.reason,
            })?;
            checked.insert(name.clone(), Definition { text: text.clone(), policy });
        }
        let mut inner = self.inner.write();
        inner.base = Arc::new(base.clone());
        inner.definitions = checked;
        inner.merged.clear();
        inner.by_access = counts_access(base);
        let expressions: Vec<(u32, String)> =
            inner.entries.iter().map(|(n, entry)| (*n, entry.expression.clone())).collect();
        for (number, expression) in expressions {
            let policy = Arc::new(inner.resolve(&expression));
            inner.by_access |= counts_access(&policy);
            if let Some(entry) = inner.entries.get_mut(&number) {
                entry.policy = policy;
            }
        }
        drop(inner);
        self.told.lock().clear();
        Ok(())
    }

    /// The volume's own policy.
    #[must_use]
    pub fn base(&self) -> Arc<Policy> {
        Arc::clone(&self.inner.read().base)
    }

    /// The named policies.
    #[must_use]
    pub fn definitions(&self) -> BTreeMap<String, Definition> {
        self.inner.read().definitions.clone()
    }

    /// Names that expressions use and nobody defines. Some of them may be of the
    /// past: an expression is kept when no file has it any more.
    #[must_use]
    pub fn undefined(&self) -> BTreeSet<String> {
        let inner = self.inner.read();
        let rules = inner.entries.values().flat_map(|entry| entry.expression.split(';'));
        let names = rules.filter_map(|rule| split_rule(rule).0).filter(|n| !n.starts_with('@'));
        names.filter(|name| !inner.definitions.contains_key(*name)).map(str::to_owned).collect()
    }

    /// Whether no rule was ever met: every content has the volume's own policy.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.inner.read().entries.is_empty()
    }

    /// Whether it matters to any policy when contents were last read.
    #[must_use]
    pub fn counts_access(&self) -> bool {
        self.inner.read().by_access
    }

    /// What a content with these numbers wants; none is the volume's own.
    /// Of several: the highest min, target and max, the widest domain, all that is
    /// preferred, what all exclude; the rest is the strictest one's by (min, target),
    /// of equal ones that with the lowest number.
    #[must_use]
    pub fn of(&self, numbers: &[u32]) -> Arc<Policy> {
        let inner = self.inner.read();
        match numbers {
            [] => return Arc::clone(&inner.base),
            [one] => {
                // A number that nothing is known of: as if nothing had been set.
                return inner.of_one(*one).unwrap_or_else(|| Arc::clone(&inner.base));
            }
            _ => {}
        }
        if let Some(merged) = inner.merged.get(numbers) {
            return Arc::clone(merged);
        }
        drop(inner);
        let mut inner = self.inner.write();
        let merged = inner.merge(numbers);
        if inner.merged.len() >= MOST_MERGED {
            inner.merged.clear();
        }
        inner.merged.insert(numbers.to_vec(), Arc::clone(&merged));
        merged
    }

    /// The expression of a number.
    #[must_use]
    pub fn expression_of(&self, number: u32) -> Option<String> {
        match number {
            0 => Some(String::new()),
            _ => self.inner.read().entries.get(&number).map(|entry| entry.expression.clone()),
        }
    }

    /// The number of an expression; a new one is kept by `keep` before anybody
    /// sees it.
    ///
    /// # Errors
    /// `TooManyPolicies`, unless another number stands for the same policy; of
    /// `keep`.
    pub fn number_of<E: From<TooManyPolicies>>(
        &self,
        expression: &str,
        keep: impl FnOnce(u32, &str) -> Result<(), E>,
    ) -> Result<u32, E> {
        if expression.is_empty() {
            return Ok(0);
        }
        let known = || self.inner.read().numbers.get(expression).copied();
        if let Some(number) = known() {
            return Ok(number);
        }
        let _one = self.adding.lock();
        if let Some(number) = known() {
            return Ok(number);
        }
        let number = {
            let inner = self.inner.read();
            let full = inner.entries.len() >= MOST_EXPRESSIONS
                || inner.bytes + expression.len() > MOST_BYTES;
            if full {
                let policy = inner.resolve(expression);
                let same = inner.entries.iter().find(|(_, entry)| *entry.policy == policy);
                return same.map(|(number, _)| *number).ok_or_else(|| TooManyPolicies.into());
            }
            inner.entries.last_key_value().map_or(1, |(last, _)| last + 1)
        };
        keep(number, expression)?;
        let mut inner = self.inner.write();
        let policy = Arc::new(inner.resolve(expression));
        inner.by_access |= counts_access(&policy);
        inner.bytes += expression.len();
        inner.numbers.insert(expression.to_owned(), number);
        inner.entries.insert(number, Entry { expression: expression.to_owned(), policy });
        Ok(number)
    }

    /// Keeps the strictest numbers of too many; true when some went.
    pub fn keep_strictest(&self, numbers: &mut Vec<u32>) -> bool {
        if numbers.len() <= MOST_NUMBERS {
            return false;
        }
        let all = self.inner.read().by_strictness(numbers);
        *numbers = all.into_iter().take(MOST_NUMBERS).map(|(number, _)| number).collect();
        numbers.sort_unstable();
        self.tell("", "a content has too many policies: the strictest are kept");
        true
    }

    /// What these rules, the root's first, make of `base` (the volume's own with a
    /// mount's options over it). What does not hold is logged once.
    #[must_use]
    pub fn resolve(&self, base: &Policy, rules: &[String]) -> Resolved {
        let inner = self.inner.read();
        let (mut policy, mut steps) = (base.clone(), Vec::with_capacity(rules.len()));
        for rule in rules {
            let (next, problem) = inner.ruled(base, &policy, rule);
            if let Some(problem) = &problem {
                self.tell(rule, problem);
            }
            policy = next.clone();
            steps.push((next, problem));
        }
        Resolved { policy, steps }
    }

    fn tell(&self, rule: &str, problem: &str) {
        let mut told = self.told.lock();
        if told.len() < MOST_TOLD && told.insert(rule.to_owned()) {
            tracing::warn!(rule, problem, "not all policies hold as they are written");
        }
    }

    /// What is inherited with a new rule over it.
    ///
    /// # Errors
    /// `InvalidPolicy`: a name that is not defined, and all that makes a policy bad.
    pub fn check_rule(
        &self,
        base: &Policy,
        inherited: &Policy,
        rule: &str,
    ) -> Result<Policy, InvalidPolicy> {
        let text = || printable(rule);
        if rule.len() > LONGEST_TEXT {
            let reason = format!("{} bytes; at most {LONGEST_TEXT}", rule.len());
            return Err(InvalidPolicy { text: "...".into(), reason });
        }
        let inner = self.inner.read();
        let (name, parts) = split_rule(rule);
        if let Some(name) = name.filter(|name| !inner.definitions.contains_key(*name)) {
            let known: Vec<&str> = inner.definitions.keys().map(String::as_str).collect();
            let known =
                if known.is_empty() { "none is".to_owned() } else { known.join(", ") + " are" };
            let reason = format!(
                "`{name}` is neither key=value (as in min=2,target=3) nor the name of a policy ({known} defined; `cairn policy define` makes one)"
            );
            return Err(InvalidPolicy { text: text(), reason });
        }
        let start = match name.and_then(|name| inner.definitions.get(name)) {
            Some(definition) => base.overridden_by(&definition.text)?,
            None => inherited.clone(),
        };
        start.overridden_by(parts).map_err(|error| InvalidPolicy { text: text(), ..error })
    }
}

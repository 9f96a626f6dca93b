use std::collections::BTreeMap;

use crate::metadata::MetadataError;
use crate::replication::{
    Domain, Level, Policy, PolicyBook, TooManyPolicies, check_definition, expression,
};

type Kept = Vec<(u32, String)>;

fn definitions(of: &[(&str, &str)]) -> BTreeMap<String, String> {
    of.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
}

fn rules(of: &[&str]) -> Vec<String> {
    of.iter().map(|rule| (*rule).to_owned()).collect()
}

impl From<TooManyPolicies> for MetadataError {
    fn from(error: TooManyPolicies) -> Self {
        Self::Checkpoint(error.to_string())
    }
}

fn number(book: &PolicyBook, kept: &mut Kept, of: &[&str]) -> u32 {
    let mut keep = |n: u32, text: &str| {
        kept.push((n, text.to_owned()));
        Ok::<_, MetadataError>(())
    };
    book.number_of(&expression("", &rules(of)), &mut keep).unwrap()
}

#[test]
fn a_name_resets_and_parts_after_it_override() {
    let book = PolicyBook::default();
    let base = Policy { target: 4, ..Policy::default() };
    book.define(&base, &definitions(&[("archive", "min=3,level=ALL")])).unwrap();
    let policy = |of: &[&str]| book.resolve(&base, &rules(of)).policy;
    assert_eq!(policy(&[]), base);
    let archive = Policy { min: 3, level: Level::All, ..base.clone() };
    assert_eq!(policy(&["wait_on=fsync", "archive"]), archive, "what came before is reset");
    assert_eq!(policy(&["archive,target=5"]).target, 5);
    assert_eq!(policy(&["archive", "target=5"]).min, 3);
    let unknown = book.resolve(&base, &rules(&["max=7", "gone,target=6"]));
    assert_eq!((unknown.policy.max, unknown.policy.target), (7, 6), "inherited, then the parts");
    assert!(unknown.steps[1].1.as_deref().unwrap().contains("`gone` is not defined"));
    let bad = book.resolve(&base, &rules(&["min=9", "max=7"]));
    assert_eq!(
        (bad.policy.min, bad.policy.max),
        (2, 7),
        "a rule that does not hold is passed over"
    );
    let error = book.check_rule(&base, &base, "gone,min=1").unwrap_err().to_string();
    assert!(error.contains("archive are defined"), "{error}");
    assert!(book.check_rule(&base, &base, "archive,target=2").is_err(), "below its min");
    assert!(check_definition(&base, "a", "archive,min=2").is_err(), "a name in a definition");
    assert!(check_definition(&base, "Archive", "min=2").is_err());
    assert!(book.define(&base, &definitions(&[("x", "min=9")])).is_err());
    assert_eq!(book.definitions().len(), 1, "what is refused changes nothing");
}

#[test]
fn a_definition_that_changes_changes_what_its_numbers_stand_for() {
    let (book, mut kept) = (PolicyBook::default(), Vec::new());
    let base = Policy::default();
    book.define(&base, &definitions(&[("archive", "min=3")])).unwrap();
    let archive = number(&book, &mut kept, &["archive"]);
    let below = number(&book, &mut kept, &[" archive ", "", "max=9, "]);
    assert_eq!(number(&book, &mut kept, &["archive"]), archive);
    assert_eq!(kept, [(1, "archive".to_owned()), (2, "archive;max=9".to_owned())]);
    assert_eq!((book.of(&[archive]).min, book.of(&[below]).max), (3, 9));
    book.define(&Policy { max: 8, ..base.clone() }, &definitions(&[("archive", "min=1")])).unwrap();
    assert_eq!((book.of(&[archive]).min, book.of(&[archive]).max), (1, 8));
    assert_eq!(book.of(&[]).max, 8);
    book.define(&base, &definitions(&[])).unwrap();
    assert_eq!(*book.of(&[archive]), base, "inherits");
    assert_eq!(book.of(&[below]).max, 9);
    assert_eq!(book.undefined().into_iter().collect::<Vec<_>>(), ["archive"]);
    let again = PolicyBook::new(kept);
    again.define(&base, &definitions(&[("archive", "min=2,target=2")])).unwrap();
    assert_eq!(again.of(&[archive]).target, 2);
    assert_eq!(number(&again, &mut Vec::new(), &["archive"]), archive);
    assert_eq!(*again.of(&[999]), base, "a number that nothing is known of");
}

#[test]
fn several_policies_merge_to_what_all_of_them_ask_for() {
    let (book, mut kept) = (PolicyBook::default(), Vec::new());
    let base: Policy = "min=1,target=3,max=4".parse().unwrap();
    book.define(&base, &definitions(&[])).unwrap();
    let strict = number(&book, &mut kept, &["min=2,target=2,level=ALL,exclude=x/y,prefer=p"]);
    let wide = number(&book, &mut kept, &["target=4,max=9,distinct=site,exclude=y/z,prefer=x"]);
    let own = number(&book, &mut kept, &[]);
    assert_eq!(own, 0);
    let merged = book.of(&[strict, wide]);
    let wanted: Policy =
        "min=2,target=4,max=9,level=ALL,distinct=site,exclude=y,prefer=p/x".parse().unwrap();
    assert_eq!(*merged, wanted);
    let with_own = book.of(&[0, strict]);
    assert_eq!((with_own.min, with_own.target, with_own.max), (2, 3, 4));
    assert!(with_own.exclude.is_empty(), "the volume's own excludes nothing");
    assert_eq!(with_own.distinct, Domain::Device);
    let equal = number(&book, &mut kept, &["min=2,target=2,level=SINGLE"]);
    assert_eq!(book.of(&[strict, equal]).level, Level::All, "of equals the lowest number");
    let many: Vec<u32> = (1..=40)
        .map(|n| number(&book, &mut kept, &[&format!("target=40,max=40,min={n}")]))
        .collect();
    let mut cut = many.clone();
    assert!(book.keep_strictest(&mut cut) && cut == many[24..], "{cut:?}");
    assert!(!book.keep_strictest(&mut cut));
}

#[test]
fn a_mounts_options_hold_below_names_and_long_expressions_are_cut() {
    let book = PolicyBook::default();
    let base = Policy::default();
    book.define(&base, &definitions(&[("archive", "min=3")])).unwrap();
    let text = expression("target=4", &rules(&["archive"]));
    assert_eq!(text, "@target=4;archive");
    let keep = |_: u32, _: &str| Ok::<_, MetadataError>(());
    let policy = book.of(&[book.number_of(&text, keep).unwrap()]);
    assert_eq!((policy.min, policy.target), (3, 4));
    let many: Vec<String> = (0..2000).map(|n| format!("min=1,target={}", n % 5 + 1)).collect();
    let cut = expression("", &many);
    assert!(cut.len() <= 8192 && cut.ends_with("target=5"), "{}", cut.len());
    let mut named = many.clone();
    named.push("archive,max=7".into());
    assert_eq!(expression("", &named), "archive,max=7");
    // Beyond the bound only what is a policy already has a number.
    let mut last = Ok(0);
    for n in 0..20_000u32 {
        last = book.number_of(&expression("", &rules(&[&format!("prefer=b{n}")])), keep);
        if last.is_err() {
            break;
        }
    }
    assert!(last.is_err(), "{last:?}");
    assert!(book.number_of("prefer=b1;prefer=b2", keep).is_ok());
}

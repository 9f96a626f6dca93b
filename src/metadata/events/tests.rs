use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::metadata::{EventRecord, MemoryEngine, Namespace};
use crate::types::Timestamp;

fn at(seconds: i64) -> Timestamp {
    Timestamp { seconds, nanoseconds: 5000 }
}

fn tree(engine: &Arc<MemoryEngine>) -> Arc<Namespace> {
    Arc::new(Namespace::open(Arc::clone(engine) as _, at(0)).unwrap())
}

fn log_in(dir: &Path) -> (Arc<Namespace>, EventLog) {
    let namespace = tree(&Arc::default());
    let log = EventLog::open(dir, Arc::clone(&namespace)).unwrap();
    (namespace, log)
}

/// Of many kinds, backends and subjects, all by the number.
fn event(n: u64) -> EventRecord {
    let kind = EventKind::ALL[n as usize % EventKind::ALL.len()];
    let event = EventRecord::new(at(n.cast_signed()), kind, format!("bafy{:03}", n % 7));
    event.detail(format!("no. {n}")).backend(["", "b", "c"][n as usize % 3])
}

fn append(namespace: &Namespace, numbers: std::ops::Range<u64>) {
    let events: Vec<EventRecord> = numbers.map(event).collect();
    namespace.append_events(&events).unwrap();
}

fn numbers(page: &EventPage) -> Vec<u64> {
    page.events.iter().map(|numbered| numbered.number).collect()
}

#[test]
fn every_kind_and_severity_has_a_stable_name_of_its_own() {
    let names: std::collections::BTreeSet<&str> =
        EventKind::ALL.iter().map(|kind| kind.as_str()).collect();
    assert_eq!(names.len(), EventKind::ALL.len());
    for kind in EventKind::ALL {
        assert_eq!(EventKind::from_name(kind.as_str()), Some(*kind));
        assert!(kind.as_str().bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{kind:?}");
    }
    for severity in Severity::ALL {
        assert_eq!(Severity::from_name(severity.as_str()), Some(severity));
        assert_eq!(serde_json::to_value(severity).unwrap(), severity.as_str());
    }
}

#[test]
fn sealed_events_are_read_as_they_were_and_their_rows_are_gone() {
    let dir = tempfile::tempdir().unwrap();
    let (namespace, log) = log_in(dir.path());
    append(&namespace, 0..100);
    let query = EventQuery { limit: 1000, ..EventQuery::default() };
    let before = log.query(&query).unwrap();
    assert_eq!((before.events.len(), before.more, before.next), (100, false, 100));
    assert!(log.seal().unwrap());
    assert!(namespace.event_numbers().is_empty());
    assert_eq!(log.query(&query).unwrap(), before);
    assert!(!log.seal().unwrap(), "nothing is left to be sealed");
    append(&namespace, 100..103);
    assert_eq!(numbers(&log.query(&query).unwrap()), (1..=103).collect::<Vec<u64>>());
}

#[test]
fn a_crash_between_a_file_and_its_rows_repeats_nothing_and_no_number_comes_twice() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Arc::default();
    append(&tree(&engine), 0..50);
    {
        // The file is made over another tree with the same rows: theirs stay.
        let other = tree(&Arc::default());
        append(&other, 0..50);
        let log = EventLog::open(dir.path(), other).unwrap();
        log.seal().unwrap();
    }
    fs::write(dir.path().join("events-x.parquet.tmp"), b"half").unwrap();
    let namespace = tree(&engine);
    let log = EventLog::open(dir.path(), Arc::clone(&namespace)).unwrap();
    assert!(namespace.event_numbers().is_empty());
    append(&namespace, 50..51);
    let all = log.query(&EventQuery { limit: 99, ..EventQuery::default() }).unwrap();
    assert_eq!(numbers(&all), (1..=51).collect::<Vec<u64>>());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "the unfinished file is gone");
    // A tree that lost its rows altogether goes on behind the files.
    let namespace = tree(&Arc::default());
    EventLog::open(dir.path(), Arc::clone(&namespace)).unwrap();
    assert_eq!(namespace.event_numbers(), 51..51);
}

#[test]
fn a_file_is_sealed_when_there_are_many_events_or_they_are_a_day_old() {
    let dir = tempfile::tempdir().unwrap();
    let (namespace, log) = log_in(dir.path());
    assert!(!log.seal_if_due(at(0)).unwrap());
    append(&namespace, 0..10);
    assert!(!log.seal_if_due(at(86_400)).unwrap());
    assert!(log.seal_if_due(at(86_401)).unwrap());
    append(&namespace, 0..8191);
    assert!(!log.seal_if_due(at(0)).unwrap());
    append(&namespace, 0..1);
    assert!(log.seal_if_due(at(0)).unwrap());
    assert_eq!(
        log.files().iter().map(|f| (f.first, f.last)).collect::<Vec<_>>(),
        [(1, 10), (11, 8202)]
    );
}

#[test]
fn files_go_by_age_and_by_size_and_the_newest_stays() {
    let dir = tempfile::tempdir().unwrap();
    let (namespace, log) = log_in(dir.path());
    for file in 0..10 {
        append(&namespace, file * 100..file * 100 + 100);
        log.seal().unwrap();
    }
    let day = 86_400;
    let keep = |days, bytes| Retention { days, bytes };
    let first = |log: &EventLog| log.files()[0].first;
    assert_eq!(log.retain(keep(1, u64::MAX), at(day)).unwrap(), 0);
    assert_eq!(log.retain(keep(1, u64::MAX), at(day + 300)).unwrap(), 3);
    assert_eq!(first(&log), 301);
    let all: u64 = log.files().iter().map(|file| file.bytes).sum();
    assert_eq!(log.retain(keep(1, all - 1), at(0)).unwrap(), 1);
    assert_eq!(log.retain(keep(0, 0), at(i64::MAX / 2_000_000_000)).unwrap(), 5);
    assert_eq!(first(&log), 901);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    let page = log.query(&EventQuery { limit: 5, after: Some(0), ..EventQuery::default() });
    assert_eq!(numbers(&page.unwrap()), [901, 902, 903, 904, 905]);
}

#[test]
fn a_damaged_file_hides_no_other_and_is_told_by_a_check() {
    let dir = tempfile::tempdir().unwrap();
    let (namespace, log) = log_in(dir.path());
    for file in 0..3 {
        append(&namespace, file * 10..file * 10 + 10);
        log.seal().unwrap();
    }
    let path = dir.path().join(log.files()[1].name());
    check_event_file(&path).unwrap();
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    assert!(check_event_file(&path).unwrap_err().to_string().contains("is damaged"));
    let all = log.query(&EventQuery { limit: 99, ..EventQuery::default() }).unwrap();
    assert_eq!(numbers(&all), (1..=10).chain(21..=30).collect::<Vec<u64>>());
    fs::write(dir.path().join(format!("events-{:020}-{:020}.parquet", 7, 9)), &bytes).unwrap();
    let other = dir.path().join(format!("events-{:020}-{:020}.parquet", 7, 9));
    assert!(check_event_file(&other).unwrap_err().to_string().contains("than its name says"));
}

#[test]
fn a_kind_and_a_severity_of_a_newer_version_are_shown() {
    let dir = tempfile::tempdir().unwrap();
    let (namespace, log) = log_in(dir.path());
    let strange = EventRecord { kind: "copy_teleported".into(), ..event(1) };
    namespace.append_event(&strange).unwrap();
    let query =
        EventQuery { kinds: vec!["copy_teleported".into()], limit: 9, ..Default::default() };
    let before = log.query(&query).unwrap();
    log.seal().unwrap();
    assert_eq!((log.query(&query).unwrap(), before.events.len()), (before, 1));
}

/// What a page is by definition: all events filtered, then cut.
fn by_hand(all: &[NumberedEvent], query: &EventQuery) -> Vec<u64> {
    let wanted: Vec<u64> = all
        .iter()
        .filter(|e| query.after.is_none_or(|after| e.number > after) && query.wants(&e.event))
        .map(|e| e.number)
        .collect();
    let cut = query.limit.min(wanted.len());
    match query.after {
        Some(_) => wanted[..cut].to_vec(),
        None => wanted[wanted.len() - cut..].to_vec(),
    }
}

fn some_query() -> impl Strategy<Value = EventQuery> {
    let kind = prop::sample::select(EventKind::ALL).prop_map(|kind| kind.as_str().to_owned());
    let severity = prop::sample::select(Severity::ALL.to_vec());
    let parts = (
        prop::option::of(0..320u64),
        prop::option::of(0..320i64),
        prop::option::of(0..320i64),
        prop::collection::vec(kind, 0..3),
        prop::option::of(severity),
        prop::option::of(prop::sample::select(vec!["b", "c", "none"])),
        prop::option::of(prop::sample::select(vec!["bafy", "bafy003", "x"])),
        1..40usize,
    );
    parts.prop_map(|(after, since, until, kinds, severity, backend, subject, limit)| EventQuery {
        after,
        since: since.map(at),
        until: until.map(at),
        kinds,
        severity,
        backend: backend.map(str::to_owned),
        subject: subject.map(str::to_owned),
        limit,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn pages_are_what_a_scan_of_all_events_would_give(
        seals in prop::collection::vec(1..60u64, 1..6),
        queries in prop::collection::vec(some_query(), 8),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let (namespace, log) = log_in(dir.path());
        let mut next = 0;
        for (index, count) in seals.iter().enumerate() {
            append(&namespace, next..next + count);
            next += count;
            if index + 1 < seals.len() {
                log.seal().unwrap();
            }
        }
        let all: Vec<NumberedEvent> =
            (0..next).map(|n| NumberedEvent { number: n + 1, event: event(n) }).collect();
        for query in &queries {
            let page = log.query(query).unwrap();
            prop_assert_eq!(numbers(&page), by_hand(&all, query), "{:?}", query);
            // Page after page, a cursor passes over nothing.
            let mut query = EventQuery { after: Some(query.after.unwrap_or(0)), ..query.clone() };
            let wanted = by_hand(&all, &EventQuery { limit: usize::MAX, ..query.clone() });
            let mut seen = Vec::new();
            loop {
                let page = log.query(&query).unwrap();
                seen.extend(numbers(&page));
                query.after = Some(page.next);
                if !page.more {
                    break;
                }
            }
            prop_assert_eq!(seen, wanted);
            prop_assert!(query.after >= Some(next), "the cursor is at the end");
        }
    }
}

#[test]
fn the_first_page_of_a_million_events_reads_one_file() {
    let dir = tempfile::tempdir().unwrap();
    let (namespace, log) = log_in(dir.path());
    for file in 0..128u64 {
        append(&namespace, file * 8192..file * 8192 + 8192);
        log.seal().unwrap();
    }
    let files = log.files();
    assert_eq!((files.len(), files[127].last), (128, 1 << 20));
    // All but the last are unreadable: a page that needs them would be short.
    for file in &files[..127] {
        fs::write(dir.path().join(file.name()), b"").unwrap();
    }
    let start = Instant::now();
    let page = log.query(&EventQuery { limit: 100, ..EventQuery::default() }).unwrap();
    eprintln!("a page of 100 of a million events: {:?}", start.elapsed());
    assert_eq!((page.events.len(), page.events[99].number, page.more), (100, 1 << 20, true));
    let after = Some((1 << 20) - 50);
    let page = log.query(&EventQuery { limit: 100, after, ..EventQuery::default() }).unwrap();
    assert_eq!((page.events.len(), page.next), (50, 1 << 20));
    assert!(start.elapsed() < Duration::from_secs(20));
}

#[test]
fn an_event_file_reads_as_it_was_written() {
    let name = "events-00000000000000000001-00000000000000000003.parquet";
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden/events-1");
    let record = |number: u64, kind: &str, severity, backend: &str| NumberedEvent {
        number,
        event: EventRecord {
            at: Timestamp { seconds: 1_700_000_000, nanoseconds: 7_000 },
            kind: kind.into(),
            subject: "bafy".into(),
            detail: "leaf 3".into(),
            severity,
            backend: backend.into(),
            count: number * 100,
        },
    };
    let events = [
        record(1, "copy_placed", Severity::Info, "b-2.eu"),
        record(2, "policy_set", Severity::Notice, ""),
        record(3, "of_a_newer_version", Severity::Alarm, "b-2.eu"),
    ];
    // Made once, when the format is new; never replaced.
    if std::env::var_os("CAIRN_WRITE_GOLDEN").is_some() && !dir.exists() {
        fs::create_dir_all(&dir).unwrap();
        file::write(&dir, &events).unwrap();
    }
    assert_eq!(file::read(&dir.join(name), &EventQuery::default()).unwrap(), events);
    check_event_file(&dir.join(name)).unwrap();
    let written = tempfile::tempdir().unwrap();
    file::write(written.path(), &events).unwrap();
    assert_eq!(
        fs::read(written.path().join(name)).unwrap(),
        fs::read(dir.join(name)).unwrap(),
        "it is written in another form"
    );
}

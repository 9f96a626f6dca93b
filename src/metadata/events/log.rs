use std::collections::HashMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::file::{self, Summary};
use super::query::Page;
use super::{EventFile, EventPage, EventQuery, NumberedEvent};
use crate::metadata::{MetadataError, Namespace};
use crate::types::Timestamp;

/// Rows that make a sealing due: a base has all rows again, and a file costs each
/// backend an object and a name.
const SEAL_ROWS: u64 = 8192;
/// Rows of one file at most.
const FILE_ROWS: usize = 65_536;
/// Rows older than this are sealed, however few.
const SEAL_AGE: Duration = Duration::from_hours(24);

/// How long events are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Days after the event.
    pub days: u64,
    /// Bytes of sealed files; the oldest go first.
    pub bytes: u64,
}

/// The events of a volume: rows of the tree, and sealed files. Locks: `files` alone,
/// never held over a file; `sealing` over all of a sealing.
pub struct EventLog {
    dir: PathBuf,
    namespace: Arc<Namespace>,
    files: Mutex<Files>,
    sealing: Mutex<()>,
}

#[derive(Default)]
struct Files {
    /// The oldest first.
    all: Vec<EventFile>,
    /// Of those that were asked about.
    summaries: HashMap<u64, Arc<Summary>>,
}

impl EventLog {
    /// Over a folder, which is made when it is missing. What a crash between a file
    /// and its rows left is put in order.
    ///
    /// # Errors
    /// `Io`, `Storage`.
    pub fn open(dir: &Path, namespace: Arc<Namespace>) -> Result<Self, MetadataError> {
        fs::create_dir_all(dir)?;
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|ending| ending == "tmp") {
                fs::remove_file(path)?;
            }
        }
        let all: Vec<EventFile> = file::list(dir)?.into_iter().map(|(file, _)| file).collect();
        if let Some(last) = all.last() {
            namespace.events_sealed(last.last.saturating_add(1))?;
        }
        let files = Mutex::new(Files { all, summaries: HashMap::new() });
        Ok(Self { dir: dir.to_owned(), namespace, files, sealing: Mutex::new(()) })
    }

    /// The folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The sealed files, the oldest first.
    #[must_use]
    pub fn files(&self) -> Vec<EventFile> {
        self.files.lock().all.clone()
    }

    /// Seals when there is reason to.
    ///
    /// # Errors
    /// As [`EventLog::seal`].
    pub fn seal_if_due(&self, now: Timestamp) -> Result<bool, MetadataError> {
        let rows = self.namespace.event_numbers();
        let mut due = self.namespace.event_rows() >= SEAL_ROWS;
        if !due && !rows.is_empty() {
            let mut oldest = None;
            self.namespace.visit_events(rows.start, &mut |_, event| {
                oldest = Some(event.at);
                ControlFlow::Break(())
            })?;
            due = oldest.is_some_and(|at| is_older(at, now, SEAL_AGE));
        }
        if due { self.seal() } else { Ok(false) }
    }

    /// Moves rows into a file; false when there are none. Those that come meanwhile
    /// stay for the next one.
    ///
    /// # Errors
    /// `Io`, `Checkpoint`, `Storage`; then the rows are still there.
    pub fn seal(&self) -> Result<bool, MetadataError> {
        let _one = self.sealing.lock();
        let mut events = Vec::new();
        self.namespace.visit_events(
            self.namespace.event_numbers().start,
            &mut |number, event| {
                events.push(NumberedEvent { number, event });
                if events.len() < FILE_ROWS {
                    ControlFlow::Continue(())
                } else {
                    ControlFlow::Break(())
                }
            },
        )?;
        let Some(sealed) = file::write(&self.dir, &events)? else { return Ok(false) };
        let end = sealed.last.saturating_add(1);
        self.files.lock().all.push(sealed);
        self.namespace.events_sealed(end)?;
        Ok(true)
    }

    /// Removes the files whose time is over, and the oldest of too many bytes; how
    /// many. The newest file stays.
    ///
    /// # Errors
    /// `Io`.
    pub fn retain(&self, keep: Retention, now: Timestamp) -> Result<usize, MetadataError> {
        let age =
            Duration::from_hours(24).saturating_mul(u32::try_from(keep.days).unwrap_or(u32::MAX));
        let files = self.files();
        let mut bytes: u64 = files.iter().map(|file| file.bytes).sum();
        let mut removed = 0;
        for file in files.iter().take(files.len().saturating_sub(1)) {
            // One that cannot be read goes by the size of what is there.
            let old = self.summary(file).is_ok_and(|found| is_older(found.latest, now, age));
            if !old && bytes <= keep.bytes {
                break;
            }
            match fs::remove_file(self.dir.join(file.name())) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error.into());
                }
                _ => {}
            }
            bytes -= file.bytes;
            removed += 1;
            let mut files = self.files.lock();
            files.all.retain(|kept| kept.first != file.first);
            files.summaries.remove(&file.first);
        }
        Ok(removed)
    }

    fn summary(&self, file: &EventFile) -> Result<Arc<Summary>, MetadataError> {
        if let Some(known) = self.files.lock().summaries.get(&file.first) {
            return Ok(Arc::clone(known));
        }
        let summary = Arc::new(file::summary(&self.dir.join(file.name()))?);
        self.files.lock().summaries.insert(file.first, Arc::clone(&summary));
        Ok(summary)
    }

    /// A page of events. Reads the rows that are not sealed and as many files as the
    /// page takes; of a filtered question those that may have what is asked for. A
    /// file that is damaged is passed over, with a warning in the log.
    ///
    /// # Errors
    /// `Storage`, `Io`.
    pub fn query(&self, query: &EventQuery) -> Result<EventPage, MetadataError> {
        // The rows first: one that is sealed meanwhile is then in a file, too.
        let (rows, next) = self.rows(query)?;
        let files = self.files();
        let sealed = files.last().map(|file| file.last);
        let rows: Vec<_> =
            rows.into_iter().filter(|row| sealed.is_none_or(|last| row.number > last)).collect();
        let mut page = Page::new(query);
        let wanted = files.iter().filter(|file| query.after.is_none_or(|after| file.last > after));
        if query.after.is_some() {
            for file in wanted {
                if page.more {
                    break;
                }
                page.add(self.of_file(file, query)?);
            }
            page.add(rows);
        } else {
            page.add(rows);
            for file in wanted.rev() {
                if page.more {
                    break;
                }
                if page.is_full() {
                    page.more = true;
                    break;
                }
                page.add(self.of_file(file, query)?);
            }
        }
        let end = next.checked_sub(1).max(query.after).unwrap_or(0);
        let more = page.more;
        let events: Vec<NumberedEvent> = page.events.into();
        let next = match events.last() {
            Some(last) if more && query.after.is_some() => last.number,
            _ => end,
        };
        Ok(EventPage { events, next, more })
    }

    fn of_file(
        &self,
        file: &EventFile,
        query: &EventQuery,
    ) -> Result<Vec<NumberedEvent>, MetadataError> {
        let path = self.dir.join(file.name());
        let found = self.summary(file).and_then(|summary| {
            if summary.may_have(query) { file::read(&path, query) } else { Ok(Vec::new()) }
        });
        match found {
            Ok(events) => Ok(events),
            // Its time was over just now.
            Err(MetadataError::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => {
                Ok(Vec::new())
            }
            Err(error @ (MetadataError::Checkpoint(_) | MetadataError::TooNew { .. })) => {
                tracing::warn!(%error, "an event file is passed over");
                Ok(Vec::new())
            }
            Err(error) => Err(error),
        }
    }

    /// Rows that are asked for, at most one more than the page takes, and the number
    /// after the last row.
    fn rows(&self, query: &EventQuery) -> Result<(Vec<NumberedEvent>, u64), MetadataError> {
        let numbers = self.namespace.event_numbers();
        let most = query.limit() + 1;
        let mut found = std::collections::VecDeque::new();
        let (start, forward) = match query.after {
            Some(after) => (after.saturating_add(1), true),
            None => (numbers.start, false),
        };
        let mut visited = numbers.end;
        self.namespace.visit_events(start, &mut |number, event| {
            visited = visited.max(number.saturating_add(1));
            if !query.wants(&event) {
                return ControlFlow::Continue(());
            }
            if found.len() == most {
                if forward {
                    return ControlFlow::Break(());
                }
                found.pop_front();
            }
            found.push_back(NumberedEvent { number, event });
            ControlFlow::Continue(())
        })?;
        Ok((found.into(), visited))
    }
}

fn is_older(at: Timestamp, now: Timestamp, age: Duration) -> bool {
    let nanos = i64::try_from(age.as_nanos()).unwrap_or(i64::MAX);
    now.as_nanos().saturating_sub(at.as_nanos()) > nanos
}

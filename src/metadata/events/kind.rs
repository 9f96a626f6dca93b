use serde::{Deserialize, Serialize};

/// How much an event matters.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// The ordinary life of the volume.
    #[default]
    Info = 0,
    /// Somebody decided something, or something was made good.
    Notice = 1,
    /// It heals itself, if nothing else happens.
    Warning = 2,
    /// Data is at risk, or will be: somebody has to act.
    Alarm = 3,
}

impl Severity {
    /// All, the least first.
    pub const ALL: [Self; 4] = [Self::Info, Self::Notice, Self::Warning, Self::Alarm];

    /// As in JSON and Parquet.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Notice => "notice",
            Self::Warning => "warning",
            Self::Alarm => "alarm",
        }
    }

    /// The reverse of [`Severity::as_str`].
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|severity| severity.as_str() == name)
    }
}

/// Declares each kind once: variant, stable name, severity, meaning.
macro_rules! kinds {
    ($($variant:ident, $name:literal, $severity:ident, $help:literal;)*) => {
        /// What an event tells. Names are stored: none is ever changed. Files may
        /// have kinds of newer versions; they are shown as they are.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum EventKind {
            $(#[doc = $help] $variant,)*
        }

        impl EventKind {
            /// All that this version knows.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// As in JSON and Parquet.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// How much it matters.
            #[must_use]
            pub fn severity(self) -> Severity {
                match self { $(Self::$variant => Severity::$severity,)* }
            }

            /// What it means, for people.
            #[must_use]
            pub fn help(self) -> &'static str {
                match self { $(Self::$variant => $help,)* }
            }
        }
    };
}

kinds! {
    Mount, "mount", Info, "the volume was mounted";
    Unmount, "unmount", Info, "the volume was unmounted";
    Recover, "recover", Notice, "the volume was made anew from a backend";
    PolicySet, "policy_set", Notice, "a policy was set";
    PolicyRemoved, "policy_removed", Notice, "a policy was removed";
    QuotaSet, "quota_set", Notice, "limits of a directory were set";
    QuotaRemoved, "quota_removed", Notice, "limits of a directory were removed";
    CopyPlaced, "copy_placed", Info, "a place said that it has a content";
    CopyVerified, "copy_verified", Info, "a copy was read back and is good";
    CopyCorrupt, "copy_corrupt", Warning, "a copy has wrong bytes";
    CopyLost, "copy_lost", Warning, "a copy is not there any more";
    CopyRepaired, "copy_repaired", Notice, "a copy that was bad or gone is good again";
    BlockRepaired, "block_repaired", Notice, "a reader found a block with wrong bytes; good ones took its place";
    CopyReleased, "copy_released", Info, "a copy was given up";
    ContentAtRisk, "content_at_risk", Alarm, "no good copy of a content is known";
    PinRemoved, "pin_removed", Notice, "a content is not wanted any more";
    QueuePaused, "queue_paused", Notice, "the queue, or a backend's part of it, is held";
    QueueResumed, "queue_resumed", Notice, "the queue, or a backend's part of it, goes on";
    QueueCancelled, "queue_cancelled", Notice, "what a content lacks is not made for a day";
    RoundFailed, "round_failed", Warning, "a content could not be sent; it is tried again";
    BlockCollected, "block_collected", Info, "a collection removed blocks";
    CollectionAborted, "collection_aborted", Warning, "a collection ended early, and removed nothing more";
    BackendAdded, "backend_added", Notice, "a backend was added";
    BackendRemoved, "backend_removed", Notice, "a backend was removed";
    BackendDegraded, "backend_degraded", Warning, "a backend answers with errors";
    BackendDown, "backend_down", Warning, "a backend does not answer";
    BackendBack, "backend_back", Notice, "a backend takes copies again";
    BackendFull, "backend_full", Warning, "a backend has no room";
    BackendReadOnly, "backend_read_only", Warning, "a backend takes no writes";
    BackendDraining, "backend_draining", Notice, "copies leave a backend";
    BackendDrained, "backend_drained", Notice, "a backend holds nothing that is needed";
    LocalRole, "local_role", Notice, "the local store became a cache, or a replica";
    MoveStarted, "move_started", Notice, "copies are to move from places to others";
    MoveFinished, "move_finished", Notice, "no copy is left to be moved";
    HealStarted, "heal_started", Notice, "lost copies are made anew elsewhere";
    HealFinished, "heal_finished", Notice, "lost copies were made anew";
    ScrubFinished, "scrub_finished", Info, "copies were read back, in the last hour";
    ScrubMismatch, "scrub_mismatch", Warning, "a scrub found a bad copy, or none";
    AlarmRaised, "alarm_raised", Alarm, "somebody has to act";
    AlarmCleared, "alarm_cleared", Notice, "the cause of an alarm is gone";
    HookFailed, "hook_failed", Warning, "an alarm could not be told";
    EventsDropped, "events_dropped", Warning, "more happened than could be recorded";
}

impl EventKind {
    /// The reverse of [`EventKind::as_str`]; `None` for a kind of a newer version.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.as_str() == name)
    }
}

//! Arithmetic of times that cannot overflow.

use std::time::Duration;

use crate::types::Timestamp;

/// Later by so much.
pub fn plus(time: Timestamp, by: Duration) -> Timestamp {
    let by = i64::try_from(by.as_nanos()).unwrap_or(i64::MAX);
    Timestamp::from_nanos(time.as_nanos().saturating_add(by))
}

/// From `then` to `now`; zero when the clock went back.
pub fn since(then: Timestamp, now: Timestamp) -> Duration {
    let nanos = now.as_nanos().saturating_sub(then.as_nanos());
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(0))
}

/// How far two times lie apart, whichever came first: the clock may have been set.
pub fn apart(a: Timestamp, b: Timestamp) -> Duration {
    since(a, b).max(since(b, a))
}

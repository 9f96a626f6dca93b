//! What was used of a place in the running month. Pure.

use serde::{Deserialize, Serialize};

use crate::backends::{Micros, Price};
use crate::types::Timestamp;

const DAY: i64 = 86_400;
/// At the very begin of a month little is known: what was used is taken for that of a
/// day at least.
const LEAST: i64 = DAY;

/// Requests and bytes read in one month (UTC).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spent {
    /// Months since the year 0.
    pub month: i64,
    /// Bytes that were read.
    pub bytes_out: u64,
    /// Requests.
    pub requests: u64,
}

/// Days from 1970-01-01 to the first of a month, by the proleptic Gregorian calendar.
fn first_day(month: i64) -> i64 {
    // Years that begin in March: the day that is put in is the last.
    let (year, of_year) = ((month - 2).div_euclid(12), (month - 2).rem_euclid(12));
    let days = (153 * of_year + 2) / 5;
    year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + days - 719_468
}

/// The month of a time.
#[must_use]
pub fn month_of(at: Timestamp) -> i64 {
    let day = at.seconds.div_euclid(DAY);
    // By their mean length; the calendar tells the rest.
    let mut month = 1970 * 12 + day.saturating_mul(10_000) / 304_369;
    while first_day(month + 1) <= day {
        month += 1;
    }
    while first_day(month) > day {
        month -= 1;
    }
    month
}

impl Spent {
    /// A new month begins at zero; so does another one, when the clock was set.
    pub fn turn(&mut self, now: Timestamp) {
        let month = month_of(now);
        if month != self.month {
            *self = Self { month, ..Self::default() };
        }
    }

    /// What it costs.
    #[must_use]
    pub fn cost(&self, price: &Price) -> Micros {
        price.of_use(self.bytes_out, self.requests)
    }

    /// What it will have come to at the end of the month, if it goes on so.
    #[must_use]
    pub fn forecast(&self, price: &Price, now: Timestamp) -> Micros {
        if month_of(now) != self.month {
            return Micros(0);
        }
        let start = first_day(self.month) * DAY;
        let length = (first_day(self.month + 1) * DAY - start).max(1);
        let over = (now.seconds - start).clamp(LEAST, length);
        let whole = u128::from(self.cost(price).0) * u128::from(length.unsigned_abs())
            / u128::from(over.unsigned_abs());
        Micros(u64::try_from(whole).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        let time = humantime::parse_rfc3339(text).unwrap();
        let seconds = time.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        Timestamp { seconds: seconds.cast_signed(), nanoseconds: 0 }
    }

    #[test]
    fn months_are_those_of_the_calendar() {
        for year in 1970..2200i64 {
            for month in 1..=12i64 {
                let first = at(&format!("{year}-{month:02}-01T00:00:00Z"));
                let number = year * 12 + month - 1;
                assert_eq!(month_of(first), number, "{year}-{month}");
                assert_eq!(first_day(number) * DAY, first.seconds);
                let before = Timestamp { seconds: first.seconds - 1, nanoseconds: 0 };
                assert_eq!(month_of(before), number - 1);
            }
        }
    }

    #[test]
    fn a_month_begins_at_zero_and_its_end_is_guessed_by_what_went_before() {
        let price = Price { gb_out: Micros(90_000), request: Micros(5), ..Price::default() };
        let mut spent = Spent::default();
        let middle = at("2026-11-16T00:00:00Z");
        spent.turn(middle);
        (spent.bytes_out, spent.requests) = (2_000_000_000, 1000);
        assert_eq!(spent.cost(&price), Micros(185_000));
        assert_eq!(spent.forecast(&price, middle), Micros(370_000));
        // On the first day it is not multiplied by more than the days of the month.
        assert_eq!(spent.forecast(&price, at("2026-11-01T00:00:01Z")), Micros(30 * 185_000));
        let last = at("2026-11-30T23:59:59Z");
        spent.turn(last);
        assert_eq!(spent.requests, 1000);
        let next = at("2026-12-01T00:00:00Z");
        assert_eq!(spent.forecast(&price, next), Micros(0));
        spent.turn(next);
        assert_eq!((spent.requests, spent.bytes_out), (0, 0));
    }
}

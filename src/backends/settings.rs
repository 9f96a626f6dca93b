//! What a volume knows of a backend beyond how to open it: parameters of its URL.

use std::borrow::Cow;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use url::Url;

use super::{BackendError, ErrorKind};
use crate::types::ByteSize;

/// Bytes at a backend that make an alarm unless `alarm=` says otherwise.
const ALARM: u64 = 100_000_000_000;
/// The place in the order of `strategy=priority` of one without `priority=`.
const PRIORITY: u32 = 100;
/// `gather=` is at most this: what is held back has one copy less.
const GATHER_MAX: Duration = Duration::from_mins(1);

/// An amount of money in millionths of whatever the user counts in.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Micros(pub u64);

/// What a backend costs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Price {
    /// A month of 10^9 bytes kept.
    pub gb_month: Micros,
    /// 10^9 bytes read.
    pub gb_out: Micros,
    /// A request.
    pub request: Micros,
}

/// Settings of a backend's place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlaceSettings {
    /// `tier=`: the tier of policies that it belongs to.
    pub tier: Option<String>,
    /// `host=`: the machine (default: this one for directories, else the store's).
    pub host: Option<String>,
    /// `site=`: building or region.
    pub site: Option<String>,
    /// `provider=`: company.
    pub provider: Option<String>,
    /// `priority=`: the lowest comes first.
    pub priority: u32,
    /// `price_gb_month=`, `price_gb_out=`, `price_request=`.
    pub price: Price,
    /// `alarm=`: bytes there that make an alarm; nothing stops.
    pub alarm_bytes: u64,
    /// `stop=`: with so many bytes there it takes no new copies.
    pub stop_bytes: Option<u64>,
    /// `bandwidth=`: bytes a second that are sent there at most; reads go at once.
    pub bandwidth: Option<u64>,
    /// `requests=`: calls a second there at most.
    pub requests: Option<u32>,
    /// `parallel=`: batches that are sent there at the same time.
    pub parallel: Option<usize>,
    /// `gather=`: for how long small contents that nobody waits for are held back where they
    /// share an object. `None`: as its kind has it.
    pub gather: Option<Duration>,
    /// `collect=0`: nothing is collected there; others put blocks there, too.
    pub collect: bool,
    /// `scrub=audit`: how its copies are looked at.
    pub scrub: Scrub,
}

/// What every kind of backend is told when it is opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PlaceOptions {
    /// Counts as this failure domain instead of the place's own (device, bucket).
    pub domain: Option<String>,
    /// At most this many bytes of blocks.
    pub capacity: Option<u64>,
    /// Refuse writes.
    pub read_only: bool,
}

impl PlaceOptions {
    /// The failure domain: that of the URL, else the place's own.
    pub(super) fn domain_or(&self, own: &str) -> String {
        self.domain.as_ref().map_or_else(|| own.to_owned(), |name| format!("domain:{name}"))
    }

    /// # Errors
    /// `ReadOnly` when its URL says so.
    pub(super) fn refuse_writes(&self, place: &str) -> Result<(), BackendError> {
        if !self.read_only {
            return Ok(());
        }
        let message = format!("{place} is read-only: it is set so (`read_only=1` in its URL)");
        Err(BackendError::new(ErrorKind::ReadOnly, message))
    }
}

/// How copies are looked at in the course of time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scrub {
    /// Every byte is read back.
    #[default]
    Full,
    /// The presence of every block, the nodes, and some leaves chosen at random: for
    /// places where reading costs.
    Audit,
}

impl Default for PlaceSettings {
    fn default() -> Self {
        Self {
            tier: None,
            host: None,
            site: None,
            provider: None,
            priority: PRIORITY,
            price: Price::default(),
            alarm_bytes: ALARM,
            stop_bytes: None,
            bandwidth: None,
            requests: None,
            parallel: None,
            gather: None,
            collect: true,
            scrub: Scrub::Full,
        }
    }
}

impl Price {
    /// A month of so many bytes kept.
    #[must_use]
    pub fn of_month(&self, bytes: u64) -> Micros {
        let micros = u128::from(self.gb_month.0) * u128::from(bytes) / 1_000_000_000;
        Micros(u64::try_from(micros).unwrap_or(u64::MAX))
    }

    /// So many bytes read, and so many requests.
    #[must_use]
    pub fn of_use(&self, bytes_out: u64, requests: u64) -> Micros {
        let out = u128::from(self.gb_out.0) * u128::from(bytes_out) / 1_000_000_000;
        let asked = u128::from(self.request.0) * u128::from(requests);
        Micros(u64::try_from(out.saturating_add(asked)).unwrap_or(u64::MAX))
    }
}

impl Micros {
    /// Reads a decimal such as `0.023`; `None` when it is none, or has more than
    /// six places behind the point.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (whole, part) = text.split_once('.').unwrap_or((text, ""));
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || part.len() > 6 || (text.contains('.') && !digits(part)) {
            return None;
        }
        let part: u64 = format!("{part:0<6}").parse().ok()?;
        Some(Self(whole.parse::<u64>().ok()?.checked_mul(1_000_000)?.checked_add(part)?))
    }
}

impl std::fmt::Display for Micros {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0 / 1_000_000)?;
        let part = format!("{:06}", self.0 % 1_000_000);
        let part = part.trim_end_matches('0');
        if part.is_empty() { Ok(()) } else { write!(f, ".{part}") }
    }
}

/// A name of letters, digits and `-_.:/`.
pub(super) fn is_name(value: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:/".contains(c);
    !value.is_empty() && value.len() <= 64 && value.chars().all(plain)
}

fn number<T: std::str::FromStr + PartialEq + Default>(key: &str, value: &str) -> Result<T, String> {
    match value.parse() {
        Ok(number) if number != T::default() => Ok(number),
        _ => Err(format!("{key}={value}: write a number above 0")),
    }
}

impl PlaceSettings {
    /// Takes a parameter of a URL; `None` when it is not one of these.
    pub(super) fn set(&mut self, key: &str, value: &str) -> Option<Result<(), String>> {
        let name = |to: &mut Option<String>| {
            if !is_name(value) || value.contains(['/', ':']) && key == "tier" {
                return Err(format!("{key}= is a name of letters, digits and -_."));
            }
            *to = Some(value.to_owned());
            Ok(())
        };
        let money = |to: &mut Micros| {
            *to = Micros::parse(value)
                .ok_or_else(|| format!("{key}={value}: write an amount such as 0.023"))?;
            Ok(())
        };
        let bytes = || {
            let size = value.parse::<ByteSize>().map_err(|error| error.to_string())?.0;
            if size == 0 { Err(format!("{key}=0 lets nothing through")) } else { Ok(size) }
        };
        Some(match key {
            "collect" => match value {
                "0" | "1" => {
                    self.collect = value == "1";
                    Ok(())
                }
                _ => Err(format!("collect={value}: write 1 or 0")),
            },
            "scrub" => match value {
                "full" | "audit" => {
                    self.scrub = if value == "full" { Scrub::Full } else { Scrub::Audit };
                    Ok(())
                }
                _ => Err(format!("scrub={value}: write full or audit")),
            },
            "tier" => name(&mut self.tier),
            "host" => name(&mut self.host),
            "site" => name(&mut self.site),
            "provider" => name(&mut self.provider),
            "price_gb_month" => money(&mut self.price.gb_month),
            "price_gb_out" => money(&mut self.price.gb_out),
            "price_request" => money(&mut self.price.request),
            "alarm" => bytes().map(|size| self.alarm_bytes = size),
            "stop" => bytes().map(|size| self.stop_bytes = Some(size)),
            "bandwidth" => bytes().map(|size| self.bandwidth = Some(size)),
            "priority" => number(key, value).map(|n| self.priority = n),
            "gather" => match humantime::parse_duration(if value == "0" { "0s" } else { value }) {
                Ok(time) if time <= GATHER_MAX => {
                    self.gather = Some(time);
                    Ok(())
                }
                _ => Err(format!("gather={value}: write a time such as 500ms, at most 1m")),
            },
            "requests" => number(key, value).map(|n| self.requests = Some(n)),
            "parallel" => match number::<usize>(key, value) {
                Ok(n) if n <= 64 => {
                    self.parallel = Some(n.max(2));
                    Ok(())
                }
                Ok(_) => Err(format!("parallel={value}: write a number from 2 to 64")),
                Err(error) => Err(error),
            },
            _ => return None,
        })
    }

    /// Of a place at another machine: neither host nor site nor provider are this one's,
    /// unless the user says what they are.
    #[must_use]
    pub(super) fn at(mut self, host: Option<String>) -> Self {
        let Some(host) = host else { return self };
        for name in [&mut self.host, &mut self.site, &mut self.provider] {
            name.get_or_insert_with(|| host.clone());
        }
        self
    }

    /// Of a URL that was checked when it came in: what does not parse is passed
    /// over.
    pub(super) fn of(url: &Url) -> Self {
        let mut settings = Self::default();
        for (key, value) in url.query_pairs() {
            let (key, value): (Cow<'_, str>, Cow<'_, str>) = (key, value);
            if let Some(Err(reason)) = settings.set(&key, &value) {
                tracing::warn!(%reason, "a setting of a backend is passed over");
            }
        }
        settings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn money_is_read_and_written_without_rounding() {
        for (text, micros) in [("0", 0), ("0.023", 23_000), ("12", 12_000_000), ("1.5", 1_500_000)]
        {
            assert_eq!(Micros::parse(text), Some(Micros(micros)));
            assert_eq!(Micros(micros).to_string(), text);
        }
        for bad in ["", ".", "1.", ".5", "-1", "1e3", "0.1234567", "99999999999999999999"] {
            assert_eq!(Micros::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn settings_are_taken_from_a_url_and_wrong_ones_say_what_to_write() {
        let url =
            "file:///x?tier=cloud&site=zurich&price_gb_month=0.023&bandwidth=10MiB&parallel=1";
        let settings = PlaceSettings::of(&url.parse().unwrap());
        assert_eq!(settings.tier.as_deref(), Some("cloud"));
        assert_eq!(settings.price.gb_month, Micros(23_000));
        assert_eq!((settings.bandwidth, settings.parallel), (Some(10 << 20), Some(2)));
        assert_eq!((settings.alarm_bytes, settings.stop_bytes), (100_000_000_000, None));
        let stops = PlaceSettings::of(&"file:///x?stop=2GB&alarm=1GB".parse().unwrap());
        assert_eq!((stops.alarm_bytes, stops.stop_bytes), (1_000_000_000, Some(2_000_000_000)));
        for (key, value) in [
            ("tier", "a/b"),
            ("alarm", "0"),
            ("priority", "x"),
            ("price_request", "free"),
            ("scrub", "x"),
        ] {
            let error = PlaceSettings::default().set(key, value).unwrap().unwrap_err();
            assert!(error.starts_with(key), "{error}");
        }
        assert!(PlaceSettings::default().set("colour", "red").is_none());
    }
}

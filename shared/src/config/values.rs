//! Durations and sizes as people write them. A bare number is refused: nobody remembers which unit it was.

use std::fmt;
use std::time::Duration;

use serde::de::{Error, Unexpected, Visitor};
use serde::{Deserialize, Deserializer};

/// A duration written like `30s`, `5m`, `2h 30m`, `7days`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HumanDuration(Duration);

impl HumanDuration {
    /// The duration.
    #[must_use]
    pub const fn get(self) -> Duration {
        self.0
    }
}

impl From<Duration> for HumanDuration {
    fn from(duration: Duration) -> Self {
        Self(duration)
    }
}

/// A size written like `64KiB`, `1GiB`, `10MB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HumanSize(pub u64);

impl HumanSize {
    /// The size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

/// Whether `address` is the absolute address of something that is asked by HTTP without TLS.
pub(super) fn is_http(address: &str) -> bool {
    let parsed = address.parse::<http::Uri>();
    parsed.is_ok_and(|uri| uri.scheme_str() == Some("http") && uri.host().is_some_and(|host| !host.is_empty()))
}

struct Text<T>(&'static str, fn(&str) -> Option<T>);

impl<T> Visitor<'_> for Text<T> {
    type Value = T;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        (self.1)(text).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
    }
}

impl<'de> Deserialize<'de> for HumanDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Text("a duration with its unit, for example \"30s\" or \"5m\"", |text| {
            humantime::parse_duration(text).ok().filter(|_| text.contains(|c: char| c.is_ascii_alphabetic())).map(Self)
        }))
    }
}

impl<'de> Deserialize<'de> for HumanSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Text("a size with its unit, for example \"64KiB\" or \"1GiB\"", |text| {
            let has_unit = text.contains(|c: char| c.is_ascii_alphabetic());
            text.parse::<bytesize::ByteSize>().ok().filter(|_| has_unit).map(|size| Self(size.as_u64()))
        }))
    }
}

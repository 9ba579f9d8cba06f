//! What stands in the path, in the query and in the headers of requests.

use std::str::FromStr;

use axum::extract::{FromRequestParts, Path, Query};
use http::request::Parts;
use http::{HeaderMap, HeaderName};

use crate::error::{ApiError, Result};

/// Seconds that a request may wait for a run's end.
pub(crate) const WAIT_MAX: u64 = 60;
const IDEMPOTENCY_KEY_MAX: usize = 255;
const PAGE_DEFAULT: u32 = 20;
const PAGE_MAX: u32 = 100;

/// The one id in the path. What is no id of ours is not there: 404, like an id that nobody has.
pub(crate) struct Id<T>(pub(crate) T);

impl<S: Send + Sync, T: FromStr> FromRequestParts<S> for Id<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self> {
        let text = Path::<String>::from_request_parts(parts, state).await.map_err(|_| ApiError::NotFound)?;
        text.parse().map(Self).map_err(|_| ApiError::NotFound)
    }
}

/// The parameters of the query. A parameter that no route knows is ignored.
pub(crate) struct Params(Vec<(String, String)>);

impl<S: Send + Sync> FromRequestParts<S> for Params {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self> {
        if parts.uri.query().is_none_or(str::is_empty) {
            return Ok(Self(Vec::new()));
        }
        let read = Query::<Vec<(String, String)>>::from_request_parts(parts, state).await;
        read.map(|Query(pairs)| Self(pairs)).map_err(|_| ApiError::invalid("query", "is not a list of name=value pairs"))
    }
}

impl Params {
    /// A parameter that may be there once.
    fn one(&self, name: &str) -> Result<Option<&str>> {
        let mut values = self.0.iter().filter(|(key, _)| key == name).map(|(_, value)| value.as_str());
        match (values.next(), values.next()) {
            (value, None) => Ok(value),
            (_, Some(_)) => Err(ApiError::invalid(name, "must be there at most once")),
        }
    }

    /// `?wait=N`, seconds.
    pub(crate) fn wait(&self) -> Result<Option<u64>> {
        let Some(text) = self.one("wait")? else { return Ok(None) };
        let seconds = whole_number(text).filter(|seconds| *seconds <= WAIT_MAX);
        seconds.map(Some).ok_or_else(|| ApiError::invalid("wait", format!("must be a whole number of seconds from 0 to {WAIT_MAX}")))
    }

    /// `?limit=N` of a list.
    pub(crate) fn limit(&self) -> Result<u32> {
        let Some(text) = self.one("limit")? else { return Ok(PAGE_DEFAULT) };
        let limit = whole_number(text).and_then(|limit| u32::try_from(limit).ok()).filter(|limit| (1..=PAGE_MAX).contains(limit));
        limit.ok_or_else(|| ApiError::invalid("limit", format!("must be a whole number from 1 to {PAGE_MAX}")))
    }

    /// `?after=…` of a list: a cursor, opaque here.
    pub(crate) fn cursor(&self) -> Result<Option<&str>> {
        self.one("after")
    }

    /// `?after=N` of an event stream.
    pub(crate) fn after(&self) -> Result<Option<u64>> {
        let after = self.one("after").map_err(|_| ApiError::header("after", "must be there at most once"))?;
        after.map(|text| sequence_number(text, "after")).transpose()
    }
}

/// Digits and nothing else: Rust's own parser also takes a plus sign.
pub(crate) fn whole_number(text: &str) -> Option<u64> {
    (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok()).flatten()
}

/// A run's sequence number, as `name` gives it. No run counts further than the stores can.
pub(crate) fn sequence_number(text: &str, name: &'static str) -> Result<u64> {
    let number = whole_number(text).filter(|number| i64::try_from(*number).is_ok());
    number.ok_or_else(|| ApiError::header(name, "must be a sequence number"))
}

/// A header that may be there once, as text.
pub(crate) fn one_header<'a>(headers: &'a HeaderMap, name: &HeaderName, shown: &'static str) -> Result<Option<&'a str>> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => value.to_str().map(Some).map_err(|_| ApiError::header(shown, "must be visible ASCII characters")),
        (Some(_), Some(_)) => Err(ApiError::header(shown, "must be there at most once")),
    }
}

/// `Idempotency-Key`.
pub(crate) fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>> {
    const NAME: HeaderName = HeaderName::from_static("idempotency-key");
    let Some(key) = one_header(headers, &NAME, "Idempotency-Key")? else { return Ok(None) };
    if !(1..=IDEMPOTENCY_KEY_MAX).contains(&key.len()) || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(ApiError::header("Idempotency-Key", format!("must be 1 to {IDEMPOTENCY_KEY_MAX} visible ASCII characters")));
    }
    Ok(Some(key.to_owned()))
}

/// `wait=N` of `Prefer` (RFC 7240), at most [`WAIT_MAX`]. A preference that is not understood is ignored, and of two the
/// first counts.
pub(crate) fn preferred_wait(headers: &HeaderMap) -> Option<u64> {
    let values = headers.get_all("prefer").iter().filter_map(|value| value.to_str().ok());
    values.flat_map(preferences).find(|(name, _)| name.eq_ignore_ascii_case("wait")).and_then(|(_, value)| {
        let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| value.parse().unwrap_or(WAIT_MAX).min(WAIT_MAX))
    })
}

/// Name and value of each preference; commas and semicolons in quotes separate nothing.
fn preferences(header: &str) -> Vec<(&str, &str)> {
    fn split(text: &str, separator: u8) -> Vec<&str> {
        let (mut parts, mut start, mut quoted, mut escaped) = (Vec::new(), 0, false, false);
        for (at, byte) in text.bytes().enumerate() {
            match byte {
                _ if escaped => escaped = false,
                b'\\' if quoted => escaped = true,
                b'"' => quoted = !quoted,
                _ if byte == separator && !quoted => {
                    parts.push(&text[start..at]);
                    start = at + 1;
                }
                _ => {}
            }
        }
        parts.push(&text[start..]);
        parts
    }
    let preference = |part| {
        let essence = *split(part, b';').first()?;
        let (name, value) = essence.split_once('=').unwrap_or((essence, ""));
        Some((name.trim(), value.trim().trim_matches('"')))
    };
    split(header, b',').into_iter().filter_map(preference).collect()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn wait(headers: &[&'static str]) -> Option<u64> {
        preferred_wait(&headers.iter().map(|value| (HeaderName::from_static("prefer"), HeaderValue::from_static(value))).collect())
    }

    #[test]
    fn wait_is_found_among_other_preferences() {
        assert_eq!(wait(&["wait=5"]), Some(5));
        assert_eq!(wait(&["respond-async, wait=10; foo=bar"]), Some(10));
        assert_eq!(wait(&["return=minimal", "handling=lenient , WAIT = 7"]), Some(7));
        assert_eq!(wait(&["wait=\"9\""]), Some(9));
        assert_eq!(wait(&["foo=\"a, wait=3\", wait=4"]), Some(4));
        assert_eq!(wait(&["wait=1, wait=2"]), Some(1));
        assert_eq!(wait(&["wait=61"]), Some(60));
        assert_eq!(wait(&["wait=99999999999999999999999"]), Some(60));
    }

    #[test]
    fn what_is_not_understood_is_ignored() {
        for odd in ["", "wait", "wait=", "wait=-1", "wait=1.5", "wait=+5", "wait=5s", "respond-async", "waiting=5", "\"wait=5", "wait=\\"] {
            assert_eq!(wait(&[odd]), None, "{odd}");
        }
        assert_eq!(wait(&[]), None);
    }

    #[test]
    fn whole_numbers_are_digits() {
        assert_eq!(whole_number("0"), Some(0));
        for odd in ["", "+1", "-1", " 1", "1.0", "0x1", "18446744073709551616"] {
            assert_eq!(whole_number(odd), None, "{odd}");
        }
    }
}

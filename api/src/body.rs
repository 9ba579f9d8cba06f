//! Reading a JSON body that may be too large, too slow, compressed, or something else.

use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use http_body_util::{BodyExt, LengthLimitError, Limited};

use crate::error::{ApiError, Result};

/// A whole body must have come by then, however steadily it drips.
const BODY_TIMEOUT: Duration = Duration::from_secs(15);

/// The whole body, if the headers promise JSON and it is at most `limit` bytes. Never reads further than that.
pub(crate) async fn json_body(headers: &HeaderMap, body: Body, limit: usize) -> Result<Bytes> {
    check_type(headers)?;
    let promised = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if promised.is_some_and(|bytes| bytes > limit as u64) {
        return Err(ApiError::BodyTooLarge { limit });
    }
    let read = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, limit).collect());
    match read.await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(ApiError::BodyTooLarge { limit }),
        Ok(Err(_)) => Err(ApiError::BrokenBody("the body broke off or is framed wrongly")),
        Err(_) => Err(ApiError::BodyTooSlow),
    }
}

fn check_type(headers: &HeaderMap) -> Result<()> {
    let plain = |value: &http::HeaderValue| value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"identity");
    if !headers.get_all(CONTENT_ENCODING).iter().all(plain) {
        return Err(ApiError::UnsupportedMediaType("send the body without Content-Encoding"));
    }
    let wanted = ApiError::UnsupportedMediaType("send application/json, in UTF-8");
    let mut types = headers.get_all(CONTENT_TYPE).iter();
    match (types.next().and_then(|value| value.to_str().ok()), types.next()) {
        (Some(value), None) if is_json(value) => Ok(()),
        _ => Err(wanted),
    }
}

/// `application/json`, with no parameter but `charset=utf-8`.
fn is_json(value: &str) -> bool {
    let mut parts = value.split(';').map(str::trim);
    parts.next().is_some_and(|essence| essence.eq_ignore_ascii_case("application/json"))
        && parts.filter(|part| !part.is_empty()).all(|parameter| {
            parameter.split_once('=').is_some_and(|(name, value)| {
                name.trim().eq_ignore_ascii_case("charset") && value.trim().trim_matches('"').eq_ignore_ascii_case("utf-8")
            })
        })
}

#[cfg(test)]
mod tests {
    use super::is_json;

    #[test]
    fn json_in_utf_8_and_nothing_else() {
        for good in
            ["application/json", "Application/JSON", "application/json; charset=utf-8", "application/json;charset=\"UTF-8\"", "application/json;"]
        {
            assert!(is_json(good), "{good}");
        }
        for bad in
            ["", "text/json", "application/jsonl", "application/json; charset=latin1", "application/json; boundary=x", "application/json, text/plain"]
        {
            assert!(!is_json(bad), "{bad}");
        }
    }
}

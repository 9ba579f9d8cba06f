//! Around every route: whom the request is addressed to, panics, headers of every answer, metrics.

use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::FutureExt;
use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, HOST, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS};
use http::uri::Authority;
use http::{HeaderName, HeaderValue, Method, Version};
use quayside_shared::telemetry::names;

use crate::App;
use crate::error::{ApiError, Result};

/// On every answer that has no better one: an answer of the API is never a page.
const DEFAULTS: [(HeaderName, HeaderValue); 5] = [
    (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
    (CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'")),
    (CACHE_CONTROL, HeaderValue::from_static("no-store")),
];

/// The middleware.
pub(crate) async fn edge(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let method = method_word(request.method());
    let route = request.extensions().get::<MatchedPath>().cloned();
    let mut response = match check_host(&request, app.deps.loopback_hosts_only) {
        Ok(()) => match AssertUnwindSafe(next.run(request)).catch_unwind().await {
            Ok(response) => response,
            Err(_) => ApiError::Internal("a handler panicked").into_response(),
        },
        Err(error) => error.into_response(),
    };
    for (name, value) in DEFAULTS {
        response.headers_mut().entry(name).or_insert(value);
    }
    // Paths that no route knows are one label: a scan must not make a metric each.
    let route = route.map_or(metrics::SharedString::const_str("none"), |route| route.as_str().to_owned().into());
    let status = response.status().as_str().to_owned();
    metrics::counter!(names::HTTP_REQUESTS, "route" => route.clone(), "method" => method, "status" => status).increment(1);
    metrics::histogram!(names::HTTP_SECONDS, "route" => route).record(begun.elapsed().as_secs_f64());
    response
}

fn method_word(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

/// One host, the same everywhere in the request, and on loopback one of its names: a foreign page that points its own
/// name at 127.0.0.1 (DNS rebinding) sends that name.
fn check_host(request: &Request, loopback_only: bool) -> Result<()> {
    let mut hosts = request.headers().get_all(HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (None, _) => None,
        (Some(host), None) => Some(authority(host)?),
        (Some(_), Some(_)) => return Err(ApiError::header("Host", "must be there once")),
    };
    let target = request.uri().authority();
    if host.is_none() && target.is_none() && request.version() == Version::HTTP_11 {
        return Err(ApiError::header("Host", "must be there"));
    }
    if let (Some(host), Some(target)) = (&host, target)
        && !host.as_str().eq_ignore_ascii_case(target.as_str())
    {
        return Err(ApiError::header("Host", "must be the host of the request's target"));
    }
    if loopback_only && !host.as_ref().or(target).is_some_and(is_loopback) {
        return Err(ApiError::header("Host", "must be localhost or a loopback address: this server trusts X-User-Id and answers nobody else"));
    }
    Ok(())
}

fn authority(host: &HeaderValue) -> Result<Authority> {
    let parsed = Authority::try_from(host.as_bytes()).ok().filter(|authority| !authority.as_str().contains('@'));
    parsed.ok_or_else(|| ApiError::header("Host", "must be a host name with an optional port"))
}

fn is_loopback(authority: &Authority) -> bool {
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

/// Answers for paths and methods that no route knows.
pub(crate) async fn not_found() -> ApiError {
    ApiError::NotFound
}

/// See [`not_found`].
pub(crate) async fn method_not_allowed() -> ApiError {
    ApiError::MethodNotAllowed
}

/// Headers that pages of allowed origins may read and send.
pub(crate) fn cors(origins: &[String]) -> Option<tower_http::cors::CorsLayer> {
    use tower_http::cors::{AllowOrigin, CorsLayer};
    if origins.is_empty() {
        return None;
    }
    let names = |list: &[&'static str]| list.iter().map(|name| HeaderName::from_static(name)).collect::<Vec<_>>();
    let origins = origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok());
    let layer = CorsLayer::new()
        .allow_origin(AllowOrigin::list(origins))
        .allow_methods([Method::GET, Method::POST, Method::DELETE])
        .allow_headers(names(&["authorization", "content-type", "idempotency-key", "last-event-id", "prefer", "x-user-id"]))
        .expose_headers(names(&["location", "retry-after", "idempotency-replayed", "preference-applied"]))
        .max_age(std::time::Duration::from_secs(600));
    Some(layer)
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn check(headers: &[(&'static str, &'static str)], target: &str) -> bool {
        let mut request = http::Request::builder().uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        check_host(&request.body(Body::empty()).unwrap(), true).is_ok()
    }

    #[test]
    fn only_this_machines_names_are_answered() {
        for good in ["localhost", "LOCALHOST:8080", "127.0.0.1:8080", "127.8.9.1", "[::1]:8080", "[::ffff:127.0.0.1]"] {
            assert!(check(&[("host", good)], "/"), "{good}");
        }
        for bad in [
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "10.0.0.1",
            "0.0.0.0",
            "[::]",
            "",
            "evil@localhost",
            "localhost/",
            "a b",
        ] {
            assert!(!check(&[("host", bad)], "/"), "{bad}");
        }
        assert!(!check(&[], "/"));
        assert!(!check(&[("host", "localhost"), ("host", "localhost")], "/"));
        assert!(!check(&[("host", "localhost")], "http://evil.example/"));
        assert!(check(&[("host", "localhost")], "http://localhost/"));
    }
}

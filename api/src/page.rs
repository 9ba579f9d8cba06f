//! The page and its files, compiled in, and the interactive documentation. Nothing is fetched from anywhere else.

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Redirect, Response};
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH, VARY};
use http::{HeaderMap, HeaderValue};
use include_dir::{Dir, File, include_dir};
use quayside_shared::config::Config;
use sha2::{Digest, Sha256};
use utoipa::openapi::OpenApi;
use utoipa_swagger_ui::Config as SwaggerConfig;

use crate::App;
use crate::error::{ApiError, NOT_MODIFIED, Result};

mod settings;

use settings::{PAGE_POLICY, PageSettings};

static WEB: Dir<'static> = include_dir!("$CARGO_MANIFEST_DIR/web");

/// The page's file that the configuration may replace.
const SETTINGS: &str = "config.js";
/// The documentation writes style elements of its own.
const DOCS_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; \
     font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// A file that never changes while the process lives.
struct Asset {
    body: Bytes,
    content_type: &'static str,
    etag: HeaderValue,
    policy: HeaderValue,
}

impl Asset {
    fn new(body: Bytes, content_type: &'static str, policy: HeaderValue) -> Self {
        let digest: String = Sha256::digest(&body).iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        let etag = HeaderValue::from_str(&format!("\"{digest}\"")).unwrap_or(HeaderValue::from_static("\"0\""));
        Self { body, content_type, etag, policy }
    }

    fn answer(&self, request: &HeaderMap) -> Response {
        let mut headers = HeaderMap::with_capacity(4);
        headers.insert(ETAG, self.etag.clone());
        // Asked again each time, so that an upgrade shows at once; unchanged files cost a 304.
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        headers.insert(CONTENT_SECURITY_POLICY, self.policy.clone());
        if self.is_known(request) {
            return (NOT_MODIFIED, headers).into_response();
        }
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        (headers, self.body.clone()).into_response()
    }

    fn is_known(&self, request: &HeaderMap) -> bool {
        let known = request.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
        known.flat_map(|value| value.split(',')).any(|tag| {
            let tag = tag.trim();
            tag == "*" || tag.strip_prefix("W/").unwrap_or(tag).as_bytes() == self.etag.as_bytes()
        })
    }
}

/// All files that are served.
pub(crate) struct Pages {
    web: HashMap<&'static str, Asset>,
    document: Asset,
    docs: Arc<SwaggerConfig<'static>>,
}

impl Pages {
    /// The embedded page as this server's configuration wants it, and `document` as `/openapi.json`.
    pub(crate) fn new(document: &OpenApi, config: &Config) -> Self {
        let settings = PageSettings::new(config);
        let strict = HeaderValue::from_static(PAGE_POLICY);
        // Cannot fail: it holds origins of visible characters.
        let policy = settings.as_ref().and_then(|settings| HeaderValue::from_str(&settings.policy()).ok()).unwrap_or_else(|| strict.clone());
        let mut web = HashMap::new();
        add_files(&WEB, &policy, &mut web);
        if let Some(settings) = settings {
            web.insert(SETTINGS, Asset::new(settings.module(), "text/javascript; charset=utf-8", policy));
        }
        // Cannot fail: the document's keys are texts.
        let document = serde_json::to_vec(document).unwrap_or_default();
        let docs = SwaggerConfig::new(["/openapi.json"]).validator_url("none").persist_authorization(true).try_it_out_enabled(true);
        Self { web, document: Asset::new(document.into(), "application/json", strict), docs: Arc::new(docs) }
    }

    /// The page itself.
    pub(crate) fn index(&self, request: &HeaderMap) -> Response {
        match self.web.get("index.html") {
            Some(index) => ([(VARY, "Accept")], index.answer(request)).into_response(),
            None => ApiError::NotFound.into_response(),
        }
    }
}

fn add_files(folder: &'static Dir<'static>, policy: &HeaderValue, files: &mut HashMap<&'static str, Asset>) {
    for file in folder.files() {
        if let (Some(path), Some(content_type)) = (file.path().to_str(), content_type(file)) {
            files.insert(path, Asset::new(Bytes::from_static(file.contents()), content_type, policy.clone()));
        }
    }
    for inner in folder.dirs() {
        add_files(inner, policy, files);
    }
}

/// What the browser shall take the file for; a file of another kind is for developers and not served.
fn content_type(file: &File<'_>) -> Option<&'static str> {
    Some(match file.path().extension()?.to_str()? {
        "html" => "text/html; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "js" => "text/javascript; charset=utf-8",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "ico" => "image/x-icon",
        "woff2" => "font/woff2",
        "webmanifest" => "application/manifest+json",
        _ => return None,
    })
}

/// Files of the page.
pub(crate) async fn web(State(app): State<Arc<App>>, Path(path): Path<String>, headers: HeaderMap) -> Result<Response> {
    app.page.web.get(path.as_str()).map(|file| file.answer(&headers)).ok_or(ApiError::NotFound)
}

/// `/openapi.json`
pub(crate) async fn document(State(app): State<Arc<App>>, headers: HeaderMap) -> Response {
    app.page.document.answer(&headers)
}

/// `/docs`: its files are named relative to `/docs/`.
pub(crate) async fn docs_moved() -> Redirect {
    Redirect::permanent("/docs/")
}

/// `/docs/`
pub(crate) async fn docs_index(State(app): State<Arc<App>>) -> Result<Response> {
    docs_file(&app, "index.html")
}

/// Files of the documentation.
pub(crate) async fn docs(State(app): State<Arc<App>>, Path(path): Path<String>) -> Result<Response> {
    docs_file(&app, &path)
}

fn docs_file(app: &App, path: &str) -> Result<Response> {
    let found = utoipa_swagger_ui::serve(path, Arc::clone(&app.page.docs)).map_err(|_| ApiError::Internal("the documentation cannot be written"))?;
    let file = found.ok_or(ApiError::NotFound)?;
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_str(&file.content_type).map_err(|_| ApiError::Internal("a content type cannot be written"))?);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(DOCS_POLICY));
    if file.gzpipped {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    Ok((headers, file.bytes.into_owned()).into_response())
}

/// Whether `Accept` would rather have HTML than JSON. `*/*` alone is an API client: curl sends it.
pub(crate) fn prefers_html(headers: &HeaderMap) -> bool {
    let accept: Vec<&str> = headers.get_all("accept").iter().filter_map(|value| value.to_str().ok()).collect();
    let ranges: Vec<(&str, f32)> = accept.iter().flat_map(|value| value.split(',')).map(media_range).collect();
    // The most specific range counts (RFC 9110).
    let quality =
        |names: &[&str]| names.iter().find_map(|name| ranges.iter().find(|(range, _)| range.eq_ignore_ascii_case(name))).map_or(0.0, |(_, q)| *q);
    let html = quality(&["text/html", "text/*"]);
    html > 0.0 && html > quality(&["application/json", "application/*", "*/*"])
}

fn media_range(text: &str) -> (&str, f32) {
    let mut parts = text.split(';').map(str::trim);
    let range = parts.next().unwrap_or_default();
    let weight = parts.find_map(|parameter| parameter.strip_prefix("q=").or_else(|| parameter.strip_prefix("Q=")));
    (range, weight.map_or(1.0, |q| q.parse().unwrap_or(0.0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn html(accept: &'static str) -> bool {
        prefers_html(&HeaderMap::from_iter([(http::header::ACCEPT, HeaderValue::from_static(accept))]))
    }

    #[test]
    fn browsers_get_the_page_and_programs_get_json() {
        assert!(html("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"));
        assert!(html("text/html"));
        assert!(html("text/html;q=0.9, application/json;q=0.1"));
        for json in
            ["*/*", "", "application/json", "application/json, text/html;q=0.5", "text/html;q=0", "text/html;q=0.4, */*;q=0.6", "text/html, */*"]
        {
            assert!(!html(json), "{json}");
        }
        assert!(!prefers_html(&HeaderMap::new()));
    }

    #[test]
    fn the_page_is_there_and_names_only_files_that_are() {
        let mut files = HashMap::new();
        add_files(&WEB, &HeaderValue::from_static(PAGE_POLICY), &mut files);
        let index = std::str::from_utf8(&files["index.html"].body).unwrap();
        let named: Vec<&str> = index.split('"').filter_map(|text| text.strip_prefix("/web/")).collect();
        assert!(!named.is_empty());
        for file in named {
            assert!(files.contains_key(file), "{file}");
        }
        assert!(!files.contains_key("package.json"));
        assert!(files.contains_key(SETTINGS));
    }

    #[test]
    fn without_sign_in_every_file_has_the_strict_policy_and_stays_as_it_is() {
        let config = Config::load(None, []).unwrap();
        let pages = Pages::new(&crate::openapi(), &config);
        for (path, asset) in &pages.web {
            assert_eq!(asset.policy, PAGE_POLICY, "{path}");
            assert_eq!(asset.body, WEB.get_file(path).unwrap().contents(), "{path}");
        }
        assert_eq!(
            PAGE_POLICY,
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; font-src 'self'; \
             base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        );
    }

    #[test]
    fn with_sign_in_the_page_learns_where_and_may_reach_it() {
        let mut config = Config::load(None, []).unwrap();
        config.api.auth = quayside_shared::config::Auth::Tokens;
        config.google.firebase_api_key = Some("key".to_owned());
        let pages = Pages::new(&crate::openapi(), &config);
        assert!(std::str::from_utf8(&pages.web[SETTINGS].body).unwrap().contains("\"apiKey\":\"key\""));
        assert!(pages.web["index.html"].policy.to_str().unwrap().contains("https://www.gstatic.com"));
        assert_eq!(pages.document.policy, PAGE_POLICY);
    }
}

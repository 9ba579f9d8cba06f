//! Who is calling: the one place where a request becomes a user.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use http::request::Parts;
use quayside_shared::config::{Auth, Config, Secret};
use quayside_shared::ids::UserId;
use sha2::{Digest, Sha256};
use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{Components, OpenApi};

use crate::error::{ApiError, Result};
use crate::tokens::{KeySource, Tokens};
use crate::{App, Check};

/// The header that is believed in the `header` mode.
pub(crate) const USER_HEADER: &str = "x-user-id";

/// The users' two security schemes of the document.
const USER_SCHEME: &str = "user";
const TOKEN_SCHEME: &str = "token";
/// And the operators'. Their routes say so themselves.
const ADMIN_SCHEME: &str = "admin";

/// The same words whatever is wrong with a token: they help its owner, not who forges one. The log has the cause.
const REFUSED: &str = "this token is not accepted; sign in again and send a fresh Firebase ID token as `Authorization: Bearer <token>`";

const ADMIN_KEY: &str = "this needs the admin key, as `Authorization: Bearer <key>`";
const NO_ADMIN_KEY: &str = "this server has no admin key; set api.admin_key and start it again";

/// The key of the operators, kept as a digest: comparing digests tells nobody how much of a guess was right.
pub(crate) struct AdminKey([u8; 32]);

impl AdminKey {
    pub(crate) fn new(key: &Secret) -> Self {
        Self(Sha256::digest(key.expose().as_bytes()).into())
    }

    fn is(&self, sent: &str) -> bool {
        self.0 == <[u8; 32]>::from(Sha256::digest(sent.as_bytes()))
    }
}

/// The user on whose behalf the request is answered.
pub(crate) struct Caller(pub(crate) UserId);

impl FromRequestParts<Arc<App>> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self> {
        app.callers.identify(&parts.headers).await.map(Self)
    }
}

/// How callers are known.
pub(crate) enum Callers {
    /// `X-User-Id` is believed.
    Header,
    /// What a bearer token says is verified, and `X-User-Id` is nothing.
    Tokens(Arc<Tokens>),
}

impl Callers {
    pub(crate) fn new(config: &Config, keys: KeySource) -> Self {
        match config.api.auth {
            Auth::Header => Self::Header,
            Auth::Tokens => Self::Tokens(Arc::new(Tokens::new(&config.google, keys))),
        }
    }

    /// What `/readyz` asks besides everything else.
    pub(crate) fn check(&self) -> Option<Check> {
        let Self::Tokens(tokens) = self else { return None };
        let tokens = Arc::clone(tokens);
        let check = move || {
            let tokens = Arc::clone(&tokens);
            futures::FutureExt::boxed(async move { tokens.ready().await.map(|()| None) })
        };
        Some(Check { name: "tokens", check: Arc::new(check) })
    }

    /// Whether the admin key came with the request.
    ///
    /// # Errors
    /// 401 when there is none, or nobody we know sent another one; 403 when a user did.
    pub(crate) async fn admit_admin(&self, headers: &HeaderMap, key: Option<&AdminKey>) -> Result<()> {
        if !headers.contains_key(AUTHORIZATION) {
            return Err(ApiError::BadToken(ADMIN_KEY));
        }
        if let (Some(key), Ok(sent)) = (key, bearer(headers))
            && key.is(sent)
        {
            return Ok(());
        }
        self.identify(headers).await.map_err(|_| ApiError::BadToken(ADMIN_KEY))?;
        Err(ApiError::Forbidden(if key.is_some() { ADMIN_KEY } else { NO_ADMIN_KEY }))
    }

    async fn identify(&self, headers: &HeaderMap) -> Result<UserId> {
        match self {
            Self::Header => named(headers),
            Self::Tokens(tokens) => {
                let identity = tokens.identify(bearer(headers)?).await;
                identity.map(|identity| identity.user).map_err(|cause| {
                    tracing::debug!(%cause, "a token was refused");
                    ApiError::BadToken(REFUSED)
                })
            }
        }
    }
}

/// Exactly one header: of two, a proxy in front may have checked the other one.
fn named(headers: &HeaderMap) -> Result<UserId> {
    let mut values = headers.get_all(USER_HEADER).iter();
    match (values.next(), values.next()) {
        (None, _) => Err(ApiError::Unauthenticated("say who you are in the header X-User-Id")),
        (Some(value), None) => {
            let user = value.to_str().ok().and_then(|text| text.parse().ok());
            user.ok_or(ApiError::Unauthenticated("X-User-Id must be 1 to 128 visible ASCII characters"))
        }
        (Some(_), Some(_)) => Err(ApiError::Unauthenticated("X-User-Id must be there once")),
    }
}

/// The text behind `Bearer`; for two headers see [`named`].
fn bearer(headers: &HeaderMap) -> Result<&str> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    match (values.next(), values.next()) {
        (None, _) => Err(ApiError::BadToken("sign in and send a Firebase ID token as `Authorization: Bearer <token>`")),
        (Some(value), None) => {
            let credentials = value.to_str().ok().and_then(|text| text.split_once(' '));
            let token = credentials.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, token)| token.trim_matches(' '));
            token.filter(|token| !token.is_empty()).ok_or(ApiError::BadToken("Authorization must be `Bearer <Firebase ID token>`"))
        }
        (Some(_), Some(_)) => Err(ApiError::BadToken("Authorization must be there once")),
    }
}

/// Tells in the document how callers are known. Routes of a user say `user`; `auth` makes of it what one server asks
/// for, and `None` either.
pub(crate) fn describe(document: &mut OpenApi, auth: Option<Auth>) {
    let schemes: &[&str] = match auth {
        Some(Auth::Header) => &[USER_SCHEME],
        Some(Auth::Tokens) => &[TOKEN_SCHEME],
        None => &[USER_SCHEME, TOKEN_SCHEME],
    };
    let components = document.components.get_or_insert_with(Components::new);
    for scheme in schemes.iter().chain(&[ADMIN_SCHEME]) {
        components.add_security_scheme(*scheme, described(scheme));
    }
    let requirements: Vec<_> = schemes.iter().map(|scheme| SecurityRequirement::new(*scheme, [""; 0])).collect();
    for operation in document.paths.paths.values_mut().flat_map(operations).filter(|operation| is_of_users(operation)) {
        operation.security = Some(requirements.clone());
    }
}

fn is_of_users(operation: &Operation) -> bool {
    let admins = SecurityRequirement::new(ADMIN_SCHEME, [""; 0]);
    operation.security.as_ref().is_some_and(|needed| !needed.contains(&admins))
}

fn described(scheme: &str) -> SecurityScheme {
    if scheme == ADMIN_SCHEME {
        let text = "The server's admin key: api.admin_key, or the file admin.key in the data folder of the embedded backend.";
        return SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some(text)).build());
    }
    if scheme == USER_SCHEME {
        let header = ApiKeyValue::with_description("X-User-Id", "1 to 128 visible ASCII characters; believed as it is, on loopback only");
        return SecurityScheme::ApiKey(ApiKey::Header(header));
    }
    let token = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("JWT");
    let text = "A Firebase ID token of the server's project; its `sub` is the user. `X-User-Id` is ignored.";
    SecurityScheme::Http(token.description(Some(text)).build())
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    let PathItem { get, put, post, delete, options, head, patch, trace, .. } = item;
    [get, put, post, delete, options, head, patch, trace].into_iter().flatten()
}

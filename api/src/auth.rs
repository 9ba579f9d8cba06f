//! Who is calling.

use axum::extract::FromRequestParts;
use http::request::Parts;
use quayside_shared::ids::UserId;

use crate::error::ApiError;

/// The header that is believed in the `header` mode.
pub(crate) const USER_HEADER: &str = "x-user-id";

/// The user on whose behalf the request is answered.
pub(crate) struct Caller(pub(crate) UserId);

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    /// Exactly one header: of two, a proxy in front may have checked the other one.
    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        let mut values = parts.headers.get_all(USER_HEADER).iter();
        match (values.next(), values.next()) {
            (None, _) => Err(ApiError::Unauthenticated("say who you are in the header X-User-Id")),
            (Some(value), None) => {
                let user = value.to_str().ok().and_then(|text| text.parse().ok());
                user.map(Self).ok_or(ApiError::Unauthenticated("X-User-Id must be 1 to 128 visible ASCII characters"))
            }
            (Some(_), Some(_)) => Err(ApiError::Unauthenticated("X-User-Id must be there once")),
        }
    }
}

//! Every route.

use axum::Router;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;

use crate::Deps;

/// The whole API on `deps`. Must be called inside a Tokio runtime: it starts the publisher.
pub fn router(deps: Deps) -> Router {
    let _ = deps;
    let (router, _document) = routes().split_for_parts();
    router
}

/// The OpenAPI document that `/openapi.json` answers.
#[must_use]
pub fn openapi() -> OpenApi {
    routes::<()>().split_for_parts().1
}

fn routes<S: Clone + Send + Sync + 'static>() -> OpenApiRouter<S> {
    OpenApiRouter::new()
}

//! What a request brings, with refusals of the one shape: axum's own are plain text.

use axum::Json;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use serde::de::DeserializeOwned;

use super::error::ApiError;
use crate::limits;

/// A JSON body.
pub(super) struct Body<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let Json(body) = Json::from_request(request, state).await?;
        Ok(Self(body))
    }
}

/// The `{user}` of a path, of 1 to 64 bytes.
pub(super) struct UserPath(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for UserPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let In(user): In<String> = In::from_request_parts(parts, state).await?;
        check_user(&user)?;
        Ok(Self(user))
    }
}

/// Other parameters of a path.
pub(super) struct In<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for In<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path = Path::from_request_parts(parts, state).await;
        let Path(parameters) = path.map_err(|error| ApiError::invalid(error.body_text()))?;
        Ok(Self(parameters))
    }
}

/// What stands behind the question mark.
pub(super) struct Asked<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Asked<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let query = Query::from_request_parts(parts, state).await;
        let Query(parameters) = query.map_err(|error| ApiError::invalid(error.body_text()))?;
        Ok(Self(parameters))
    }
}

/// A user id has 1 to 64 bytes.
pub(super) fn check_user(user: &str) -> Result<(), ApiError> {
    if (1..=limits::USER_BYTES_MAX).contains(&user.len()) {
        return Ok(());
    }
    Err(ApiError::invalid(format!("a user id has 1 to 64 bytes, this one {}", user.len())))
}

/// So many users at a time.
pub(super) fn check_count(field: &str, users: usize) -> Result<(), ApiError> {
    if (1..=limits::API_USERS_MAX).contains(&users) {
        return Ok(());
    }
    let max = limits::API_USERS_MAX;
    Err(ApiError::invalid(format!("{field}: has {users} users; allowed are 1 to {max}")))
}

//! What the server API answers when it does not do what was asked: one shape, with the codes of the client protocol.

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hawser_proto::client::error::Code;
use hawser_proto::link::Failure;
use serde::Serialize;
use utoipa::{IntoResponses, ToSchema};

/// A refusal: its status and what the body says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ApiError {
    status: StatusCode,
    problem: Problem,
    /// For Retry-After, in seconds.
    retry_after_secs: Option<u64>,
}

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(super) struct Problem {
    /// Name of a code of the client protocol (`Error.Code`, without its prefix).
    #[schema(pattern = "^[A-Z]+(_[A-Z]+)*$", example = "UNAVAILABLE")]
    code: &'static str,
    /// One sentence for people.
    message: String,
    /// The same request may succeed later. With an Idempotency-Key it does no harm to repeat one that did.
    retryable: bool,
}

/// The body of every answer that is not a success.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ErrorBody {
    error: Problem,
}

/// What any request may be answered with.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "the document is made from it")]
pub(super) enum Refusals {
    /// A field is missing, unknown or over its bound; the message names it.
    #[response(status = 400)]
    InvalidArgument(ErrorBody),
    /// No key, or one that is not known.
    #[response(status = 401)]
    Unauthenticated(ErrorBody),
    /// The key does not have the scope.
    #[response(status = 403)]
    PermissionDenied(ErrorBody),
    /// The key is over its rate; Retry-After says for how many seconds.
    #[response(status = 429)]
    Overloaded(ErrorBody),
    /// The router that has the user is out of reach, or takes no more: repeat it later.
    #[response(status = 503)]
    Unavailable(ErrorBody),
}

/// What a request with a body may be answered with, beside [`Refusals`].
#[derive(IntoResponses)]
#[expect(dead_code, reason = "the document is made from it")]
pub(super) enum BodyRefusals {
    /// The body or the payload is over its bound.
    #[response(status = 413)]
    TooLarge(ErrorBody),
    /// The body is not application/json.
    #[response(status = 415)]
    UnsupportedMediaType(ErrorBody),
}

impl ApiError {
    fn new(status: StatusCode, code: Code, message: impl Into<String>) -> Self {
        let retryable = matches!(code, Code::Unavailable | Code::Overloaded);
        let code = code.as_str_name().trim_start_matches("CODE_");
        let problem = Problem { code, message: message.into(), retryable };
        Self { status, problem, retry_after_secs: None }
    }

    /// A field is missing or wrong.
    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, Code::InvalidArgument, message)
    }

    /// No key that is known.
    pub(super) fn unauthenticated(message: &str) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, Code::Unauthenticated, message)
    }

    /// The key does not allow it.
    pub(super) fn permission_denied(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, Code::PermissionDenied, message)
    }

    /// There is no such thing.
    pub(super) fn not_found(message: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, Code::NotFound, message)
    }

    /// The path is there, and does not do that.
    pub(super) fn method_not_allowed() -> Self {
        let text = "this path does not take that method; see /openapi.json";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, Code::Unsupported, text)
    }

    /// Something is over its bound.
    pub(super) fn too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, Code::TooLarge, message)
    }

    /// The key is over its rate for so many seconds.
    pub(super) fn over_rate(seconds: u64) -> Self {
        let text = "the key is over its rate";
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, Code::Overloaded, text);
        Self { retry_after_secs: Some(seconds.max(1)), ..error }
    }

    /// A bound of this router is reached.
    pub(super) fn overloaded(message: &str) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, Code::Overloaded, message).retried_after(1)
    }

    /// The router that has the user did not answer.
    pub(super) fn unavailable(message: &str) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable, message).retried_after(1)
    }

    /// What went wrong here.
    pub(super) fn internal(message: &str) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, Code::Unspecified, message)
    }

    fn retried_after(self, seconds: u64) -> Self {
        Self { retry_after_secs: Some(seconds), ..self }
    }

    /// As part of a larger answer.
    pub(super) fn into_problem(self) -> Problem {
        self.problem
    }
}

impl From<Failure> for ApiError {
    /// What a Hub answers.
    fn from(failure: Failure) -> Self {
        let code = Code::try_from(failure.code as i32).unwrap_or_default();
        let status = match code {
            Code::InvalidArgument | Code::Unsupported => StatusCode::BAD_REQUEST,
            Code::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Code::NotFound => StatusCode::NOT_FOUND,
            Code::PermissionDenied => StatusCode::FORBIDDEN,
            Code::Unavailable | Code::Overloaded => StatusCode::SERVICE_UNAVAILABLE,
            Code::Unspecified
            | Code::UnknownFrame
            | Code::NotConnected
            | Code::AlreadyConnected
            | Code::Unauthenticated
            | Code::Replaced => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let mut error = Self::new(status, code, failure.message);
        error.problem.retryable = failure.retryable;
        if status == StatusCode::SERVICE_UNAVAILABLE { error.retried_after(1) } else { error }
    }
}

impl From<JsonRejection> for ApiError {
    fn from(rejection: JsonRejection) -> Self {
        let status = rejection.status();
        if status == StatusCode::PAYLOAD_TOO_LARGE {
            return Self::too_large("the body is over its bound");
        }
        if status == StatusCode::UNSUPPORTED_MEDIA_TYPE {
            let text = "the body has to be JSON, said by Content-Type: application/json";
            return Self::new(status, Code::InvalidArgument, text);
        }
        // Names the field, and what would have been right.
        Self::invalid(rejection.body_text())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let Self { status, problem, retry_after_secs } = self;
        let mut response = (status, Json(ErrorBody { error: problem })).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = retry_after_secs {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if status == StatusCode::UNAUTHORIZED {
            let bearer = HeaderValue::from_static("Bearer");
            headers.insert(header::WWW_AUTHENTICATE, bearer);
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_of_a_hub_keeps_its_code_and_whether_to_repeat_it() {
        let failure = |code: Code, retryable| Failure {
            code: code as u32,
            message: "why".to_owned(),
            retryable,
        };
        let error = ApiError::from(failure(Code::Unavailable, true));
        assert_eq!(
            (error.status, error.problem.code),
            (StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE")
        );
        assert!(error.problem.retryable && error.retry_after_secs.is_some());
        let error = ApiError::from(failure(Code::TooLarge, false));
        assert_eq!((error.status.as_u16(), error.problem.code), (413, "TOO_LARGE"));
        assert!(!error.problem.retryable);
        // A code that a later release has.
        let error = ApiError::from(Failure { code: 999, ..failure(Code::TooLarge, true) });
        assert_eq!((error.status.as_u16(), error.problem.code), (500, "UNSPECIFIED"));
    }
}

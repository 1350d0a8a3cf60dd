//! One exchange with JetStream: its time limit, and its errors in our words.

use async_nats::connection::State;
use async_nats::jetstream::context::{
    GetStreamError, GetStreamErrorKind, PublishError, PublishErrorKind, RequestError,
    RequestErrorKind,
};
use async_nats::jetstream::stream::{
    ConsumerError, ConsumerErrorKind, DirectGetError, DirectGetErrorKind, LastRawMessageError,
    LastRawMessageErrorKind, PurgeError, PurgeErrorKind,
};
use async_nats::jetstream::{self, ErrorCode};
use async_nats::{Client, StatusCode};
use capabilities::{BoxError, blobstore, keyvalue, messaging};
use std::future::Future;

use crate::OPERATION_TIMEOUT;

/// Why an exchange failed, before it is put in the words of a capability.
#[derive(thiserror::Error, Debug)]
pub(crate) enum Error {
    #[error("no answer within {OPERATION_TIMEOUT:?}")]
    Timeout,
    #[error("NATS cannot be reached")]
    Unavailable(#[source] BoxError),
    /// The server says that the stream does not exist.
    #[error("the stream does not exist")]
    NoStream,
    #[error("JetStream refused")]
    Refused(#[source] BoxError),
}

pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

impl From<Error> for keyvalue::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Timeout => Self::Timeout(OPERATION_TIMEOUT),
            Error::Unavailable(source) => Self::Unavailable(source),
            Error::NoStream => Self::NoSuchBucket(String::new()),
            Error::Refused(source) if is_full(&*source) => Self::Full(source),
            Error::Refused(source) => Self::Internal(source),
        }
    }
}

impl From<Error> for blobstore::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Timeout => Self::Timeout(OPERATION_TIMEOUT),
            Error::Unavailable(source) => Self::Unavailable(source),
            Error::NoStream => Self::NoSuchContainer(String::new()),
            Error::Refused(source) => Self::Internal(source),
        }
    }
}

impl From<Error> for messaging::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Timeout => Self::Timeout(OPERATION_TIMEOUT),
            Error::Unavailable(source) => Self::Unavailable(source),
            error @ Error::NoStream => Self::Unavailable(error.into()),
            Error::Refused(source) => Self::Internal(source),
        }
    }
}

/// What `exchange` comes to within [`OPERATION_TIMEOUT`], its error in our words.
pub(crate) async fn limited<T, E: Into<BoxError>>(
    client: &Client,
    exchange: impl Future<Output = Result<T, E>>,
) -> Result<T> {
    let error = match tokio::time::timeout(OPERATION_TIMEOUT, exchange).await {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(error)) => error.into(),
        Err(elapsed) => elapsed.into(),
    };
    Err(match what_happened(&*error) {
        Happened::NoAnswer if client.connection_state() == State::Connected => Error::Timeout,
        Happened::NoAnswer => Error::Unavailable("not connected to NATS".into()),
        Happened::NoStream => Error::NoStream,
        Happened::NoResponders => no_responders(error),
        Happened::Other => Error::Refused(error),
    })
}

#[derive(thiserror::Error, Debug)]
#[error("JetStream does not answer; it is not enabled (nats-server -js) or has no leader yet")]
struct NoJetStream(#[source] BoxError);

enum Happened {
    NoAnswer,
    /// The server says that the stream does not exist.
    NoStream,
    /// Nobody answers for the stream: it does not exist, or JetStream is not (yet) there.
    NoResponders,
    Other,
}

/// The client tells most by types, deep in the chain of sources.
fn what_happened(error: &(dyn std::error::Error + 'static)) -> Happened {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(code) = code(error) {
            return match code {
                ErrorCode::STREAM_NOT_FOUND => Happened::NoStream,
                _ => Happened::Other,
            };
        }
        if error.is::<tokio::time::error::Elapsed>() {
            return Happened::NoAnswer;
        }
        if let Some(error) = error.downcast_ref::<PublishError>() {
            match error.kind() {
                PublishErrorKind::StreamNotFound => return Happened::NoResponders,
                PublishErrorKind::TimedOut | PublishErrorKind::BrokenPipe => {
                    return Happened::NoAnswer;
                }
                _ => {}
            }
        }
        if let Some(error) = error.downcast_ref::<DirectGetError>() {
            match error.kind() {
                DirectGetErrorKind::ErrorResponse(StatusCode::NO_RESPONDERS, _) => {
                    return Happened::NoResponders;
                }
                DirectGetErrorKind::TimedOut => return Happened::NoAnswer,
                _ => {}
            }
        }
        if let Some(error) = error.downcast_ref::<RequestError>() {
            match error.kind() {
                RequestErrorKind::NoResponders => return Happened::NoResponders,
                RequestErrorKind::TimedOut => return Happened::NoAnswer,
                _ => {}
            }
        }
        if let Some(error) = error.downcast_ref::<async_nats::RequestError>() {
            match error.kind() {
                async_nats::RequestErrorKind::NoResponders => return Happened::NoResponders,
                async_nats::RequestErrorKind::TimedOut => return Happened::NoAnswer,
                _ => {}
            }
        }
        next = error.source();
    }
    Happened::Other
}

/// JetStream's own number of an error, if `error` itself has one.
fn code(error: &(dyn std::error::Error + 'static)) -> Option<ErrorCode> {
    if let Some(error) = error.downcast_ref::<jetstream::Error>() {
        return Some(error.error_code());
    }
    if let Some(error) = error.downcast_ref::<GetStreamError>()
        && let GetStreamErrorKind::JetStream(error) = error.kind()
    {
        return Some(error.error_code());
    }
    if let Some(error) = error.downcast_ref::<ConsumerError>()
        && let ConsumerErrorKind::JetStream(error) = error.kind()
    {
        return Some(error.error_code());
    }
    if let Some(error) = error.downcast_ref::<LastRawMessageError>()
        && let LastRawMessageErrorKind::JetStream(error) = error.kind()
    {
        return Some(error.error_code());
    }
    if let Some(error) = error.downcast_ref::<PurgeError>()
        && let PurgeErrorKind::JetStream(error) = error.kind()
    {
        return Some(error.error_code());
    }
    None
}

/// The usual cause is a server without JetStream, which it says only by silence.
pub(crate) fn no_responders(source: BoxError) -> Error {
    Error::Unavailable(Box::new(NoJetStream(source)))
}

/// Whether a write failed because the stream has as many bytes as it may, which the server says by text.
fn is_full(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if code(error) == Some(ErrorCode::STREAM_STORE_FAILED) {
            return error.to_string().contains("maximum bytes exceeded");
        }
        next = error.source();
    }
    false
}

/// Whether a write failed because the expected message was not the last.
pub(crate) fn is_conflict(error: &Error) -> bool {
    let Error::Refused(source) = error else {
        return false;
    };
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(&**source);
    while let Some(error) = next {
        if let Some(code) = code(error) {
            return matches!(
                code,
                ErrorCode::STREAM_WRONG_LAST_SEQUENCE
                    | ErrorCode::STREAM_WRONG_LAST_SEQUENCE_CONSTANT
                    | ErrorCode::STREAM_EXPECTED_LAST_SEQ_PER_SUBJECT_NOT_READY
            );
        }
        next = error.source();
    }
    false
}

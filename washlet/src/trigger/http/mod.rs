//! HTTP ingress: one listener, every workload behind it, told apart by host name.
//!
//! [`Server`] takes connections and bounds them, [`Routes`] leads from a host name to a [`Target`]; what a
//! target does with a request is not known here.

mod respond;
mod routes;
mod server;
mod tls;
mod traffic;

#[cfg(test)]
pub(crate) use routes::Found;
pub use routes::{Attachment, Error as NamesError, Names, Routes};
pub use server::{Error, Server, Timeouts};
pub use tls::Error as TlsError;
pub(crate) use tls::acceptor;

use async_trait::async_trait;
use bytes::Bytes;
use capabilities::BoxError;
use http::uri::Scheme;
use http_body_util::combinators::UnsyncBoxBody;
use std::time::Duration;

/// A request's body as it arrives. Errors: the client went away, broke the protocol, or stopped sending.
pub type RequestBody = UnsyncBoxBody<Bytes, BoxError>;

/// A response's body as it is made. Errors: the call failed after the head; the client sees a reset.
pub type ResponseBody = UnsyncBoxBody<Bytes, BoxError>;

/// What a route leads to: one component that answers requests.
#[async_trait]
pub trait Target: Send + Sync + 'static {
    /// The component's name, for the log.
    fn component(&self) -> &str;

    /// Told of each response to a request for it: its own, or the host's when it failed or was busy.
    fn answered(&self, status: http::StatusCode);

    /// Answers one request.
    ///
    /// Shape: `request` has the client's `Host` header or authority and an `x-request-id`; `scheme` is what
    /// the listener speaks. Dropping the future or the response's body cancels the call.
    ///
    /// # Errors
    /// [`CallError`] when there will be no response head.
    async fn call(
        &self,
        request: http::Request<RequestBody>,
        scheme: Scheme,
    ) -> Result<http::Response<ResponseBody>, CallError>;
}

/// Why a call has no response head.
#[derive(thiserror::Error, Debug)]
pub enum CallError {
    /// The guest trapped or could not be instantiated; the report goes to the log, never to the client.
    #[error("{0}")]
    Trap(String),
    /// The guest returned without setting a response.
    #[error("the guest set no response")]
    NoResponse,
    /// No response head within the call limit.
    #[error("no response within {}s", .0.as_secs_f32())]
    Timeout(Duration),
    /// No instance was free in time.
    #[error("no instance was free")]
    Busy,
}

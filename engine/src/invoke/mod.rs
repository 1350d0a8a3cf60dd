//! Calling exports: each call has an instance to itself, fresh unless the component asked for reuse, bounded
//! in memory, CPU time and wall time.

mod export;
mod http;
mod messaging;
mod messaging_p3;
mod service;
mod watcher;

pub use http::GuestBody;

use std::sync::Arc;
use std::time::Duration;
use wasmtime::Store;

use crate::ctx::Ctx;
use crate::limits::Meter;
use crate::runnable::Recipe;
use crate::shards::Handle;
use crate::warm::{Live, Warm};

/// What instances of one kind of export are made from.
trait Pre: Sync {
    /// What can be called.
    type Exports: Send;

    /// A new instance, in `store`.
    fn instantiate(
        &self,
        store: &mut Store<Ctx>,
    ) -> impl Future<Output = wasmtime::Result<Self::Exports>> + Send;
}

/// The instance for one call, whose time is on `meter`: an idle one of `warm`, else a new one with a permit.
async fn take<P: Pre>(
    pre: &P,
    recipe: &Handle<Recipe>,
    warm: Option<&Warm<P::Exports>>,
    meter: Arc<Meter>,
) -> Result<Live<P::Exports>, Error> {
    recipe.usage.called();
    recipe.turn().await;
    if let Some(live) = warm.and_then(|warm| warm.take(&meter)) {
        return Ok(live);
    }
    let permit = recipe.permit().await?;
    let mut store = Recipe::store(recipe, meter);
    match pre.instantiate(&mut store).await {
        Ok(exports) => Ok(Live::new(store, exports, permit, warm.and_then(Warm::slot))),
        Err(error) => Err(recipe.not_made(&store, error)),
    }
}

/// Why a guest did not handle a message, in its own words.
#[derive(thiserror::Error, Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unhandled {
    /// It never will.
    #[error("rejected")]
    Reject,
    /// It may, later.
    #[error("to be delivered again")]
    Retry,
    /// It failed; it may not, later.
    #[error("{0}")]
    Failed(String),
}

/// Why a call failed.
#[derive(thiserror::Error, Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The component does not export what was called.
    #[error("component does not export {0}")]
    NotExported(&'static str),
    /// Every instance of the pool is taken.
    #[error("no instance became free in time")]
    Busy,
    /// The guest broke.
    #[error("component trapped: {0}")]
    Trap(String),
    /// The guest used its CPU time up.
    #[error("call used more than {0:?} of CPU time")]
    CpuExceeded(Duration),
    /// The guest did not answer in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The guest returned without an answer.
    #[error("component returned without a response")]
    NoResponse,
    /// The guest answered with an error code instead of a response.
    #[error("component answered with error '{0}'")]
    Code(String),
    /// The request cannot be shown to a guest.
    #[error("request cannot be passed to a component: {0}")]
    Request(String),
}

//! `wasmcloud:messaging/handler@0.3.0`: one message, one call, its body as a stream.

use capabilities::messaging::Message;
use std::future::poll_fn;
use std::sync::Arc;
use wasmtime::Store;

use super::{Error, Unhandled};
use crate::ctx::Ctx;
use crate::interface::messaging_p3::{
    HandleMessageError, MessagingHandler, MessagingHandlerPre, broker_message,
};
use crate::limits::{Meter, Metered};
use crate::runnable::{Recipe, WarmSets};
use crate::shards::Handle;

impl super::Pre for MessagingHandlerPre<Ctx> {
    type Exports = MessagingHandler;

    fn instantiate(
        &self,
        store: &mut Store<Ctx>,
    ) -> impl Future<Output = wasmtime::Result<MessagingHandler>> + Send {
        self.instantiate_async(store)
    }
}

/// Hands `message` to an instance, and waits until all of its tasks have ended.
pub(super) async fn deliver(
    recipe: Handle<Recipe>,
    warm: Option<Handle<WarmSets>>,
    message: Message,
) -> Result<Result<(), Unhandled>, Error> {
    let Some(pre) = &recipe.messaging_p3 else {
        return Err(Error::NotExported("wasmcloud:messaging/handler"));
    };
    let warm = warm.as_ref().map(|warm| &warm.messaging_p3);
    let limit = recipe.engine.0.config.call_time_max;
    let meter = Meter::new();
    let call = Metered::new(recipe.clone(), Arc::clone(&meter), async {
        let mut live = super::take(pre, &recipe, warm, meter).await?;
        let (store, exports) = (&mut live.store, &live.exports);
        let handled = store
            .run_concurrent(async |accessor| {
                let message = accessor.with(|access| broker_message(access, message))?;
                let handler = exports.wasmcloud_messaging_handler();
                let handled = handler.call_handle_message(accessor, message).await?;
                poll_fn(|cx| accessor.poll_no_interesting_tasks(cx)).await;
                Ok(handled)
            })
            .await
            .flatten();
        let handled = handled.map_err(|error| recipe.trapped(&live.store, error))?;
        if let Some(warm) = warm {
            warm.give_back(live);
        }
        Ok(handled.map_err(Unhandled::from))
    });
    tokio::time::timeout(limit, Box::pin(call))
        .await
        .unwrap_or(Err(Error::Timeout(limit)))
}

impl From<HandleMessageError> for Unhandled {
    fn from(error: HandleMessageError) -> Self {
        match error {
            HandleMessageError::Reject => Self::Reject,
            HandleMessageError::Retry => Self::Retry,
            HandleMessageError::Other(why) => Self::Failed(why),
        }
    }
}

//! `wasmcloud:messaging/handler@0.2.0`: one message, one call. A component that handles 0.3, too, does that.

use capabilities::messaging::Message;
use std::sync::Arc;
use wasmtime::Store;

use super::{Error, Unhandled, messaging_p3};
use crate::ctx::Ctx;
use crate::interface::messaging::{MessagingHandler, MessagingHandlerPre};
use crate::limits::{Meter, Metered};
use crate::runnable::Runnable;

impl super::Pre for MessagingHandlerPre<Ctx> {
    type Exports = MessagingHandler;

    fn instantiate(
        &self,
        store: &mut Store<Ctx>,
    ) -> impl Future<Output = wasmtime::Result<MessagingHandler>> + Send {
        self.instantiate_async(store)
    }
}

impl Runnable {
    /// Hands `message` to an instance. The inner result is the guest's own.
    ///
    /// # Errors
    /// All of [`Error`] but [`Error::NoResponse`].
    /// Source: `wasmcloud:messaging/handler.handle-message`.
    pub async fn message(&self, message: Message) -> Result<Result<(), Unhandled>, Error> {
        let (recipe, warm) = (self.recipe(), self.warm());
        if recipe.messaging_p3.is_some() {
            return messaging_p3::deliver(recipe, warm, message).await;
        }
        let warm = warm.as_ref().map(|warm| &warm.messaging);
        let Some(pre) = &recipe.messaging else {
            return Err(Error::NotExported("wasmcloud:messaging/handler"));
        };
        let limit = recipe.engine.0.config.call_time_max;
        let meter = Meter::new();
        let call = Metered::new(recipe.clone(), Arc::clone(&meter), async {
            let mut live = super::take(pre, &recipe, warm, meter).await?;
            let handler = live.exports.wasmcloud_messaging_handler();
            let called = handler
                .call_handle_message(&mut live.store, &message.into())
                .await
                .map_err(|error| recipe.trapped(&live.store, error))?;
            if let Some(warm) = warm {
                warm.give_back(live);
            }
            Ok(called.map_err(Unhandled::Failed))
        });
        tokio::time::timeout(limit, Box::pin(call))
            .await
            .unwrap_or(Err(Error::Timeout(limit)))
    }
}

//! `wasmcloud:messaging/handler@0.2.0`: one fresh instance for each message.

use capabilities::messaging::Message;
use std::sync::Arc;

use super::Error;
use crate::limits::{Meter, Metered};
use crate::runnable::Runnable;

impl Runnable {
    /// Hands `message` to a fresh instance. The inner result is the guest's own.
    ///
    /// # Errors
    /// All of [`Error`] but [`Error::NoResponse`].
    /// Source: `wasmcloud:messaging/handler.handle-message`.
    pub async fn message(&self, message: Message) -> Result<Result<(), String>, Error> {
        let recipe = &self.0;
        let Some(pre) = &recipe.messaging else {
            return Err(Error::NotExported("wasmcloud:messaging/handler"));
        };
        let limit = recipe.engine.0.config.call_time_max;
        let meter = Meter::new();
        let call = Metered::new(Arc::clone(&meter), async {
            let _permit = recipe.permit().await?;
            let mut store = recipe.store(meter);
            let called = match pre.instantiate_async(&mut store).await {
                Ok(handler) => {
                    let handler = handler.wasmcloud_messaging_handler();
                    handler
                        .call_handle_message(&mut store, &message.into())
                        .await
                }
                Err(error) => Err(error),
            };
            called.map_err(|error| recipe.trapped(&store, error))
        });
        tokio::time::timeout(limit, call)
            .await
            .unwrap_or(Err(Error::Timeout(limit)))
    }
}

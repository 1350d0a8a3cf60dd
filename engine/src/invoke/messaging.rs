//! `wasmcloud:messaging/handler@0.2.0`: one message, one call.

use capabilities::messaging::Message;
use std::sync::Arc;

use super::Error;
use crate::limits::{Meter, Metered};
use crate::runnable::Runnable;
use crate::warm::Live;

impl Runnable {
    /// Hands `message` to an instance. The inner result is the guest's own.
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
            let mut live = match recipe.warm_messaging.take(&meter) {
                Some(live) => live,
                None => {
                    let permit = recipe.permit().await?;
                    let mut store = recipe.store(meter);
                    let made = pre.instantiate_async(&mut store).await;
                    let made = made.map_err(|error| recipe.trapped(&store, error))?;
                    Live::new(store, made, permit, recipe.warm_messaging.slot())
                }
            };
            let handler = live.exports.wasmcloud_messaging_handler();
            let called = handler
                .call_handle_message(&mut live.store, &message.into())
                .await
                .map_err(|error| recipe.trapped(&live.store, error))?;
            if live.is_reused() {
                let roomy = recipe.is_roomy(&live.store);
                recipe.warm_messaging.give_back(live, roomy);
            }
            Ok(called)
        });
        tokio::time::timeout(limit, Box::pin(call))
            .await
            .unwrap_or(Err(Error::Timeout(limit)))
    }
}

//! `wasi:keyvalue/watcher`: one change, one call.

use bytes::Bytes;
use capabilities::keyvalue::KeyValueStore;
use std::sync::Arc;
use wasmtime::Store;

use super::Error;
use crate::ctx::Ctx;
use crate::interface::keyvalue::Bucket;
use crate::interface::keyvalue::p2::Open;
use crate::interface::keyvalue::watcher::{Watching, WatchingPre};
use crate::limits::{Meter, Metered};
use crate::runnable::Runnable;

impl super::Pre for WatchingPre<Ctx> {
    type Exports = Watching;

    fn instantiate(
        &self,
        store: &mut Store<Ctx>,
    ) -> impl Future<Output = wasmtime::Result<Watching>> + Send {
        self.instantiate_async(store)
    }
}

impl Runnable {
    /// Tells an instance that `key` of `bucket`, of `store`, was set to `value`, or that it was deleted.
    ///
    /// # Errors
    /// All of [`Error`] but [`Error::NoResponse`].
    /// Source: `wasi:keyvalue/watcher.on-set`, `on-delete`.
    pub async fn changed(
        &self,
        store: &Arc<dyn KeyValueStore>,
        bucket: &str,
        key: &str,
        value: Option<Bytes>,
    ) -> Result<(), Error> {
        let (recipe, warm) = (self.recipe(), self.warm());
        let warm = warm.as_ref().map(|warm| &warm.watcher);
        let Some(pre) = &recipe.watcher else {
            return Err(Error::NotExported("wasi:keyvalue/watcher"));
        };
        let limit = recipe.engine.0.config.call_time_max;
        let meter = Meter::new();
        let open = Open::new(Bucket::new(Arc::clone(store), bucket));
        let call = Metered::new(recipe.clone(), Arc::clone(&meter), async {
            let mut live = super::take(pre, &recipe, warm, meter).await?;
            let watcher = live.exports.wasi_keyvalue_watcher();
            let called = async {
                let open = live.store.data_mut().table.push(open)?;
                match value {
                    Some(value) => {
                        let value = Vec::from(value);
                        watcher
                            .call_on_set(&mut live.store, open, key, &value)
                            .await
                    }
                    None => watcher.call_on_delete(&mut live.store, open, key).await,
                }
            };
            let called: wasmtime::Result<()> = called.await;
            called.map_err(|error| recipe.trapped(&live.store, error))?;
            if let Some(warm) = warm {
                warm.give_back(live);
            }
            Ok(())
        });
        tokio::time::timeout(limit, Box::pin(call))
            .await
            .unwrap_or(Err(Error::Timeout(limit)))
    }
}

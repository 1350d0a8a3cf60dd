//! Any export of a component, called by whoever has bindings for it.

use futures::future::BoxFuture;
use std::sync::Arc;
use wasmtime::component::{Instance, InstancePre};
use wasmtime::{Store, StoreContextMut};

use super::Error;
use crate::ctx::Ctx;
use crate::limits::{Meter, Metered};
use crate::runnable::Runnable;

impl super::Pre for InstancePre<Ctx> {
    type Exports = Instance;

    fn instantiate(
        &self,
        store: &mut Store<Ctx>,
    ) -> impl Future<Output = wasmtime::Result<Instance>> + Send {
        self.instantiate_async(store)
    }
}

impl Runnable {
    /// Lends an instance to `call`, which calls an export of it through bindings of its own.
    ///
    /// Shape: fresh or warm, and bounded as every call, from the instance's start until `call` returns.
    ///
    /// # Errors
    /// [`Error::Busy`], [`Error::Trap`] with the error of `call`, [`Error::CpuExceeded`], [`Error::Timeout`].
    pub async fn call_export<T>(
        &self,
        call: impl for<'a> FnOnce(
            StoreContextMut<'a, Ctx>,
            &'a Instance,
        ) -> BoxFuture<'a, wasmtime::Result<T>>
        + Send,
    ) -> Result<T, Error> {
        let (recipe, warm) = (self.recipe(), self.warm());
        let warm = warm.as_ref().map(|warm| &warm.exports);
        let limit = recipe.engine.0.config.call_time_max;
        let meter = Meter::new();
        let call = Metered::new(recipe.clone(), Arc::clone(&meter), async {
            let mut live = super::take(&recipe.pre, &recipe, warm, meter).await?;
            let called = call((&mut live.store).into(), &live.exports).await;
            let returned = called.map_err(|error| recipe.trapped(&live.store, error))?;
            if let Some(warm) = warm {
                warm.give_back(live);
            }
            Ok(returned)
        });
        tokio::time::timeout(limit, Box::pin(call))
            .await
            .unwrap_or(Err(Error::Timeout(limit)))
    }
}

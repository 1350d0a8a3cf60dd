//! `wasi:http/handler@0.3`: as in [`http`](super::http), but the guest's tasks run side by side, and one that has
//! answered may go on writing its body.

use bytes::Bytes;
use capabilities::BoxError;
use http::header::HOST;
use http::uri::{Authority, Scheme};
use http::{Request, Response};
use http_body::Body;
use http_body_util::BodyExt;
use std::future::{pending, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use tokio::sync::oneshot;
use wasmtime::Store;
use wasmtime_wasi_http::p3::bindings::http::types::ErrorCode;
use wasmtime_wasi_http::p3::bindings::{Service, ServicePre};
use wasmtime_wasi_http::{FieldMap, WasiBody, WasiHttpView, p3};

use super::http::{Failed, Returned};
use crate::ctx::Ctx;
use crate::interface::http::unreadable;
use crate::limits::{Meter, Metered};
use crate::runnable::{Recipe, WarmSets};
use crate::shards::Handle;
use crate::warm::Live;

pub(super) type Answer = Result<Response<WasiBody>, ErrorCode>;

impl super::Pre for ServicePre<Ctx> {
    type Exports = Service;

    fn instantiate(
        &self,
        store: &mut Store<Ctx>,
    ) -> impl Future<Output = wasmtime::Result<Service>> + Send {
        self.instantiate_async(store)
    }
}

/// The guest, until the last of its tasks has ended.
pub(super) async fn run<B>(
    recipe: Handle<Recipe>,
    warm: Option<Handle<WarmSets>>,
    meter: Arc<Meter>,
    request: Request<B>,
    scheme: Scheme,
    answer: oneshot::Sender<Answer>,
) -> Result<Returned, Box<Failed>>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let Some(pre) = &recipe.service else {
        return Ok(Returned::Spent);
    };
    let mut live =
        super::take(pre, &recipe, warm.as_ref().map(|warm| &warm.service), meter).await?;
    let (store, service) = (&mut live.store, &live.exports);
    let handled = store
        .run_concurrent(async |accessor| {
            let (request, sent) =
                accessor.with(|mut access| incoming(access.data_mut(), request, scheme));
            let response = match service.handle(accessor, request).await? {
                Ok(response) => {
                    Ok(accessor.with(|mut access| response.into_http(&mut access, sent))?)
                }
                Err(code) => Err(code),
            };
            // Nobody waits for it any more if the client has left; then this ends, too.
            let _ = answer.send(response);
            poll_fn(|cx| accessor.poll_no_interesting_tasks(cx)).await;
            Ok(())
        })
        .await
        .flatten();
    match handled {
        Ok(()) => Ok(Returned::Async(warm, live)),
        Err(error) => Err(failed(live, error)),
    }
}

/// Moves what a guest without tasks has left to its host to move: a body that it passes on.
///
/// Shape: ends only when the guest fails.
pub(super) fn pump(live: Live<Service>) -> Pin<Box<dyn Future<Output = Box<Failed>> + Send>> {
    let ctx = live.store.data();
    let (payer, meter) = (ctx.recipe.clone(), ctx.limits.meter());
    Box::pin(Metered::new(payer, meter, async move {
        let mut live = live;
        match live.store.run_concurrent(async |_| pending().await).await {
            Ok(never) => never,
            Err(error) => failed(live, error),
        }
    }))
}

fn failed(live: Live<Service>, error: wasmtime::Error) -> Box<Failed> {
    let error = live.store.data().recipe.trapped(&live.store, error);
    Failed::keeping(error, live.store, live.permit)
}

/// The request as a guest sees it, and what becomes of it on its way.
fn incoming<B>(
    ctx: &mut Ctx,
    request: Request<B>,
    scheme: Scheme,
) -> (
    p3::Request,
    impl Future<Output = Result<(), wasmtime_wasi_http::Error>> + Send + use<B>,
)
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let (parts, body) = request.into_parts();
    let named = parts.headers.get(HOST);
    let named = named.and_then(|host| Authority::try_from(host.as_bytes()).ok());
    p3::Request::new(
        parts.method,
        Some(scheme),
        named.or_else(|| parts.uri.authority().cloned()),
        parts.uri.path_and_query().cloned(),
        FieldMap::new_immutable(ctx.http().hooks, parts.headers),
        None,
        body.map_err(|error| unreadable(error.into())),
    )
}

//! What a load balancer's clients get, who send to hosts that are ready.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::Duration,
};

use anyhow::{Result, bail};
use futures::{StreamExt, future::try_join_all};
use tokio::time::sleep;

use crate::washlet::Washlet;

/// How often a host is looked at. As load balancers do: now and then, not as fast as it can.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What clients got while they sent.
#[derive(Debug, Default)]
pub struct Load {
    requests: AtomicUsize,
    failures: AtomicUsize,
}

impl Load {
    /// Requests that have ended, well or not.
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    /// Requests that were not answered by 200 and a whole body.
    pub fn failures(&self) -> usize {
        self.failures.load(Ordering::SeqCst)
    }
}

/// Lets `callers` clients ask `hosts` for `/` of `virtual_host` in turn for as long as `meanwhile` takes; gives
/// what came of it. A host gets nothing more once it is not ready, or says goodbye.
///
/// Shape: hosts have an admin endpoint.
///
/// # Errors
/// Those of `meanwhile`, and when no host is left.
pub async fn under_load<T>(
    hosts: &[&Washlet],
    virtual_host: &str,
    callers: usize,
    load: &Load,
    meanwhile: impl Future<Output = Result<T>>,
) -> Result<T> {
    let backends: Vec<_> = hosts.iter().map(|host| Backend::new(host)).collect();
    let done = AtomicBool::new(false);
    let watchers = backends.iter().map(|backend| backend.watch(&done));
    let callers = (0..callers).map(|first| call(first, &backends, virtual_host, load, &done));
    let meanwhile = async {
        let outcome = meanwhile.await;
        done.store(true, Ordering::SeqCst);
        outcome
    };
    let (outcome, callers, watchers) =
        tokio::join!(meanwhile, try_join_all(callers), try_join_all(watchers));
    callers?;
    watchers?;
    outcome
}

/// A host as a balancer sees it.
struct Backend<'a> {
    host: &'a Washlet,
    up: AtomicBool,
}

impl<'a> Backend<'a> {
    fn new(host: &'a Washlet) -> Self {
        let up = AtomicBool::new(true);
        Self { host, up }
    }

    /// Takes the host out as soon as it is not ready or says goodbye.
    async fn watch(&self, done: &AtomicBool) -> Result<()> {
        let subject = format!("washlet.event.{}.goodbye", self.host.id());
        let mut goodbye = self.host.listen(&subject).await?;
        while self.up.load(Ordering::SeqCst) && !done.load(Ordering::SeqCst) {
            let look = async {
                sleep(LOOK_EVERY).await;
                let ready = self.host.admin("/readyz").await;
                ready.is_ok_and(|(status, _)| status == 200)
            };
            let up = tokio::select! {
                _ = goodbye.next() => false,
                ready = look => ready,
            };
            self.up.store(up, Ordering::SeqCst);
        }
        Ok(())
    }
}

async fn call(
    first: usize,
    backends: &[Backend<'_>],
    virtual_host: &str,
    load: &Load,
    done: &AtomicBool,
) -> Result<()> {
    let client = reqwest::Client::builder().no_proxy().build()?;
    let mut turn = first;
    while !done.load(Ordering::SeqCst) {
        turn += 1;
        let up: Vec<_> = backends
            .iter()
            .filter(|backend| backend.up.load(Ordering::SeqCst))
            .collect();
        let Some(backend) = up.get(turn % up.len().max(1)) else {
            bail!("no host is left");
        };
        let url = format!("http://127.0.0.1:{}/", backend.host.http_port());
        let answer = client.get(url).header("host", virtual_host).send().await;
        let well = match answer {
            Ok(answer) => answer.status() == 200 && answer.bytes().await.is_ok(),
            Err(_) => false,
        };
        load.requests.fetch_add(1, Ordering::SeqCst);
        load.failures
            .fetch_add(usize::from(!well), Ordering::SeqCst);
    }
    Ok(())
}

//! Waits on a state, with a deadline.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long a test waits for something that should happen soon, on a busy machine.
pub const SOON: Duration = Duration::from_secs(30);

/// How often a state that cannot be subscribed to is looked at.
const INTERVAL: Duration = Duration::from_millis(10);

/// Calls `probe` until it gives a value, and returns that value.
///
/// # Errors
/// After `deadline`; the text says that `what` did not happen.
pub async fn until<T, F>(deadline: Duration, what: &str, mut probe: F) -> Result<T>
where
    F: AsyncFnMut() -> Option<T>,
{
    let start = Instant::now();
    loop {
        let left = deadline.saturating_sub(start.elapsed());
        match tokio::time::timeout(left.max(INTERVAL), probe()).await {
            Ok(Some(value)) => return Ok(value),
            Ok(None) if start.elapsed() < deadline => tokio::time::sleep(INTERVAL).await,
            _ => bail!("{what}: not within {deadline:?}"),
        }
    }
}

//! A trigger: calls the export `example:clock/tick@0.1.0` of components at an interval.

use std::time::Duration;

use async_trait::async_trait;
use capabilities::BoxError;
use capabilities::plugin::Settings;
use engine::wit::Served;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use washlet::trigger::{Driven, Error, Guard, Trigger};

use bindings::ClockedIndices;

mod bindings {
    engine::wasmtime::component::bindgen!({
        path: "wit/clock",
        world: "example:clock/clocked",
        exports: { default: async },
        wasmtime_crate: engine::wasmtime,
    });
}

/// The shortest and the longest interval, in milliseconds.
const INTERVAL_MS: std::ops::RangeInclusive<u64> = 10..=86_400_000;

/// The interval of an entry that names none.
const INTERVAL_DEFAULT: Duration = Duration::from_secs(1);

/// Calls components at the interval that their workload says.
pub struct Clock;

#[async_trait]
impl Trigger for Clock {
    fn drives(&self) -> &'static [Served] {
        &[Served {
            namespace: "example",
            package: "clock",
            interfaces: &["tick"],
            version: "0.1.0",
        }]
    }

    /// Reads the setting `interval_ms`.
    async fn attach(&self, driven: Driven, settings: &Settings<'_>) -> Result<Guard, BoxError> {
        let interval = settings
            .parsed("interval_ms", "milliseconds, 10 to 86400000", |text| {
                text.parse().ok().filter(|ms| INTERVAL_MS.contains(ms))
            })?
            .map_or(INTERVAL_DEFAULT, Duration::from_millis);
        // Where the export is, looked up once; a component that lacks a function of it does not start.
        let exports = ClockedIndices::new(driven.pre())?;
        Ok(driven.run("clock", |driven| run(driven, exports, interval)))
    }
}

/// Calls until there is nothing more to be called; one call ends before the next begins.
async fn run(driven: Driven, exports: ClockedIndices, interval: Duration) {
    let mut ticks = interval_at(Instant::now() + interval, interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for number in 1.. {
        tokio::select! {
            () = driven.stopping() => return,
            _ = ticks.tick() => {}
        }
        // What is to be stopped meanwhile waits for the call.
        match call(&driven, &exports, number).await {
            Ok(()) => {}
            Err(Error::Stopped) => return,
            Err(error) => {
                let owner = driven.owner();
                let (workload, component) = (&owner.workload, &owner.component);
                tracing::warn!(workload, component, number, %error, "tick failed");
            }
        }
    }
}

async fn call(driven: &Driven, exports: &ClockedIndices, number: u64) -> Result<(), Error> {
    let exports = exports.clone();
    let called = driven.call(move |mut store, instance| {
        Box::pin(async move {
            let clocked = exports.load(&mut store, instance)?;
            let tick = clocked.example_clock_tick();
            tick.call_tick(&mut store, number).await
        })
    });
    called.await
}

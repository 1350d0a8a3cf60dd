//! The threads that components run on.

use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::oneshot;
use washlet::drain::Lanes;

use crate::args::Profile;
use crate::host::runtime;
use crate::output::{Exit, Failure};

/// How long what still runs has when the process ends: it had its time before.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// The threads, and how tasks get there.
pub(crate) struct Guests {
    threads: Threads,
    lanes: Lanes,
}

enum Threads {
    /// They take work from each other: a slow component delays nobody.
    Shared(Runtime),
    /// Each keeps its own connections: cheaper, but a slow component delays those beside it.
    Apart(Vec<Thread>),
}

struct Thread {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Guests {
    /// Starts `threads` threads, or one per core.
    pub(crate) fn start(profile: Profile, threads: Option<usize>) -> Result<Self, Failure> {
        if profile != Profile::Throughput {
            let shared = runtime("guest", threads)?;
            let lanes = shared.handle().clone().into();
            return Ok(Self {
                threads: Threads::Shared(shared),
                lanes,
            });
        }
        let failed = |error: std::io::Error| {
            Failure::new(
                Exit::Failed,
                format!("threads could not be started: {error}"),
            )
        };
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let (mut apart, mut handles) = (Vec::new(), Vec::new());
        for _ in 0..threads.unwrap_or_else(cores) {
            let lane = Builder::new_current_thread().enable_all().build();
            let lane = lane.map_err(failed)?;
            handles.push(lane.handle().clone());
            let (stop, stopped) = oneshot::channel();
            let thread = std::thread::Builder::new().name("guest".to_owned());
            let thread = thread.spawn(move || {
                // Sent or dropped, it is over.
                let _ = lane.block_on(stopped);
                lane.shutdown_timeout(LAST_WORDS);
            });
            apart.push(Thread {
                stop,
                thread: thread.map_err(failed)?,
            });
        }
        let lanes = Lanes::new(handles)
            .ok_or_else(|| Failure::usage("there must be at least one thread"))?;
        Ok(Self {
            threads: Threads::Apart(apart),
            lanes,
        })
    }

    /// Where tasks go.
    pub(crate) fn lanes(&self) -> Lanes {
        self.lanes.clone()
    }

    /// One runtime, for what is not spread.
    pub(crate) fn handle(&self) -> Option<&Handle> {
        self.lanes.first()
    }

    /// Ends the threads; what still runs is cut.
    pub(crate) fn shutdown(self) {
        match self.threads {
            Threads::Shared(runtime) => runtime.shutdown_timeout(LAST_WORDS),
            Threads::Apart(threads) => {
                // All are told before the first is waited for.
                let threads: Vec<_> = threads
                    .into_iter()
                    .map(|Thread { stop, thread }| {
                        let _ = stop.send(());
                        thread
                    })
                    .collect();
                for thread in threads {
                    let _ = thread.join();
                }
            }
        }
    }
}

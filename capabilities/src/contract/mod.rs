//! What every plugin must do, as named cases that any of them runs against its storage.
//!
//! A runner takes the plugin on a storage that nobody else uses, goes through all cases and reports
//! every one that failed.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use crate::BoxError;
use crate::plugin::{Ask, Plugin, Settings};

pub mod blobstore;
pub mod config;
pub mod durable;
pub mod keyvalue;
pub mod messaging;

/// How long one case may take.
const CASE_TIMEOUT: Duration = Duration::from_secs(60);

/// What a case comes to: nothing, or what is wrong.
type Case = Result<(), BoxError>;

/// The cases that failed.
#[derive(thiserror::Error)]
#[error("{} cases of the contract failed:\n{}", failures.len(), failures.join("\n"))]
pub struct Failed {
    failures: Vec<String>,
}

/// As the display, for tests that unwrap.
impl std::fmt::Debug for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

#[derive(Default)]
struct Cases {
    failures: Vec<String>,
}

impl Cases {
    async fn run(&mut self, name: &str, case: impl Future<Output = Case>) {
        let what = match tokio::time::timeout(CASE_TIMEOUT, case).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => crate::report(&*error),
            Err(_) => format!("not done within {CASE_TIMEOUT:?}"),
        };
        self.failures.push(format!("  {name}: {what}"));
    }

    fn finish(self) -> Result<(), Failed> {
        match self.failures.is_empty() {
            true => Ok(()),
            false => Err(Failed {
                failures: self.failures,
            }),
        }
    }
}

/// What `cases` come to, while `plugin` runs.
async fn beside(
    plugin: &dyn Plugin,
    cases: impl Future<Output = Result<(), Failed>>,
) -> Result<(), Failed> {
    let running = async {
        plugin.run().await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        cases = cases => cases,
        () = running => Ok(()),
    }
}

fn ask<'a>(
    namespace: &'a str,
    flat_names: bool,
    settings: &'a BTreeMap<String, String>,
) -> Ask<'a> {
    Ask {
        namespace,
        workload: "contract",
        component: "contract",
        flat_names,
        settings: Settings::new(settings),
    }
}

/// Ends the case unless `$found` has the shape `$wanted`.
macro_rules! want {
    ($found:expr, $wanted:pat $(if $guard:expr)?) => {
        match $found {
            $wanted $(if $guard)? => {}
            other => {
                let wanted = stringify!($wanted $(if $guard)?);
                return Err(format!("line {}: wanted {wanted}, found {other:?}", line!()).into());
            }
        }
    };
}

/// Ends the case unless the two are equal.
macro_rules! same {
    ($found:expr, $wanted:expr) => {
        match (&$found, &$wanted) {
            (found, wanted) if *found == *wanted => {}
            (found, wanted) => {
                return Err(format!("line {}: wanted {wanted:?}, found {found:?}", line!()).into());
            }
        }
    };
}

use {same, want};

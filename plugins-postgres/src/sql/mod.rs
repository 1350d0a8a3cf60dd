//! Databases that workloads name: the protocol, sessions, values as text.
//!
//! | module | what it does |
//! |---|---|
//! | `server` | which database an entry names, as whom, within which limits |
//! | `sign_in` | addresses a workload may reach, TLS, SCRAM |
//! | `wire` | messages, bounded |
//! | `session` | statements and what comes of them |
//! | `sessions` | sessions to be used again, how many there are |
//! | `database` | `SqlDatabase` |
//! | `text`, `literal`, `moments` | values as Postgres reads and writes them |

use capabilities::plugin::{Ask, OpenError};
use capabilities::sql::SqlDatabase;
use std::sync::Arc;

mod database;
mod literal;
mod moments;
mod server;
mod session;
mod sessions;
mod sign_in;
mod text;
mod wire;

/// Sessions of all workloads of a host at once, idle ones too.
const SESSIONS_MAX: usize = 200;

/// The databases of a host's workloads.
pub(crate) struct Databases(Arc<sessions::Sessions>);

impl Databases {
    pub(crate) fn new() -> Self {
        Self(sessions::Sessions::new(SESSIONS_MAX))
    }

    /// That which the settings of `ask` name; nothing is connected to yet.
    pub(crate) fn open(&self, ask: &Ask<'_>) -> Result<Arc<dyn SqlDatabase>, OpenError> {
        let server = server::Server::read(&ask.settings)?;
        let user = (
            ask.namespace.to_owned(),
            ask.workload.to_owned(),
            ask.settings.all().clone(),
        );
        let pool = self.0.pool(user, server);
        Ok(Arc::new(database::Database::new(pool)))
    }

    pub(crate) async fn run(&self) {
        self.0.run().await;
    }

    pub(crate) fn close(&self) {
        self.0.close();
    }
}

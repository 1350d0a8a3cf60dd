//! The capability traits over what the host's own machine has.
//!
//! | module | backend | what it does |
//! |---|---|---|
//! | `files` | `files` | secrets, each a file below a directory of its namespace |
//! | `environment` | `env` | secrets, each a variable of the host's environment |
//!
//! Invariant: a workload reaches what belongs to its namespace, and nothing else of the machine.

mod environment;
mod files;

pub use environment::Environment;
pub use files::Files;

/// Why a namespace has no secrets on this machine.
#[derive(thiserror::Error, Debug)]
#[error(
    "the namespace '{0}' cannot be the name of a directory; it may have letters, digits, '.', '_' and '-'"
)]
struct Namespace(String);

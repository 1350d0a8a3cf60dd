//! What the process says on its standard error.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// For people; coloured on a terminal.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Why logging cannot be set up.
#[derive(thiserror::Error, Debug)]
#[non_exhaustive]
pub enum Error {
    /// The level is neither a level nor a list of directives.
    #[error("log level \"{level}\" is invalid")]
    Level {
        /// What was given.
        level: String,
        /// What is wrong with it.
        #[source]
        source: ParseError,
    },
    /// This process has a log already.
    #[error("the log is set up already")]
    Again,
}

/// Sends log lines at `level` to standard error from now on.
///
/// Shape: `level` is a level, like `info`, or directives, like `info,washlet=debug`.
///
/// # Errors
/// [`Error::Level`]; [`Error::Again`] on a second call.
pub fn init(level: &str, format: Format) -> Result<(), Error> {
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter(level)?)
        .with_writer(std::io::stderr)
        .with_ansi(format == Format::Text && std::io::stderr().is_terminal());
    match format {
        Format::Text => log.try_init(),
        Format::Json => log.json().flatten_event(true).try_init(),
    }
    .map_err(|_| Error::Again)
}

fn filter(level: &str) -> Result<EnvFilter, Error> {
    // The NATS client reports every attempt of a reconnect, up to four a second and as errors; what
    // matters of it is logged by this crate, once.
    let quiet = if level.contains("async_nats") {
        ""
    } else {
        ",async_nats=off"
    };
    EnvFilter::try_new(format!("{level}{quiet}")).map_err(|source| Error::Level {
        level: level.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_or_directives_are_read_and_others_refused() {
        let text = |level: &str| filter(level).unwrap().to_string();
        assert!(text("info").contains("async_nats=off"));
        assert!(text("warn,washlet=debug").contains("washlet=debug"));
        let asked = text("info,async_nats=debug");
        assert!(
            asked.contains("async_nats=debug") && !asked.contains("off"),
            "{asked}"
        );
        assert!(
            matches!(filter("a=b=c").unwrap_err(), Error::Level { level, .. } if level == "a=b=c")
        );
    }
}

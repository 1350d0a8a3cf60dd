//! Where the server is, and how to sign in there.

use sqlx::postgres::PgConnectOptions;
use std::fmt;
use std::str::FromStr;
use url::Url;

/// The parameters that a URL may have; any other would be ignored, or change how statements behave.
const PARAMETERS: [&str; 10] = [
    "application_name",
    "dbname",
    "host",
    "hostaddr",
    "password",
    "port",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
];

/// A Postgres URL. It may hold a password, so that it shows nowhere: not in `Debug`, not in an error.
#[derive(Clone)]
pub struct Dsn(pub(crate) PgConnectOptions);

impl Dsn {
    /// Reads `postgres://user:password@host:port/database?sslmode=verify-full&sslrootcert=ca.pem`, every
    /// part but the scheme optional: for what is not there, libpq's variables (`PGHOST`, `PGPASSWORD` and the
    /// like) and its defaults stand in.
    ///
    /// # Errors
    /// [`DsnError`], which says what is wrong without the text.
    pub fn parse(text: &str) -> Result<Self, DsnError> {
        let url = Url::parse(text).map_err(|_| DsnError::Url)?;
        if !matches!(url.scheme(), "postgres" | "postgresql") {
            return Err(DsnError::Url);
        }
        for (name, _) in url.query_pairs() {
            // A parameter's name is not secret where it is known; another may be half a password.
            if !PARAMETERS.contains(&name.as_ref()) {
                return Err(DsnError::Parameter);
            }
        }
        match PgConnectOptions::from_str(text) {
            Ok(options) => Ok(Self(options)),
            Err(_) => Err(DsnError::Value),
        }
    }
}

impl fmt::Debug for Dsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Dsn(..)")
    }
}

/// Why a text is no [`Dsn`]; the text is not repeated.
#[derive(thiserror::Error, Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum DsnError {
    /// No URL, or one of another scheme.
    #[error("not a URL like postgres://user@host:5432/database")]
    Url,
    /// A parameter that would be ignored.
    #[error("a parameter is not known (known: {})", PARAMETERS.join(", "))]
    Parameter,
    /// A part that cannot be read.
    #[error("the value of a parameter, or an escape like %2F, cannot be read")]
    Value,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_said_without_the_secret() {
        for (text, error) in [
            ("hunter2", DsnError::Url),
            ("mysql://u:hunter2@h/d", DsnError::Url),
            ("postgres://u:hunter2@h:port/d", DsnError::Url),
            ("postgres://u@h/d?pasword=hunter2", DsnError::Parameter),
            ("postgres://u@h/d?sslmode=hunter2", DsnError::Value),
            ("postgres://u@h/d?port=hunter2", DsnError::Value),
        ] {
            let found = Dsn::parse(text).map(drop);
            assert_eq!(found, Err(error), "{text}");
            assert!(!error.to_string().contains("hunter2"));
        }
    }

    #[test]
    fn debug_shows_nothing() {
        for text in ["postgres://user:hunter2@host/d", "postgresql://host"] {
            let dsn = Dsn::parse(text).unwrap();
            assert_eq!(format!("{dsn:?}"), "Dsn(..)");
        }
    }
}

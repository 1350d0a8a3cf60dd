//! Secrets from the environment of the host: `PREFIX` `NAMESPACE` `__` `KEY`.

use async_trait::async_trait;
use capabilities::plugin::{Ask, OpenError, Plugin};
use capabilities::secrets::{Fixed, Secret, SecretSource, is_plain_key};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::sync::Arc;

/// Secrets from variables with one prefix.
///
/// Shape: bytes of the namespace other than letters and digits are `_` and two upper-case hex digits, so
/// that `__` can only be the separator: `team-a` is `team_2Da`. The key is as it is.
pub struct Environment {
    /// By what follows the prefix.
    secrets: BTreeMap<String, Secret>,
}

impl Environment {
    /// Those of `variables` whose name begins with `prefix`, once and for all.
    pub fn new(prefix: &str, variables: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        let secrets = variables.into_iter().filter_map(|(name, value)| {
            let name = name.into_string().ok()?;
            let name = name.strip_prefix(prefix)?;
            let value = value.into_encoded_bytes();
            Some((name.to_owned(), Secret::new(value)))
        });
        Self {
            secrets: secrets.collect(),
        }
    }
}

#[async_trait]
impl Plugin for Environment {
    fn name(&self) -> &'static str {
        "env"
    }

    async fn secrets(&self, ask: &Ask<'_>) -> Result<Arc<dyn SecretSource>, OpenError> {
        let mut namespace = String::new();
        for byte in ask.namespace.bytes() {
            match byte.is_ascii_alphanumeric() {
                true => namespace.push(char::from(byte)),
                false => namespace.push_str(&format!("_{byte:02X}")),
            }
        }
        namespace.push_str("__");
        let own = self.secrets.iter().filter_map(|(name, secret)| {
            let key = name.strip_prefix(&namespace)?;
            is_plain_key(key).then(|| (key.to_owned(), secret.clone()))
        });
        Ok(Arc::new(own.collect::<Fixed>()))
    }
}

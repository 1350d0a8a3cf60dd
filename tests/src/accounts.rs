//! Accounts of NATS whose users show signed credentials, which may expire.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use nkeys::KeyPair;
use serde_json::{Value, json};

/// Whose signature a server trusts.
pub struct Operator {
    key: KeyPair,
    system: KeyPair,
}

/// An account that may do everything.
pub struct Account(KeyPair);

impl Default for Operator {
    fn default() -> Self {
        Self {
            key: KeyPair::new_operator(),
            system: KeyPair::new_account(),
        }
    }
}

impl Operator {
    /// What a server's configuration says so that users of `account` may connect, and nobody else.
    ///
    /// # Errors
    /// When a key cannot sign.
    pub fn config_lines(&self, account: &Account) -> Result<String> {
        let token = sign(&self.key, &self.key, json!({ "type": "operator" }), None)?;
        let preload = |account: &KeyPair, jetstream: bool| {
            let mut limits = json!({
                "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1,
                "wildcards": true, "conn": -1, "leaf": -1,
            });
            if jetstream && let Some(limits) = limits.as_object_mut() {
                for limit in ["mem_storage", "disk_storage", "streams", "consumer"] {
                    limits.insert(limit.to_owned(), (-1).into());
                }
            }
            let claims = json!({ "limits": limits, "type": "account" });
            let token = sign(&self.key, account, claims, None)?;
            anyhow::Ok(format!("{}: {token}", account.public_key()))
        };
        Ok(format!(
            "operator: {token}\nsystem_account: {}\nresolver: MEMORY\nresolver_preload: {{\n{}\n{}\n}}",
            self.system.public_key(),
            preload(&self.system, false)?,
            preload(&account.0, true)?,
        ))
    }
}

impl Default for Account {
    fn default() -> Self {
        Self(KeyPair::new_account())
    }
}

impl Account {
    /// The creds file of a new user, who may do everything, at most until `expires`.
    ///
    /// # Errors
    /// When a key cannot sign.
    pub fn creds(&self, expires: Option<SystemTime>) -> Result<String> {
        let user = KeyPair::new_user();
        let claims = json!({ "subs": -1, "data": -1, "payload": -1, "type": "user" });
        Ok(format!(
            "-----BEGIN NATS USER JWT-----\n{}\n------END NATS USER JWT------\n\n\
             ************************* IMPORTANT *************************\n\
             -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
            sign(&self.0, &user, claims, expires)?,
            user.seed()?
        ))
    }
}

/// A token in which `issuer` says `nats` of `subject`.
fn sign(
    issuer: &KeyPair,
    subject: &KeyPair,
    mut nats: Value,
    expires: Option<SystemTime>,
) -> Result<String> {
    let nats_claims = nats.as_object_mut().context("claims are an object")?;
    nats_claims.insert("version".to_owned(), 2.into());
    let mut claims = json!({
        "jti": subject.public_key(), "iat": 1_700_000_000, "iss": issuer.public_key(),
        "name": "test", "sub": subject.public_key(), "nats": nats,
    });
    if let (Some(expires), Some(claims)) = (expires, claims.as_object_mut()) {
        let seconds = expires.duration_since(UNIX_EPOCH)?.as_secs();
        claims.insert("exp".to_owned(), seconds.into());
    }
    let header = json!({ "typ": "JWT", "alg": "ed25519-nkey" });
    let encode = |part: &Value| BASE64.encode(part.to_string());
    let signed = format!("{}.{}", encode(&header), encode(&claims));
    let signature = BASE64.encode(issuer.sign(signed.as_bytes())?);
    Ok(format!("{signed}.{signature}"))
}

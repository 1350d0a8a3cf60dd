//! Secrets from a bucket whose values are sealed to the keys of hosts, so that NATS never has them in the clear.

use async_trait::async_trait;
use capabilities::keyvalue;
use capabilities::secrets::{Error, KEY_BYTES_MAX, Opener, Result, Secret, SecretSource, Unopened};
use capabilities::{names, report};
use std::sync::Arc;

use crate::bucket::Buckets;

/// The secrets of one namespace in one bucket.
///
/// Shape: a value is read whenever a component asks, so what is replaced is seen by the next call.
pub(crate) struct Source {
    buckets: Arc<Buckets>,
    opener: Arc<dyn Opener>,
    namespace: String,
    /// NATS' name of the bucket.
    bucket: String,
    guest_name: String,
}

/// Why a bucket of secrets cannot be used.
#[derive(thiserror::Error, Debug)]
pub(crate) enum OpenError {
    #[error("{0}")]
    Name(#[from] names::Error),
    #[error(
        "there is no bucket '{guest_name}' (in NATS: '{bucket}'); `wash secrets seal --put {guest_name}/KEY` makes it"
    )]
    NoSuchBucket { guest_name: String, bucket: String },
    #[error(transparent)]
    Bucket(keyvalue::Error),
}

impl Source {
    /// The bucket called `bucket` by NATS and `guest_name` by people, which has to be there.
    pub(crate) async fn open(
        buckets: Arc<Buckets>,
        opener: Arc<dyn Opener>,
        namespace: &str,
        bucket: String,
        guest_name: &str,
    ) -> Result<Self, OpenError> {
        let guest_name = guest_name.to_owned();
        match buckets.find(&bucket, &guest_name).await {
            Ok(_) => Ok(Self {
                buckets,
                opener,
                namespace: namespace.to_owned(),
                bucket,
                guest_name,
            }),
            Err(keyvalue::Error::NoSuchBucket(_)) => {
                Err(OpenError::NoSuchBucket { guest_name, bucket })
            }
            Err(error) => Err(OpenError::Bucket(error)),
        }
    }

    /// What the bucket has, looking for the bucket again when it is not where it was.
    async fn sealed(&self, key: &str) -> keyvalue::Result<Option<bytes::Bytes>> {
        let key = names::encode_key(key);
        let known = self.buckets.find(&self.bucket, &self.guest_name).await?;
        let last = match known.last(&key).await {
            Err(keyvalue::Error::NoSuchBucket(_) | keyvalue::Error::Unavailable(_))
                if self.buckets.is_connected() =>
            {
                self.buckets.forget(&self.bucket);
                let found = self.buckets.find(&self.bucket, &self.guest_name).await?;
                found.last(&key).await?
            }
            last => last?,
        };
        Ok(last.value)
    }
}

#[async_trait]
impl SecretSource for Source {
    async fn get(&self, key: &str) -> Result<Option<Secret>> {
        if !(1..=KEY_BYTES_MAX).contains(&key.len()) {
            return Ok(None);
        }
        let sealed = match self.sealed(key).await {
            Ok(Some(sealed)) => sealed,
            Ok(None) => return Ok(None),
            Err(error) => {
                return Err(Error::Io {
                    key: key.to_owned(),
                    source: error.into(),
                });
            }
        };
        let opened = std::str::from_utf8(&sealed)
            .map_err(|_| Unopened::NotSealed)
            .and_then(|sealed| self.opener.open(&self.namespace, sealed.trim_ascii_end()));
        opened.map(Some).map_err(|source| {
            let (bucket, error) = (&self.bucket, report(&source));
            tracing::warn!(bucket, key, error, "a secret in a bucket cannot be opened");
            Error::Sealed {
                key: key.to_owned(),
                source,
            }
        })
    }
}

//! Brings the schema `washlet` up to date.

use sqlx::{Connection, Executor, PgConnection, Row};

use crate::database::{Error, Result};

/// What makes each version of the schema out of the one before. Stored data fixes them: only append.
const MIGRATIONS: [&str; 3] = [
    include_str!("schema/1.sql"),
    include_str!("schema/followed.sql"),
    include_str!("schema/messages.sql"),
];

/// Held while the schema is changed, by one host at a time.
const LOCK: i64 = i64::from_be_bytes(*b"washlet\0");

/// Returns when the schema is of this version; hosts that come at once wait for each other.
pub(crate) async fn migrate(connection: &mut PgConnection) -> Result<()> {
    if is_current(connection).await? {
        return Ok(());
    }
    let mut changes = connection.begin().await?;
    let lock = sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(LOCK);
    lock.execute(&mut *changes).await?;
    // Looked for first: whoever finds it needs no right to make it.
    if !exists(
        &mut changes,
        "SELECT to_regnamespace('washlet') IS NOT NULL",
    )
    .await?
    {
        changes.execute("CREATE SCHEMA washlet").await?;
    }
    if !has_versions(&mut changes).await? {
        let versions = "CREATE TABLE washlet.migration \
                        (version integer PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())";
        changes.execute(versions).await?;
    }
    let applied = version(&mut changes).await?;
    for (version, sql) in (1_i32..).zip(MIGRATIONS).skip_while(|(v, _)| *v <= applied) {
        sqlx::raw_sql(sql).execute(&mut *changes).await?;
        let insert = sqlx::query("INSERT INTO washlet.migration (version) VALUES ($1)");
        insert.bind(version).execute(&mut *changes).await?;
        tracing::info!(
            version,
            "the Postgres schema 'washlet' was brought up to date"
        );
    }
    changes.commit().await?;
    Ok(())
}

async fn is_current(connection: &mut PgConnection) -> Result<bool> {
    if !has_versions(connection).await? {
        return Ok(false);
    }
    let (found, known) = (version(connection).await?, MIGRATIONS.len());
    match usize::try_from(found).unwrap_or_default() {
        found if found > known => {
            let text = format!(
                "the schema 'washlet' is of version {found}, this host knows {known}: \
                 a newer host has changed it; run that version here, too"
            );
            Err(Error::Internal(text.into()))
        }
        found => Ok(found == known),
    }
}

async fn has_versions(connection: &mut PgConnection) -> Result<bool> {
    exists(
        connection,
        "SELECT to_regclass('washlet.migration') IS NOT NULL",
    )
    .await
}

async fn exists(connection: &mut PgConnection, question: &'static str) -> Result<bool> {
    let row = sqlx::query(question).fetch_one(connection).await?;
    Ok(row.try_get(0)?)
}

async fn version(connection: &mut PgConnection) -> Result<i32> {
    let latest = sqlx::query("SELECT coalesce(max(version), 0) FROM washlet.migration");
    Ok(latest.fetch_one(connection).await?.try_get(0)?)
}

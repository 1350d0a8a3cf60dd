//! A database that components query: values, rows, and why a statement fails.

use async_trait::async_trait;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use std::time::Duration;

use crate::BoxError;

/// The longest statement together with its parameters, in bytes as they are sent.
pub const STATEMENT_BYTES_MAX: usize = 16 << 20;

/// A database, already opened with the rights of who asked for it.
///
/// Each call has a connection of its own, in which nothing is left of other calls: what is to happen in one
/// transaction is one call of [`batch`](Self::batch), or one statement.
#[async_trait]
pub trait SqlDatabase: Send + Sync + 'static {
    /// Runs one statement; its rows come as they are asked for.
    ///
    /// Errors: those of the server before the first row are given at once, later ones in the stream.
    /// Source: `wasmcloud:postgres/query.query`.
    async fn query(&self, statement: &str, params: Vec<Value>) -> Result<Rows>;

    /// Runs any number of statements, without parameters; the rows they give are lost.
    ///
    /// Source: `wasmcloud:postgres/query.query-batch`.
    async fn batch(&self, statements: &str) -> Result<()>;

    /// Checks one statement and remembers it: a token for [`execute`](Self::execute).
    ///
    /// Shape: the same statement has the same token, in every call and on every host.
    /// Source: `wasmcloud:postgres/prepared.prepare`.
    async fn prepare(&self, statement: &str) -> Result<String>;

    /// Runs what `token` stands for; how many rows it affected.
    ///
    /// Errors: [`Error::UnknownStatement`] for what was not prepared here, or was forgotten since.
    /// Source: `wasmcloud:postgres/prepared.exec`.
    async fn execute(&self, token: &str, params: Vec<Value>) -> Result<u64>;
}

/// What a statement gives.
pub struct Rows {
    /// The columns' names.
    pub columns: Vec<String>,
    /// The rows; after an error there is none.
    pub rows: BoxStream<'static, Result<Row>>,
    /// What of them may be in memory together.
    pub limits: Limits,
}

/// One row, a value for each column.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// In the order of the columns.
    pub values: Vec<Value>,
    /// What they take in memory, about.
    pub bytes: usize,
}

/// How much of a result may be in memory at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Rows.
    pub rows: usize,
    /// Bytes, as [`Row::bytes`] counts them.
    pub bytes: usize,
}

impl Rows {
    /// All rows together.
    ///
    /// # Errors
    /// [`Error::TooLarge`] as soon as there are more than [`Limits`] allow; else that of the stream.
    pub async fn collect(mut self) -> Result<(Vec<String>, Vec<Row>)> {
        let (mut rows, mut bytes) = (Vec::new(), 0usize);
        let names: usize = self.columns.iter().map(String::len).sum();
        while let Some(row) = self.rows.next().await {
            let row = row?;
            bytes = bytes.saturating_add(row.bytes).saturating_add(names);
            if rows.len() >= self.limits.rows {
                return Err(Error::TooLarge {
                    what: "rows",
                    limit: self.limits.rows,
                    key: "max_rows",
                });
            }
            if bytes > self.limits.bytes {
                return Err(Error::too_many_bytes(self.limits.bytes));
            }
            rows.push(row);
        }
        Ok((self.columns, rows))
    }
}

/// The types that values have; of what is none of them, the text is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "each is the type of that name")]
pub enum Type {
    Bool,
    Int2,
    Int4,
    Int8,
    Float4,
    Float8,
    Numeric,
    Money,
    Bit,
    Varbit,
    Bytea,
    Char,
    Varchar,
    Text,
    Name,
    Json,
    Jsonb,
    Xml,
    Uuid,
    Cidr,
    Inet,
    Macaddr,
    Macaddr8,
    Box,
    Circle,
    Line,
    Lseg,
    Path,
    Point,
    Polygon,
    Date,
    DateRange,
    Time,
    TimeTz,
    Timestamp,
    TimestampTz,
    PgLsn,
    PgSnapshot,
    TxidSnapshot,
    TsQuery,
    TsVector,
    Int2Vector,
    Hstore,
}

/// A point of a plane.
pub type Point = (f64, f64);

/// A value of a parameter or of a column.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "each is a value of the type of that name")]
pub enum Value {
    Null,
    Bool(bool),
    Int2(i16),
    Int4(i32),
    Int8(i64),
    Float4(f32),
    Float8(f64),
    /// [`Type::Bit`] or [`Type::Varbit`]: how many, and bytes with the first bit highest.
    Bits(Type, u32, Vec<u8>),
    Bytea(Vec<u8>),
    /// What is text by nature: [`Type::Text`], [`Type::Numeric`], [`Type::Json`], [`Type::Uuid`] and so on.
    Text(Type, String),
    Macaddr([u8; 6]),
    Macaddr8([u8; 8]),
    /// [`Type::Point`], of one; [`Type::Box`], [`Type::Line`], [`Type::Lseg`], of two; [`Type::Path`] and
    /// [`Type::Polygon`], of any number.
    Shape(Type, Vec<Point>),
    Circle(Point, f64),
    Date(Date),
    DateRange(DateRange),
    Time(Time),
    /// With an offset like `+02` or `-03:30`.
    TimeTz(Time, String),
    Timestamp(Timestamp),
    /// With seconds east of UTC.
    TimestampTz(Timestamp, i32),
    PgLsn(u64),
    /// The first transaction under way, the first not begun, those under way.
    PgSnapshot(i64, i64, Vec<i64>),
    /// A snapshot in which all transactions before this one are done, and no other has begun.
    TxidSnapshot(i64),
    TsVector(Vec<Lexeme>),
    Int2Vector(Vec<i16>),
    Hstore(Vec<(String, Option<String>)>),
    /// Of one dimension, without NULL in it.
    Array(Type, Vec<Value>),
}

/// A day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Date {
    /// After all others.
    Infinity,
    /// Before all others.
    MinusInfinity,
    /// Year (0 is 1 BC), month, day.
    Day(i32, u32, u32),
}

/// Days from one to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DateRange {
    /// The first.
    pub start: Date,
    /// Whether the first is in it.
    pub start_inclusive: bool,
    /// The last.
    pub end: Date,
    /// Whether the last is in it.
    pub end_inclusive: bool,
}

/// A time of day.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Time {
    /// 0..=24
    pub hour: u32,
    /// 0..60
    pub minute: u32,
    /// 0..=60
    pub second: u32,
    /// 0..1,000,000
    pub micro: u32,
}

/// A day and a time; an infinite day has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timestamp {
    /// The day.
    pub date: Date,
    /// The time.
    pub time: Time,
}

/// A word of a text search vector, at one of its positions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lexeme {
    /// 1..=16383, if it has one.
    pub position: Option<u16>,
    /// `A` to `D`; without one it is `D`.
    pub weight: Option<char>,
    /// The word.
    pub data: String,
}

/// What the server says of a failure.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// SQLSTATE.
    pub code: String,
    /// `ERROR`, `FATAL` or `PANIC`.
    pub severity: String,
    /// In words.
    pub message: String,
    /// In more words.
    pub detail: Option<String>,
    /// Further fields by name: `hint`, `position`, `constraint` and so on.
    pub extras: Vec<(&'static str, String)>,
}

/// Why a call failed. No text has a password in it.
#[derive(thiserror::Error, Debug)]
#[non_exhaustive]
pub enum Error {
    /// There is no connection, or it broke; trying again may help.
    #[error("the database is unavailable")]
    Unavailable(#[source] BoxError),
    /// The server does not let the role in, or the host not the workload out.
    #[error("access denied: {0}")]
    AccessDenied(&'static str),
    /// Parameters that cannot be.
    #[error("invalid parameters: {0}")]
    InvalidParams(String),
    /// A statement that cannot be.
    #[error("invalid statement: {0}")]
    InvalidQuery(String),
    /// The server refused it.
    #[error("{}: {}", .0.code, .0.message)]
    Failed(Box<Report>),
    /// A value that cannot be passed on.
    #[error("{0}")]
    Conversion(String),
    /// No statement has this token.
    #[error("no statement was prepared under this token, or it was forgotten since")]
    UnknownStatement,
    /// It took longer than it may.
    #[error("not done within {0:?}")]
    Timeout(Duration),
    /// No connection became free.
    #[error("all connections were busy for {0:?}")]
    Busy(Duration),
    /// A result that is larger than may be in memory.
    #[error("the result has more than {limit} {what}; narrow the statement, or raise '{key}'")]
    TooLarge {
        /// `rows` or `bytes`.
        what: &'static str,
        /// How many there may be.
        limit: usize,
        /// The config key that says so.
        key: &'static str,
    },
}

impl Error {
    /// A result of more bytes than `limit`.
    pub fn too_many_bytes(limit: usize) -> Self {
        Self::TooLarge {
            what: "bytes",
            limit,
            key: "max_bytes",
        }
    }
}

/// What database operations return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;

    fn rows(count: usize, limits: Limits) -> Rows {
        let row = Row {
            values: vec![Value::Int4(1)],
            bytes: 10,
        };
        Rows {
            columns: vec!["n".to_owned()],
            rows: futures::stream::iter((0..count).map(move |_| Ok(row.clone()))).boxed(),
            limits,
        }
    }

    #[test]
    fn a_result_is_collected_within_its_limits() {
        let collect = |count, limits| rows(count, limits).collect().now_or_never().unwrap();
        let limits = Limits { rows: 3, bytes: 33 };
        assert_eq!(collect(3, limits).unwrap().1.len(), 3);
        for (limits, expected) in [
            (Limits { rows: 2, bytes: 33 }, "rows"),
            (Limits { rows: 3, bytes: 32 }, "bytes"),
        ] {
            let refused = collect(3, limits);
            assert!(
                matches!(refused, Err(Error::TooLarge { what, .. }) if what == expected),
                "{expected}"
            );
        }
    }
}

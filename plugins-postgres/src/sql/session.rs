//! One session with the server: statements, their rows, and the way back to a session in which nothing is left.

use bytes::{Buf as _, Bytes};
use capabilities::sql::{Error, Report, Result, STATEMENT_BYTES_MAX, Value};
use std::time::Duration;

use super::server::Server;
use super::sign_in::{self, Cancel, broken, unavailable};
use super::text;
use super::wire::{self, Broken, Message, Wire, garbled, take_text};

/// The largest message that is no row, in bytes.
const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// Whether an extension's type is there, and its number; and none of what the role's defaults are.
const FIRST: &str = "SELECT oid FROM pg_catalog.pg_type WHERE typname = 'hstore'";

/// A signed-in connection.
pub(super) struct Session {
    wire: Wire,
    cancel: Option<Cancel>,
    /// What is said on a session before anything else is.
    settings: String,
    limit: Duration,
    /// The largest row, in bytes.
    row_bytes_max: usize,
    /// `I` when no transaction is open, as the server said last.
    status: u8,
    /// How many times the server will still say that it is ready, for what a reset asked of it.
    owed: usize,
    /// The number of the type `hstore` in this database.
    hstore: Option<u32>,
}

/// A column of a result.
pub(super) struct Column {
    pub(super) name: String,
    pub(super) kind: text::Kind,
}

/// What the server says while it carries a statement out.
pub(super) enum Event {
    Columns(Vec<Column>),
    Row(Bytes),
    /// The statement is done, and affected so many rows.
    Done(u64),
    Failed(Error),
    /// Nothing is under way any more.
    Ready,
}

impl Session {
    pub(super) async fn open(server: &Server) -> Result<Self> {
        let (wire, cancel) = sign_in::connect(server).await?;
        let mut session = Self {
            wire,
            cancel,
            settings: format!(
                "SET extra_float_digits = 1; SET bytea_output = 'hex'; \
                 SET client_min_messages = 'error'; SET statement_timeout = {}",
                server.statement.as_millis()
            ),
            limit: server.statement,
            row_bytes_max: server.limits.bytes,
            status: b'I',
            owed: 0,
            hstore: None,
        };
        let mut out = Vec::new();
        simple(&mut out, &session.settings);
        simple(&mut out, FIRST);
        session.send(&out).await?;
        let mut ready = 0;
        while ready < 2 {
            match session.event().await? {
                Event::Ready => ready += 1,
                Event::Failed(error) => return Err(error),
                Event::Row(row) => session.hstore = number(row),
                Event::Columns(_) | Event::Done(_) => {}
            }
        }
        Ok(session)
    }

    pub(super) fn cancel(&self) -> Option<Cancel> {
        self.cancel
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.wire.send(bytes).await.map_err(unavailable)
    }

    /// Sends one statement with `params`, to be carried out.
    pub(super) async fn run(&mut self, statement: &str, params: &[Value]) -> Result<()> {
        let mut types = Vec::with_capacity(params.len());
        let mut values = Vec::new();
        for (index, value) in params.iter().enumerate() {
            types.push(text::oid(value, self.hstore));
            let at = values.len();
            values.extend([0; 4]);
            let length = match text::write(value, &mut values) {
                Ok(true) => i32::try_from(values.len() - at - 4).unwrap_or(i32::MAX),
                Ok(false) => -1,
                Err(why) => return Err(Error::InvalidParams(format!("${}: {why}", index + 1))),
            };
            if let Some(place) = values.get_mut(at..at + 4) {
                place.copy_from_slice(&length.to_be_bytes());
            }
            if values.len() > STATEMENT_BYTES_MAX {
                break;
            }
        }
        let Ok(count) = u16::try_from(params.len()) else {
            return Err(Error::InvalidParams("more than 65535".to_owned()));
        };
        check(statement, values.len())?;
        let mut out = Vec::with_capacity(statement.len() + values.len() + 64);
        parse(&mut out, statement, count, &types);
        wire::message(&mut out, Some(b'B'), |out| {
            // No portal, no statement's name, all parameters as text.
            out.extend([0, 0, 0, 0]);
            out.extend(count.to_be_bytes());
            out.append(&mut values);
            // All columns as text.
            out.extend([0, 0]);
        });
        wire::message(&mut out, Some(b'D'), |out| out.extend(b"P\0"));
        wire::message(&mut out, Some(b'E'), |out| out.extend([0; 5]));
        wire::message(&mut out, Some(b'S'), |_| {});
        self.send(&out).await
    }

    /// Sends one statement, to be looked at.
    pub(super) async fn check(&mut self, statement: &str) -> Result<()> {
        check(statement, 0)?;
        let mut out = Vec::with_capacity(statement.len() + 32);
        parse(&mut out, statement, 0, &[]);
        wire::message(&mut out, Some(b'S'), |_| {});
        self.send(&out).await
    }

    /// Sends any number of statements, to be carried out.
    pub(super) async fn batch(&mut self, statements: &str) -> Result<()> {
        check(statements, 0)?;
        let mut out = Vec::with_capacity(statements.len() + 8);
        simple(&mut out, statements);
        self.send(&out).await
    }

    /// What happens next. An error is the end of the session.
    pub(super) async fn event(&mut self) -> Result<Event> {
        loop {
            let bytes_max = self.row_bytes_max.max(MESSAGE_BYTES_MAX);
            let Message { kind, mut body } = match self.wire.next(bytes_max).await {
                Ok(message) => message,
                Err(Broken::TooLarge) => return Err(Error::too_many_bytes(self.row_bytes_max)),
                Err(error) => return Err(broken(error)),
            };
            match kind {
                b'D' if body.len() > self.row_bytes_max => {
                    return Err(Error::too_many_bytes(self.row_bytes_max));
                }
                b'D' => return Ok(Event::Row(body)),
                b'T' => {
                    let columns = self.columns(body).map_err(unavailable)?;
                    return Ok(Event::Columns(columns));
                }
                b'C' => {
                    let tag = take_text(&mut body).map_err(unavailable)?;
                    let count = tag.rsplit(' ').next().and_then(|count| count.parse().ok());
                    return Ok(Event::Done(count.unwrap_or(0)));
                }
                // A statement of nothing.
                b'I' => return Ok(Event::Done(0)),
                b'E' => return Ok(Event::Failed(failed(report(body), self.limit))),
                b'Z' => {
                    self.status = body.try_get_u8().map_err(|_| unavailable(garbled()))?;
                    return Ok(Event::Ready);
                }
                b'G' | b'H' | b'W' => {
                    let why = "COPY from and to the client is not served";
                    return Err(Error::InvalidQuery(why.to_owned()));
                }
                // Acknowledgements, settings, notices and notifications.
                b'1' | b'2' | b'3' | b'n' | b't' | b's' | b'S' | b'N' | b'A' => {}
                _ => return Err(unavailable(garbled())),
            }
        }
    }

    fn columns(&self, mut body: Bytes) -> std::io::Result<Vec<Column>> {
        let mut columns = Vec::new();
        for _ in 0..body.try_get_u16().map_err(|_| garbled())? {
            let name = take_text(&mut body)?;
            // Table, column, type, size, modifier, format.
            let mut rest = match body.len() {
                18.. => body.split_to(18),
                _ => return Err(garbled()),
            };
            rest.advance(6);
            let kind = text::Kind::of(rest.get_u32(), self.hstore);
            columns.push(Column { name, kind });
        }
        Ok(columns)
    }

    /// Whether a transaction is still open.
    pub(super) fn in_transaction(&self) -> bool {
        self.status != b'I'
    }

    /// Asks the server to forget all that was done in this session.
    pub(super) async fn reset(&mut self) -> Result<()> {
        let mut out = Vec::new();
        if self.in_transaction() {
            simple(&mut out, "ROLLBACK");
            self.owed += 1;
        }
        simple(&mut out, "DISCARD ALL");
        simple(&mut out, &self.settings);
        self.owed += 2;
        self.wire.shrink();
        self.send(&out).await
    }

    /// Waits until the server has; an error if it did not.
    pub(super) async fn settled(&mut self) -> Result<()> {
        while self.owed > 0 {
            match self.event().await? {
                Event::Ready => self.owed -= 1,
                Event::Failed(error) => return Err(error),
                Event::Columns(_) | Event::Row(_) | Event::Done(_) => {}
            }
        }
        match !self.in_transaction() && self.wire.is_quiet() {
            true => Ok(()),
            false => Err(unavailable("the connection ended while it was idle")),
        }
    }
}

/// Refuses what cannot be sent.
fn check(statement: &str, more: usize) -> Result<()> {
    if statement.contains('\0') {
        return Err(Error::InvalidQuery("it has a NUL".to_owned()));
    }
    match statement.len().saturating_add(more) {
        bytes if bytes > STATEMENT_BYTES_MAX => Err(Error::InvalidQuery(format!(
            "statement and parameters exceed {STATEMENT_BYTES_MAX} bytes"
        ))),
        _ => Ok(()),
    }
}

fn parse(out: &mut Vec<u8>, statement: &str, count: u16, types: &[u32]) {
    wire::message(out, Some(b'P'), |out| {
        out.push(0);
        wire::text(out, statement);
        out.extend(count.to_be_bytes());
        out.extend(types.iter().flat_map(|oid| oid.to_be_bytes()));
    });
}

fn simple(out: &mut Vec<u8>, statements: &str) {
    wire::message(out, Some(b'Q'), |out| wire::text(out, statements));
}

/// The first column of a row, as a number.
fn number(mut row: Bytes) -> Option<u32> {
    row.try_get_u16().ok()?;
    let size = usize::try_from(row.try_get_i32().ok()?).ok()?;
    std::str::from_utf8(row.get(..size)?).ok()?.parse().ok()
}

/// The fields of an error.
pub(super) fn report(mut body: Bytes) -> Report {
    let mut report = Report::default();
    while let Ok(field @ 1..) = body.try_get_u8() {
        let Ok(text) = take_text(&mut body) else {
            break;
        };
        let name = match field {
            b'C' => {
                report.code = text;
                continue;
            }
            b'M' => {
                report.message = text;
                continue;
            }
            b'D' => {
                report.detail = Some(text);
                continue;
            }
            // The one that is not translated is the later.
            b'S' | b'V' => {
                report.severity = text;
                continue;
            }
            b'H' => "hint",
            b'P' => "position",
            b'W' => "where",
            b's' => "schema",
            b't' => "table",
            b'c' => "column",
            b'd' => "data-type",
            b'n' => "constraint",
            _ => continue,
        };
        report.extras.push((name, text));
    }
    report
}

/// What a failure of a statement is to who sent it.
fn failed(report: Report, limit: Duration) -> Error {
    match (report.code.get(..2), report.code.as_str()) {
        (_, "57014") => Error::Timeout(limit),
        // More or fewer parameters than the statement has.
        (_, "08P01") => Error::InvalidParams(report.message),
        (Some("08"), _) | (_, "57P01" | "57P02" | "57P03" | "57P05") => {
            unavailable(format!("{}: {}", report.code, report.message))
        }
        _ => Error::Failed(Box::new(report)),
    }
}

/// The values of a row.
pub(super) fn values(
    columns: &[Column],
    mut row: Bytes,
    bytes_max: usize,
) -> Result<(Vec<Value>, usize)> {
    let garbled = || unavailable(garbled());
    if usize::from(row.try_get_u16().map_err(|_| garbled())?) != columns.len() {
        return Err(garbled());
    }
    let mut budget = text::Budget::of(bytes_max);
    let mut values = Vec::with_capacity(columns.len());
    for column in columns {
        let size = row.try_get_i32().map_err(|_| garbled())?;
        let Ok(size) = usize::try_from(size) else {
            let taken = budget.take(0);
            taken.map_err(|_| Error::too_many_bytes(bytes_max))?;
            values.push(Value::Null);
            continue;
        };
        if size > row.len() {
            return Err(garbled());
        }
        let bytes = row.split_to(size);
        let text = std::str::from_utf8(&bytes)
            .map_err(|_| Error::Conversion(format!("column {}: no UTF-8", column.name)))?;
        values.push(match column.kind.read(text, &mut budget) {
            Ok(value) => value,
            Err(text::Failure::TooLarge) => return Err(Error::too_many_bytes(bytes_max)),
            Err(text::Failure::Conversion(why)) => {
                return Err(Error::Conversion(format!("column {}: {why}", column.name)));
            }
        });
    }
    Ok((values, budget.taken(bytes_max)))
}
